"""Photos from elsewhere are told from those to learn from; a split by chance never is, whatever its classes."""

from pathlib import Path

import numpy as np
import pytest

from regraft.backbones.features import Features
from regraft.data.scan import Dataset
from regraft.training import shift
from regraft.training.shift import domain_accuracy, split_shift

CLASSES = ("a", "b", "c")


def drawn(n, by, seed, mixed=False):
    """A data set of n photos to learn from and n to judge on, the latter moved by so much; and its features.

    mixed: whether the classes are as frequent on one side as on the other.
    """
    rng = np.random.default_rng(seed)
    shares = ((0.7, 0.2, 0.1), (0.1, 0.2, 0.7)) if mixed else ((1 / 3,) * 3,) * 2
    y = np.concatenate([rng.choice(3, n, p=p) for p in shares])
    outside = np.arange(2 * n) >= n
    x = rng.normal(size=(2 * n, 20)) + 4 * np.eye(3, 20)[y]
    x[outside, 5:10] += by
    hashes = tuple(f"{int(i):064x}" for i in rng.permutation(2 * n))
    splits = tuple("test" if side else "train" for side in outside)
    dataset = Dataset(Path("photos"), tuple(f"{i}.jpg" for i in range(2 * n)), y, CLASSES, splits, hashes)
    return dataset, Features(x.astype(np.float32), y, hashes)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_split_by_chance_is_not_told(seed, mixed):
    """Also where the classes are of other shares there: what they are is not where they come from."""
    dataset, features = drawn(60, 0.0, seed, mixed)
    assert split_shift(dataset, features) == []
    assert domain_accuracy(features, np.array(dataset.splits) == "test").value < 0.65


def test_photos_from_elsewhere_are_told():
    dataset, features = drawn(60, 1.5, 0)
    (one,) = split_shift(dataset, features)
    assert (one.kind, one.photos, one.drop) == ("split shift", (), ())
    assert one.text.startswith("a model tells test photos from train photos in ")
    assert one.text.endswith("expect less than cross-validation on train says")


def test_more_photos_than_it_takes_are_not_looked_at(monkeypatch):
    dataset, features = drawn(60, 1.5, 0)
    monkeypatch.setattr(shift, "MOST", 20)
    assert domain_accuracy(features, np.array(dataset.splits) == "test").n == 40


def test_where_there_is_nothing_to_compare_nothing_is_said():
    dataset, features = drawn(1, 1.5, 0)
    assert domain_accuracy(features, np.array([False, True])) is None
    assert split_shift(dataset, features) == []
