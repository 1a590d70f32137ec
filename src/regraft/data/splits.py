"""Which photos are learned from, and which are held out to evaluate the model.

A photo's place depends on its content, its class and the seed alone: not on its name, nor on the order of the files.
Copies of one photo stay on one side, also under two labels, and so do photos of one group.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from regraft.core.errors import ConfigError, DataError, MissingExtra
from regraft.data.drawing import Unit, draw_units
from regraft.data.scan import Dataset
from regraft.data.units import drawn_at, units_of


@dataclass(frozen=True)
class Splits:
    """The photos that are learned from, and those that the model is evaluated on.

    Attributes:
        train: What is learned from.
        val: What the model is evaluated on.
        test: What it is evaluated on instead, where it was given; else None.
        given: Whether the folder was split by its owner.
    """

    train: Dataset
    val: Dataset
    test: Dataset | None
    given: bool

    @property
    def eval_split(self) -> str:
        """Name of the split that the reported accuracy belongs to: "test" where it was given, else "val"."""
        return "val" if self.test is None else "test"

    @property
    def eval_photos(self) -> Dataset:
        """Photos of that split."""
        return self.val if self.test is None else self.test


def split(dataset: Dataset, *, val_fraction: float = 0.2, seed: int = 0) -> Splits:
    """Split a data set as its folders do, or else by drawing: `val_fraction` of each class, at least one photo of each.

    A class with a single photo, or whose photos all have to stay together, is only learned from.

    Args:
        dataset: Photos, with the names of their splits or without.
        val_fraction: 0..1, share of each class to hold out where the folder has neither val nor test.
        seed: Of the draw.

    Raises:
        DataError: A class has no photo to learn from, or none is left to evaluate the model on.
    """
    by_name = {name: [i for i, s in enumerate(dataset.splits) if s == name] for name in set(dataset.splits)}
    pool = by_name.get("train") or by_name.get("") or []
    given_val = by_name.get("val")
    if given_val is None and "test" not in by_name:
        chosen = set(held_out(dataset, pool, val_fraction, seed))
        val, train = [i for i in pool if i in chosen], [i for i in pool if i not in chosen]
    else:
        val, train = given_val or [], pool
    test = dataset.subset(by_name["test"]) if by_name.get("test") else None
    splits = Splits(dataset.subset(train), dataset.subset(val), test, given=given_val is not None or test is not None)
    _check(dataset, splits)
    return splits


def given_splits(dataset: Dataset, *, given: bool) -> Splits:
    """Return the splits of a data set in which every photo has one.

    Args:
        dataset: Photos of train, val and test.
        given: Whether their owner has split them.

    Raises:
        DataError: A class has no photo to learn from, or none is left to evaluate the model on.
    """
    train, val, test = (
        dataset.subset(i for i, side in enumerate(dataset.splits) if side == name) for name in ("train", "val", "test")
    )
    splits = Splits(train, val, test if len(test) else None, given)
    _check(dataset, splits)
    return splits


def held_out(dataset: Dataset, pool: Sequence[int], fraction: float, seed: int) -> list[int]:
    """Draw photos to hold out for evaluation: whole units, as near to a share of each class as they allow.

    Args:
        dataset: All photos.
        pool: Indices of the photos to draw from.
        fraction: 0..1, share of each class to hold out.
        seed: Of the draw.

    Returns:
        Indices out of `pool`, in its order.
    """
    part = dataset.subset(pool)
    names = units_of(part.hashes, part.groups)
    contents_of: dict[str, set[tuple[int, str]]] = {}
    for name, label, content in zip(names, part.labels, part.hashes, strict=True):
        contents_of.setdefault(name, set()).add((int(label), content))
    order = sorted(contents_of, key=lambda name: drawn_at(seed, name))
    chosen = draw_units([_counted(contents_of[name]) for name in order], fraction)
    kept = {order[number] for number in chosen}
    return [i for i, name in zip(pool, names, strict=True) if name in kept]


def _counted(photos: Iterable[tuple[int, str]]) -> Unit:
    """Count the different photos of each class."""
    counts: Unit = {}
    for label, _ in photos:
        counts[label] = counts.get(label, 0) + 1
    return counts


def fold_ids(
    labels: np.ndarray, hashes: Sequence[str], num_folds: int = 5, seed: int = 0, groups: Sequence[str] = ()
) -> np.ndarray:
    """Assign photos to stratified folds for cross-validation.

    Args:
        labels: `(N,)` int64.
        hashes: N content hashes.
        num_folds: How many folds.
        seed: Of the draw.
        groups: N names of what is not to be parted, or none.

    Returns:
        `(N,)` int64 in 0..num_folds-1, the fold that evaluates a photo. The only photo, or the only group, of a class
        gets -1: always learned from, never evaluated on.

    Raises:
        MissingExtra: There are groups, and scikit-learn is not installed.
    """
    units = units_of(hashes, groups)
    if groups:
        return _grouped_fold_ids(labels, units, num_folds, seed)
    fold: dict[str, int] = {}
    offset = 0  # small classes are dealt on where the last one stopped, so that folds stay of equal size
    place = {name: drawn_at(seed, name) for name in units}
    members = [
        sorted({units[i] for i in np.flatnonzero(labels == c)}, key=place.__getitem__) for c in np.unique(labels)
    ]
    only = {of_class[0] for of_class in members if len(of_class) == 1}
    for of_class in sorted(members, key=lambda of_class: place[of_class[0]]):  # not in the order of names
        new = [name for name in of_class if name not in fold and name not in only]
        fold.update({name: (rank + offset) % num_folds for rank, name in enumerate(new)})
        offset += len(new)
    return np.array([fold.get(name, -1) for name in units], np.int64)


def folds_of(dataset: Dataset, num_folds: int, seed: int) -> np.ndarray:
    """Assign a data set's photos to folds as `fold_ids` does, by whole groups where it has them.

    Returns:
        `(N,)` int64 in 0..num_folds-1, or -1.

    Raises:
        MissingExtra: There are groups, and scikit-learn is not installed.
    """
    return fold_ids(dataset.labels, dataset.hashes, num_folds, seed, dataset.groups)


def grouped(dataset: Dataset, pattern: str) -> Dataset:
    """Group photos by what a regular expression finds in their paths.

    Args:
        dataset: Photos with paths such as `sick/patient7/1.png`, relative to the data set's folder.
        pattern: Its first bracket, or all that it finds, is the group's name. A photo in which it finds nothing
            stays in its group, or stands for itself.

    Returns:
        The same photos with groups, and a note that says how many.

    Raises:
        ConfigError: The pattern is no regular expression, or finds nothing at all.
    """
    try:
        matches = [re.search(pattern, path) for path in dataset.paths]
    except re.error as error:
        raise ConfigError(f"--group-by {pattern!r} is no regular expression: {error}.") from error
    if not any(matches):
        raise ConfigError(f"--group-by {pattern!r} finds nothing in any path, such as {dataset.paths[0]!r}.")
    groups = tuple(
        f"={match[match.re.groups and 1]}" if match else alone
        for match, alone in zip(matches, dataset.groups or dataset.hashes, strict=True)
    )
    example, path = next(
        (group, path) for group, match, path in zip(groups, matches, dataset.paths, strict=True) if match
    )
    note = (
        f"{len(set(groups))} groups by {pattern!r}, such as {example[1:]!r} of {path}; photos of one stay on one side"
    )
    return replace(dataset, groups=groups, notes=(*dataset.notes, note))


def _grouped_fold_ids(labels: np.ndarray, groups: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """Assign whole groups to scikit-learn's stratified folds; groups that a class cannot do without are in none."""
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise MissingExtra("scikit-learn", "sklearn") from error

    names = np.array(groups)
    of_classes = [np.unique(names[labels == label]) for label in np.unique(labels)]
    only = {of_class[0] for of_class in of_classes if len(of_class) == 1}
    free = np.flatnonzero([name not in only for name in groups])
    folds = np.full(len(labels), -1, dtype=np.int64)
    count = min(num_folds, len(np.unique(names[free])))
    if count >= 2:
        free = free[np.argsort(names[free], kind="stable")]
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        with warnings.catch_warnings(action="ignore"):  # classes with few photos are nothing to warn of
            for number, (_, inside) in enumerate(splitter.split(free, labels[free], names[free])):
                folds[free[inside]] = number
    return folds


def _check(dataset: Dataset, splits: Splits) -> None:
    if missing := [name for name, count in splits.train.counts.items() if count == 0]:
        raise DataError(
            f"{dataset.root} has no readable training photos of {', '.join(map(repr, missing))}. "
            "Expected at least one of each class. Add some, or remove the class from the other splits."
        )
    if len(splits.eval_photos) == 0:
        why = " Photos of a group, and copies, are never parted." if dataset.groups else ""
        raise DataError(
            f"{dataset.root} leaves no photos to judge the model on. Expected two or more photos of some class; "
            f"found {dataset.counts}.{why} Add photos."
        )
