"""Splits of a data set that grows: photos that have a split keep it, and only new photos are drawn for.

A photo's side is its split: train, val or test. A new photo of a class that was there is drawn for by its own content,
whatever comes with it: adding in two parts gives the sides of adding at once. A new class is drawn for as in a first
training.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from regraft.data.scan import Dataset
from regraft.data.splits import Splits, given_splits, held_out
from regraft.data.units import share_at, units_of


def with_known_sides(new: Dataset, sides: Mapping[str, str], eval_split: str) -> Dataset:
    """Give new photos the sides that they have already.

    Args:
        new: Photos that are to be added; where their owner has split them, that counts.
        sides: Content hash -> split of the photos that are there: a copy of one goes where it is.
        eval_split: The split that the reported accuracy belongs to. Where it is val, photos that the owner calls test
            are added to it.

    Returns:
        The same photos; those without a side have the split "".
    """
    given = ("val" if name == "test" and eval_split == "val" else name for name in new.splits)
    return replace(new, splits=tuple(sides.get(content, name) for content, name in zip(new.hashes, given, strict=True)))


def split_grown(dataset: Dataset, *, val_fraction: float, seed: int, given: bool) -> Splits:
    """Split a data set whose earlier photos have a side.

    Args:
        dataset: Photos; those with the split "" are drawn for.
        val_fraction: 0..1, share of the new photos that is held out for evaluation.
        seed: Of the draw.
        given: Whether the owner has split the first photos.

    Returns:
        Splits with every earlier photo on its side. Where nothing was given, a class without a photo to learn from gets
        back those that were held out.

    Raises:
        DataError: A class has no photo to learn from, or none is left to evaluate the model on.
    """
    sides = _drawn(dataset, val_fraction, seed)
    notes = dataset.notes
    if not given:
        learned = {label for label, side in zip(dataset.labels, sides, strict=True) if side == "train"}
        lacking = [int(label) for label in np.unique(dataset.labels) if label not in learned]
        sides = ["train" if label in lacking else side for label, side in zip(dataset.labels, sides, strict=True)]
        notes += tuple(f"all photos of {dataset.classes[label]!r} are learned from, none judges" for label in lacking)
    return given_splits(replace(dataset, splits=tuple(sides), notes=notes), given=given)


def _drawn(dataset: Dataset, val_fraction: float, seed: int) -> list[str]:
    """Return a side for every photo."""
    eval_split = "test" if "test" in dataset.splits else "val"
    units = units_of(dataset.hashes, dataset.groups)
    sides = list(dataset.splits)
    of_unit = _sides_of_units(units, sides)
    known = {label for label, side in zip(dataset.labels, sides, strict=True) if side}
    new = [i for i, side in enumerate(sides) if not side]
    fresh = {units[i] for i in new if units[i] not in of_unit and dataset.labels[i] not in known}
    of_unit |= {
        units[i]: eval_split if share_at(seed, units[i]) < val_fraction else "train"
        for i in new
        if units[i] not in of_unit and units[i] not in fresh
    }
    pool = [i for i in new if units[i] in fresh]
    kept = set(held_out(dataset, pool, val_fraction, seed))
    of_unit |= {units[i]: eval_split if i in kept else "train" for i in pool}
    return [side or of_unit[unit] for side, unit in zip(sides, units, strict=True)]


def _sides_of_units(units: tuple[str, ...], sides: list[str]) -> dict[str, str]:
    """Sides of the units that have a photo with a side; "train" where one of their photos is learned from."""
    known = [(unit, side) for unit, side in zip(units, sides, strict=True) if side]
    return dict(known) | {unit: side for unit, side in known if side == "train"}
