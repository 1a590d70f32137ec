"""A photo's place depends on its content, its class and the seed, and on nothing else."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.core.errors import DataError
from regraft.data.drawing import draw_units
from regraft.data.scan import Dataset
from regraft.data.splits import fold_ids, folds_of, split


def photos(
    contents: dict[str, list[object]], splits: list[str] | None = None, order: list[int] | None = None
) -> Dataset:
    """A data set of `{class: [content, ...]}`; equal contents are copies. order: permutes the photos."""
    pairs = [(label, str(content)) for label, members in enumerate(contents.values()) for content in members]
    chosen = range(len(pairs)) if order is None else order
    return Dataset(
        root=Path("photos"),
        paths=tuple(f"{place}.jpg" for place in range(len(pairs))),
        labels=np.array([pairs[i][0] for i in chosen], dtype=np.int64),
        classes=tuple(contents),
        splits=tuple(splits or [""] * len(pairs)),
        hashes=tuple(hashlib.sha256(pairs[i][1].encode()).hexdigest() for i in chosen),
    )


def many(count: int, start: int = 0) -> list[object]:
    return list(range(start, start + count))


def where(dataset: Dataset, **options) -> dict[tuple[str, int], str]:
    """(content, class) -> split. Fails when two copies are in different splits."""
    parts = split(dataset, **options)
    found: dict[tuple[str, int], str] = {}
    for name, part in (("train", parts.train), ("val", parts.val)):
        for content, label in zip(part.hashes, part.labels, strict=True):
            assert found.setdefault((content, int(label)), name) == name
    return found


contents = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=20), min_size=1, max_size=5).map(
    lambda classes: {str(c): [f"{c}-{content}" for content in members] for c, members in enumerate(classes)}
)
quick = settings(deadline=None, database=None, max_examples=50)


def test_given_splits_are_kept_by_name():
    dataset = photos({"a": many(3), "b": many(3, 10)}, ["test", "train", "val", "val", "test", "train"])
    parts = split(dataset)
    assert (parts.train.paths, parts.val.paths, parts.test.paths) == (
        ("1.jpg", "5.jpg"),
        ("2.jpg", "3.jpg"),
        ("0.jpg", "4.jpg"),
    )
    assert parts.given
    assert (parts.eval_split, parts.eval_photos) == ("test", parts.test)
    assert parts.train.classes == parts.val.classes == ("a", "b")


@pytest.mark.parametrize(("second", "test_is_given"), [("val", False), ("test", True)])
def test_one_given_split_is_what_is_judged_on(second, test_is_given):
    parts = split(photos({"a": many(2), "b": many(2, 10)}, ["train", second] * 2))
    assert (parts.eval_split, parts.eval_photos.paths) == (second, ("1.jpg", "3.jpg"))
    assert parts.train.paths == ("0.jpg", "2.jpg")
    assert (parts.test is not None) is test_is_given
    assert parts.given


@pytest.mark.parametrize("name", ["", "train"])
def test_a_folder_without_val_is_split_by_us(name):
    parts = split(photos({"a": many(10), "b": many(5, 10)}, [name] * 15))
    assert not parts.given
    assert parts.test is None
    assert parts.eval_split == "val"
    assert parts.val.counts == {"a": 2, "b": 1}
    assert parts.train.counts == {"a": 8, "b": 4}


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(10, 0.2, 2), (10, 0.25, 2), (100, 0.25, 25), (2, 0.2, 1), (3, 0.01, 1), (4, 0.99, 3), (1, 0.5, 0), (10, 0, 1)],
)
def test_each_class_gives_its_share_and_at_least_one_on_either_side(count, fraction, expected):
    parts = split(photos({"a": many(count), "b": many(50, 500)}), val_fraction=fraction)
    assert parts.val.counts["a"] == expected
    assert parts.train.counts["a"] == count - expected


@given(contents, st.integers(0, 3), st.floats(0, 1))
@quick
def test_every_photo_is_in_one_split_and_every_class_is_learned(contents, seed, fraction):
    dataset = photos(contents)
    if all(len(set(members)) == 1 for members in contents.values()):
        with pytest.raises(DataError, match="leaves no photos to judge"):
            split(dataset)
        return
    parts = split(dataset, val_fraction=fraction, seed=seed)
    assert sorted(parts.train.paths + parts.val.paths) == sorted(dataset.paths)
    assert min(parts.train.counts.values()) >= 1
    assert not set(parts.train.hashes) & set(parts.val.hashes)
    for name, members in contents.items():
        assert (parts.val.counts[name] > 0) is (len(set(members)) > 1)


@given(contents.filter(lambda c: any(len(set(m)) > 1 for m in c.values())), st.randoms(use_true_random=False))
@quick
def test_names_and_order_do_not_matter(contents, rng):
    order = list(range(sum(map(len, contents.values()))))
    rng.shuffle(order)
    assert where(photos(contents)) == where(photos(contents, order=order))


def test_other_photos_of_other_classes_do_not_matter():
    alone = where(photos({"a": many(20)}))
    assert where(photos({"a": many(20), "b": many(7, 50)})).items() >= alone.items()


def test_most_photos_stay_when_a_photo_is_added():
    before, after = where(photos({"a": many(50)})), where(photos({"a": many(51)}))
    assert sum(before[photo] != after[photo] for photo in before) <= 1


def test_the_seed_decides():
    dataset = photos({"a": many(30), "b": many(30, 50)})
    assert where(dataset, seed=1) == where(dataset, seed=1)
    assert len({frozenset(where(dataset, seed=seed).items()) for seed in range(10)}) == 10


def test_copies_stay_on_one_side_and_count_once():
    parts = split(photos({"a": many(10) * 3}))
    assert (len(parts.train), len(parts.val)) == (24, 6)
    assert not set(parts.train.hashes) & set(parts.val.hashes)


def test_classes_that_cannot_be_learned_are_named():
    dataset = photos({"a": many(2), "b": many(1, 10), "c": many(1, 20)}, ["train", "val", "val", "test"])
    with pytest.raises(DataError, match="photos has no readable training photos of 'b', 'c'"):
        split(dataset)


def test_nothing_to_judge_on_is_refused_with_the_counts():
    with pytest.raises(DataError, match=r"leaves no photos to judge the model on.*{'a': 1, 'b': 1}"):
        split(photos({"a": [1], "b": [2]}))


@given(contents, st.integers(2, 6), st.integers(0, 3))
@quick
def test_folds_are_stratified_by_photo(contents, num_folds, seed):
    dataset = photos(contents)
    folds = fold_ids(dataset.labels, dataset.hashes, num_folds, seed)
    assert (folds.shape, folds.dtype) == ((len(dataset),), np.int64)
    of_content = {content: set() for content in dataset.hashes}
    for content, fold in zip(dataset.hashes, folds, strict=True):
        of_content[content].add(int(fold))
    assert {len(found) for found in of_content.values()} == {1}
    for label in range(len(contents)):
        members = {content for content, y in zip(dataset.hashes, dataset.labels, strict=True) if y == label}
        counts = Counter(fold for content in members for fold in of_content[content])
        if len(members) == 1:
            assert set(counts) == {-1}
        else:
            sizes = [counts[fold] for fold in range(num_folds)]
            assert sum(sizes) == len(members)
            assert max(sizes) - min(sizes) <= 1


def test_folds_of_many_small_classes_are_of_equal_size():
    dataset = photos({str(c): [f"{c}-{i}" for i in range(2)] for c in range(25)})
    assert np.bincount(fold_ids(dataset.labels, dataset.hashes)).tolist() == [10] * 5


@given(contents, st.randoms(use_true_random=False))
@quick
def test_folds_do_not_depend_on_the_order(contents, rng):
    order = list(range(sum(map(len, contents.values()))))
    rng.shuffle(order)
    plain, permuted = photos(contents), photos(contents, order=order)
    folds = fold_ids(plain.labels, plain.hashes)
    assert fold_ids(permuted.labels, permuted.hashes).tolist() == folds[order].tolist()


def test_folds_depend_on_the_seed():
    dataset = photos({"a": many(40)})
    first, other = (fold_ids(dataset.labels, dataset.hashes, seed=seed) for seed in (0, 1))
    assert first.tolist() != other.tolist()


def parts_of(values):
    """Indices by value."""
    return {frozenset(i for i, other in enumerate(values) if other == value) for value in values}


@pytest.mark.parametrize("seed", range(20))
def test_copies_under_two_labels_and_across_groups_stay_on_one_side(seed):
    rng = np.random.default_rng(seed)
    dataset = photos({"a": rng.integers(0, 90, 20).tolist(), "b": rng.integers(0, 90, 20).tolist()})
    for one in (dataset, replace(dataset, groups=tuple(f"group {g}" for g in rng.integers(0, 60, 40)))):
        parts = split(one, seed=seed)
        assert not set(parts.train.hashes) & set(parts.val.hashes)
        assert not set(parts.train.groups) & set(parts.val.groups)
        folds = folds_of(one, 4, seed)
        for names in (one.hashes, one.groups):
            for own in parts_of(names):
                assert len({int(folds[i]) for i in own}) == 1
        assert len(parts.val) >= 2
    chain = replace(dataset, groups=("all",) * len(dataset))
    with pytest.raises(DataError, match=r"leaves no photos to judge.*Photos of a group, and copies, are never parted"):
        split(chain, seed=seed)


@pytest.mark.parametrize(("size", "fraction"), [(4, 0.4), (4, 0.1), (4, 0.3), (1, 0.4), (2, 0.2), (5, 0.5)])
def test_groups_come_as_near_to_the_share_as_they_allow(size, fraction):
    """Ten groups of a size in each of two classes."""
    dataset = photos({"a": many(10 * size), "b": many(10 * size, 500)})
    grouped = replace(dataset, groups=tuple(f"{dataset.labels[i]} {i % 10}" for i in range(len(dataset))))
    parts = split(grouped, val_fraction=fraction)
    assert parts.val.counts == dict.fromkeys("ab", round(10 * fraction) * size)


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_unequal_groups_is_clearly_nearer(seed):
    rng = np.random.default_rng(seed)
    units, fraction = [{0: int(size)} for size in rng.integers(1, 9, 8)], float(rng.choice([0.1, 0.2, 0.4]))
    wanted = max(1.0, fraction * sum(unit[0] for unit in units))
    distance = [
        abs(sum(units[i][0] for i in chosen) - wanted) for k in range(1, 8) for chosen in combinations(range(8), k)
    ]
    assert abs(sum(units[i][0] for i in draw_units(units, fraction)) - wanted) <= min(distance) + 1e-6


def test_names_of_classes_change_no_fold():
    dataset = photos({"a": many(7), "b": many(9, 50), "c": many(4, 100)})
    other = replace(dataset, labels=np.array([2, 0, 1])[dataset.labels])
    assert fold_ids(dataset.labels, dataset.hashes).tolist() == fold_ids(other.labels, other.hashes).tolist()
    assert where(dataset).keys() != where(other).keys()
    assert sorted(split(dataset).val.hashes) == sorted(split(other).val.hashes)
