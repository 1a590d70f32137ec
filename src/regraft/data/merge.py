"""Several folders of photos as one data set, and labels that somebody has put right."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from regraft.core.errors import DataError, nearest
from regraft.data.class_names import refuse_twins, refuse_unwritable
from regraft.data.folder_entries import natural_key
from regraft.data.folder_layout import Quarantined
from regraft.data.list_manifest import ListRow, read_rows
from regraft.data.scan import Dataset, Labelling
from regraft.data.splits import held_out


def joined(datasets: Sequence[Dataset], *, val_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Join data sets into one of all photos; its classes are those of all.

    Where some are split and others are not, a stratified part of the latter is held out, as if they were alone.

    Args:
        datasets: One or more. A file that several of them hold counts once.
        val_fraction: 0..1, share of each class to hold out of those that are not split.
        seed: Of the draw.

    Raises:
        DataError: Names of classes could be one class or two.
    """
    if any("train" in one.splits for one in datasets):
        eval_split = "test" if any("test" in one.splits for one in datasets) else "val"
        datasets = [one if "train" in one.splits else _split(one, eval_split, val_fraction, seed) for one in datasets]
    return merged(datasets)


def merged(datasets: Sequence[Dataset]) -> Dataset:
    """Join data sets into one of all photos, each in the split that it has.

    Args:
        datasets: One or more. Where a file is in several of them, the first counts.

    Returns:
        A data set whose classes are those of all, and whose paths begin at the folder that all have in common.

    Raises:
        DataError: Names of classes could be one class or two.
    """
    if len(datasets) == 1:
        return datasets[0]
    root = Path(os.path.commonpath([one.root.resolve() for one in datasets]))
    classes = sorted({name for one in datasets for name in one.classes}, key=natural_key)
    refuse_twins(" and ".join(str(one.list_file or one.root) for one in datasets), "classes", classes)
    places = {one.root: one.root.resolve().relative_to(root) for one in datasets}
    number = {name: i for i, name in enumerate(classes)}
    whole = replace(
        datasets[0],
        root=root,
        paths=tuple(str(places[one.root] / path) for one in datasets for path in one.paths),
        labels=np.array([number[one.classes[label]] for one in datasets for label in one.labels], np.int64),
        classes=tuple(classes),
        splits=tuple(chain.from_iterable(one.splits for one in datasets)),
        hashes=tuple(chain.from_iterable(one.hashes for one in datasets)),
        quarantine=(),
        notes=tuple(chain.from_iterable(one.notes for one in datasets)),
        groups=tuple(chain.from_iterable(one.groups or one.hashes for one in datasets))
        if any(one.groups for one in datasets)
        else (),
        labelled=tuple(chain.from_iterable(one.labelled or (Labelling("folder"),) * len(one) for one in datasets)),
        list_file=None,
    )
    first = {path: i for i, path in reversed(list(enumerate(whole.paths)))}
    unused = {str(places[one.root] / q.path): q.reason for one in reversed(datasets) for q in one.quarantine}
    quarantine = sorted((Quarantined(path, why) for path, why in unused.items() if path not in first), key=_by_path)
    return replace(whole.subset(sorted(first.values())), quarantine=tuple(quarantine))


def _by_path(one: Quarantined) -> str:
    return one.path


def relabelled(dataset: Dataset, file: Path, roots: Sequence[Path] = ()) -> Dataset:
    """Return the data set with the labels of a list of `path` and `label`.

    A label may be of a class that was not there before. Photos that the list does not name keep theirs.

    Args:
        dataset: The photos.
        file: The list.
        roots: Folders that the data set was joined from; paths are as in the data set, or relative to one of them.

    Raises:
        DataError: The list cannot be read in one way only, names a photo that is not there or that several of the
            folders hold, or has names of classes that are not UTF-8 or could be one class or two.
    """
    place = {path: i for i, path in enumerate(dataset.paths)}
    prefixes = [root.resolve().relative_to(dataset.root.resolve()) for root in (dataset.root, *roots)]
    labels = [dataset.classes[label] for label in dataset.labels]
    labelled = list(dataset.labelled or (Labelling("folder"),) * len(dataset))
    changed = 0
    for row in read_rows(file):
        index = _meant(row, file, place, prefixes)
        if labels[index] != row.label:
            changed, labelled[index] = changed + 1, Labelling("relabel")
        labels[index] = row.label
    classes = sorted(set(labels), key=natural_key)
    refuse_unwritable(file, classes)
    refuse_twins(f"{dataset.root} with the labels of {file}", "classes", classes)
    note = f"{changed} labels changed as {file.name} says"
    return replace(
        dataset,
        labels=np.array([classes.index(label) for label in labels], np.int64),
        classes=tuple(classes),
        notes=(*dataset.notes, note),
        labelled=tuple(labelled),
    )


def _meant(row: ListRow, file: Path, place: dict[str, int], prefixes: Sequence[Path]) -> int:
    """Which photo a row names. Raises DataError where there is none, or more than one."""
    indices = sorted({place[path] for prefix in prefixes if (path := str(prefix / row.path)) in place})
    if len(indices) == 1:
        return indices[0]
    if indices:
        raise DataError(
            f"{file} names {row.path} in line {row.line}, which {len(indices)} of the folders hold. "
            "Write its path from the folder that holds them all."
        )
    hint = nearest(row.path, place) or " Paths are as `regraft scan` prints them."
    raise DataError(f"{file} names {row.path} in line {row.line}, which the photos' folders do not hold.{hint}")


def _split(dataset: Dataset, eval_split: str, val_fraction: float, seed: int) -> Dataset:
    """Split a data set that was not split: a part of each class is held out as the split `eval_split`."""
    chosen = set(held_out(dataset, range(len(dataset)), val_fraction, seed))
    return replace(dataset, splits=tuple(eval_split if i in chosen else "train" for i in range(len(dataset))))
