"""Errors say what to do."""

import pytest

from regraft.core import errors


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("bes", ["ants", "bees"], " Did you mean 'bees'?"),
        ("resnet5", ["resnet50", "resnet51"], " Did you mean 'resnet51' or 'resnet50'?"),
        ("zebra", ["ants", "bees"], ""),
        ("ants", [], ""),
    ],
)
def test_the_nearest_names_are_hinted_at(name, known, hint):
    assert errors.nearest(name, known) == hint


def test_a_missing_extra_says_how_to_install_it():
    assert "pip install 'regraft[train]'" in str(errors.MissingExtra("torch"))


def test_every_error_is_a_regraft_error_and_in_the_tree():
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    for error in found - {errors.RegraftError}:
        assert issubclass(error, errors.RegraftError)
        assert error.__name__ in errors.__doc__
