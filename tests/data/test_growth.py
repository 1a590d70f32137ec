"""Whoever has a side keeps it, copies follow, and new photos are drawn for by their own content."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_splits import many, photos

from regraft.core.errors import DataError
from regraft.data.growth import split_grown, with_known_sides
from regraft.data.merge import merged
from regraft.data.splits import split

quick = settings(deadline=None, database=None, max_examples=50)


def sides_of(splits):
    parts = (("train", splits.train), ("val", splits.val), ("test", splits.test))
    return {(content, name) for name, part in parts if part is not None for content in part.hashes}


def kept(splits, dataset):
    """The data set as a run's record has it."""
    side = dict(sides_of(splits))
    return replace(dataset, splits=tuple(side[content] for content in dataset.hashes))


def updated(first, *more, given=False, eval_split="val", fraction=0.2, seed=0):
    """Splits after each of some data sets has been added in turn."""
    dataset = kept(split(first, val_fraction=fraction, seed=seed), first)
    for number, part in enumerate(more):
        part = replace(part, paths=tuple(f"{number} {path}" for path in part.paths))
        sides = dict(zip(dataset.hashes, dataset.splits, strict=True))
        whole = merged([dataset, with_known_sides(part, sides, eval_split)])
        splits = split_grown(whole, val_fraction=fraction, seed=seed, given=given)
        dataset = kept(splits, whole)
    return splits


def both(one, other):
    """As if they had lain in one folder."""
    return photos({name: list(chain(one.get(name, ()), other.get(name, ()))) for name in sorted({*one, *other})})


numbers = st.lists(st.integers(0, 60), min_size=1, max_size=25)


@given(numbers, numbers, st.integers(0, 3), st.floats(0.05, 0.95))
@quick
def test_known_photos_stay_and_copies_follow(first, more, seed, fraction):
    first = photos({"a": first, "b": [f"b{i}" for i in range(5)]})
    before = sides_of(split(first, val_fraction=fraction, seed=seed))
    after = sides_of(updated(first, photos({"a": more, "b": more[:3]}), fraction=fraction, seed=seed))
    assert before <= after
    assert len(after) == len(dict(after))


@given(numbers, numbers, st.integers(0, 3))
@quick
def test_two_parts_of_known_classes_in_either_order_are_one(one, other, seed):
    first = photos({"a": many(12, 1000), "b": many(9, 2000)})
    a, b = {"a": one, "b": [f"b{i}" for i in one[::2]]}, {"a": other}
    at_once = sides_of(updated(first, both(a, b), seed=seed))
    assert sides_of(updated(first, photos(a), photos(b), seed=seed)) == at_once
    assert sides_of(updated(first, photos(b), photos(a), seed=seed)) == at_once


def test_of_many_new_photos_the_share_that_was_asked_for_judges():
    first = photos({"a": many(10), "b": many(10, 100)})
    splits = updated(first, photos({"a": many(4000, 1000)}), fraction=0.3)
    assert len(splits.val) == pytest.approx(0.3 * 4020, abs=4 * np.sqrt(4000 * 0.3 * 0.7))


def test_a_new_class_is_drawn_for_as_in_a_first_training():
    first, more = {"a": many(10), "b": many(15, 100)}, {"c": many(9, 300)}
    assert sides_of(updated(photos(first), photos(more))) == sides_of(split(photos(first | more)))


def test_an_owners_splits_count_and_test_is_val_where_val_is_reported():
    more = photos({"a": many(3, 50)}, ["train", "val", "test"])
    splits = updated(photos({"a": many(10), "b": many(10, 100)}), more)
    assert [side for content, side in sides_of(splits) if content == more.hashes[2]] == ["val"]
    assert [side for content, side in sides_of(splits) if content == more.hashes[0]] == ["train"]
    assert with_known_sides(more, {}, "test").splits == ("train", "val", "test")


def test_what_was_learned_from_does_not_judge_though_an_owner_says_so():
    first = photos({"a": many(10), "b": many(10, 100)})
    before = dict(sides_of(split(first)))
    again = photos({"a": many(10)}, ["train", "val"] * 5)
    after = sides_of(updated(first, again))
    assert len(after) == len(before)
    assert after == before.items()


def test_a_class_that_would_only_judge_is_learned_from():
    dataset = photos({"a": many(4), "b": many(2, 10)}, ["train", "train", "val", "val", "val", "val"])
    splits = split_grown(dataset, val_fraction=0.2, seed=0, given=False)
    assert (splits.train.counts, splits.val.counts) == ({"a": 2, "b": 2}, {"a": 2, "b": 0})
    with pytest.raises(DataError, match="no readable training photos of 'b'"):
        split_grown(dataset, val_fraction=0.2, seed=0, given=True)
