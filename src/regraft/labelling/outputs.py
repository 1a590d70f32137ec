"""What comes out of a sitting: a list of labels, class folders, and a data set to train on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regraft.backbones.features import Features
from regraft.core.errors import DataError
from regraft.core.files import csv_bytes
from regraft.core.ownership import write_output
from regraft.data.folder_entries import natural_key
from regraft.data.folder_layout import Quarantined
from regraft.data.scan import Dataset, Labelling
from regraft.data.sorting import sort_photos
from regraft.data.video_frames import group_of
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.labels import NEW, SET_ASIDE, UNSURE, Labels
from regraft.models.ood import fit_ood_detector

FEWEST_AUDITED = 20  # photos from which on a model is evaluated on those of the audit
COLUMNS = ("path", "label", "set_aside", "by", "at", "guess", "audit", "sha256")


@dataclass(frozen=True)
class LabelRow:
    """A file of the heap, and what is said of it.

    Attributes:
        file: Where it is.
        path: Relative to the heap's folder.
        sha256: Hash of its content.
        label: Its class; "" for none.
        is_set_aside: Whether it is no photo of this task.
        is_audit: Whether it was labelled for the audit.
        by: Who said so; "" where nobody did.
        at: When, as ISO 8601 in UTC.
        guess: What the model took it for before; "" for nothing.
        is_new: Whether it has no label, and looks unlike all photos that have one.
    """

    file: Path
    path: str
    sha256: str
    label: str
    is_set_aside: bool
    is_audit: bool
    by: str
    at: str
    guess: str
    is_new: bool


def label_rows(heap: Heap, contents: Contents, labels: Labels) -> list[LabelRow]:
    """Gather what is said of every file of a heap that was read; copies are said what their first is."""
    is_new = _unlike_labelled(contents, labels)
    rows = []
    for i, content in enumerate(contents.hashes):
        if not content:
            continue
        verdict = labels[content]
        label = labels.classes[verdict.label] if verdict is not None and verdict.label >= 0 else ""
        rows.append(
            LabelRow(
                file=heap.root / heap.paths[i],
                path=heap.paths[i],
                sha256=content,
                label=label,
                is_set_aside=verdict is not None and verdict.is_set_aside,
                is_audit=verdict is not None and verdict.is_audit,
                by="" if verdict is None else verdict.person,
                at="" if verdict is None else verdict.at,
                guess="" if verdict is None else verdict.guess,
                is_new=content in is_new,
            )
        )
    return rows


def write_csv(rows: Sequence[LabelRow], file: Path) -> None:
    """Write the labels as a CSV file, which spreadsheets and `regraft relabel` read.

    Raises:
        OutputError: It cannot be written, or a file that is not regraft's is there.
    """
    cells = [
        (
            row.path,
            row.label,
            "yes" if row.is_set_aside else "",
            row.by,
            row.at,
            row.guess,
            "yes" if row.is_audit else "",
            row.sha256,
        )
        for row in rows
        if row.label or row.is_set_aside
    ]
    write_output(file, csv_bytes(COLUMNS, cells))


def sort_into(rows: Sequence[LabelRow], out: Path) -> int:
    """Put the photos into a folder for each class, by links or copies. The photos themselves stay where they are.

    Class folders hold only what a person has said; photos without a label lie in `unsure`, those of them that are
    unlike all labelled ones in `new`, and what was set aside in `set-aside`.

    Args:
        rows: The photos.
        out: The folder of the class folders.

    Returns:
        How many photos it holds now.

    Raises:
        OutputError: It cannot be written.
    """
    return sort_photos([(row.file, _folder_of(row)) for row in rows], out)


def labelled_dataset(rows: Sequence[LabelRow], root: Path, unreadable: Sequence[Quarantined] = ()) -> Dataset:
    """Return the labelled photos as a data set to train on.

    Where enough photos were audited, and others have no label yet, those evaluate the model: the others were chosen by
    a model, and say too little or too much of photos like the rest. Else a part is drawn, as for any training.

    Args:
        rows: The photos.
        root: The heap's folder.
        unreadable: Files that could not be used.

    Raises:
        DataError: There are fewer than two classes with photos.
    """
    labelled = [row for row in rows if row.label]
    classes = tuple(sorted({row.label for row in labelled}, key=natural_key))
    if len(classes) < 2:
        raise DataError(
            f"{len(labelled)} photos are labelled, of {len(classes)} classes. Expected two. Label on, then train."
        )
    number = {name: i for i, name in enumerate(classes)}
    groups = [group_of(row.path) for row in labelled]
    return Dataset(
        root=root,
        paths=tuple(row.path.replace("/", os.sep) for row in labelled),
        labels=np.array([number[row.label] for row in labelled], np.int64),
        classes=classes,
        splits=_splits(rows, labelled),
        hashes=tuple(row.sha256 for row in labelled),
        quarantine=tuple(unreadable),
        groups=tuple(group or row.sha256 for group, row in zip(groups, labelled, strict=True)) if any(groups) else (),
        labelled=tuple(Labelling(row.by, row.at, row.guess) for row in labelled),
    )


def _splits(rows: Sequence[LabelRow], labelled: Sequence[LabelRow]) -> tuple[str, ...]:
    """Return the split of each labelled photo; "" where splits are to be drawn."""
    is_partial = any(not row.label and not row.is_set_aside for row in rows)
    audited = {row.sha256 for row in labelled if row.is_audit}
    learned = {row.label for row in labelled if not row.is_audit}
    if not is_partial or len(audited) < FEWEST_AUDITED or len(learned) < 2:
        return ("",) * len(labelled)
    return tuple("val" if row.is_audit and row.label in learned else "train" for row in labelled)


def _folder_of(row: LabelRow) -> str:
    if row.is_set_aside:
        return SET_ASIDE
    return row.label or (NEW if row.is_new else UNSURE)


def _unlike_labelled(contents: Contents, labels: Labels) -> set[str]:
    """Return the content hashes of photos without a label that look unlike all that have one."""
    ready = np.flatnonzero(contents.is_ready)
    verdicts = {int(i): labels[contents.hashes[i]] for i in ready}
    known = [i for i, one in verdicts.items() if one is not None and one.label >= 0]
    others = [i for i, one in verdicts.items() if one is None or (one.label < 0 and not one.is_set_aside)]
    if not known or not others:
        return set()
    hashes = tuple(contents.hashes[i] for i in known)
    detector = fit_ood_detector(Features(contents.features, np.zeros(len(known), np.int64), hashes, np.array(known)))
    if detector is None:
        return set()
    far = detector.novelty(contents.features[others]) > 1
    return {contents.hashes[i] for i, is_far in zip(others, far, strict=True) if is_far}
