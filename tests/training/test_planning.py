"""A training is planned by what was measured, and not begun for less than half of it."""

import pytest

from regraft.training.planning import plan


@pytest.mark.parametrize(
    ("left_s", "once_s", "epochs", "is_worth_it"),
    [
        (1000, 0, 10, True),
        (300, 0, 5, True),
        (300, 60, 4, False),
        (250, 0, 4, False),
        (10, 0, 1, False),
        (-5, 0, 1, False),
    ],
)
def test_as_many_epochs_as_fit(left_s, once_s, epochs, is_worth_it):
    found = plan(10, 50.0, left_s, 20.0, once_s)
    assert (found.epochs, found.is_worth(0.5)) == (epochs, is_worth_it)
    assert found.is_worth(0.0)
    assert found.is_worth(1.0) == (epochs == 10)
    assert found.seconds == once_s + 50 * epochs


def test_few_epochs_are_worth_it_where_few_were_wanted():
    assert plan(1, 50.0, 60, 20.0).is_worth(0.5)
    assert not plan(1, 50.0, 40, 20.0).is_worth(0.5)


def test_one_line_says_what_and_when():
    said = plan(10, 50.0, 300, 20.0).describe(0.0)
    assert said.startswith("plan: 5 of 10 epochs at 20 photos/s, about 250 of 300 s; ready at ")
    assert plan(10, 50.0, 100, 20.0).declined() == (
        "not begun: 1 of 10 epochs would fit into the 100 s left, at 20 photos/s"
    )


@pytest.mark.parametrize(
    ("left_s", "small_epoch_s", "expected"),
    [
        (1000, 20.0, (10, 0)),  # as many as were wanted
        (480, 20.0, (10, 2)),  # 441.6 s: two of them save 30 s each
        (350, 20.0, (10, 6)),
        (300, 20.0, (9, 6)),  # no more than three quarters
        (350, None, (6, 0)),
        (350, 50.0, (6, 0)),  # nothing to save
        (10, 20.0, (1, 0)),
    ],
)
def test_photos_are_smaller_before_epochs_are_fewer(left_s, small_epoch_s, expected):
    found = plan(10, 50.0, left_s, 20.0, small_epoch_s=small_epoch_s)
    assert (found.epochs, found.small_epochs) == expected
    assert found.seconds <= max(left_s, 50.0)
    assert found.seconds == 50.0 * found.epochs - (50.0 - (small_epoch_s or 50.0)) * found.small_epochs
