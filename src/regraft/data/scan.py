"""A folder of photos to a Dataset: what is there, under which class, and what had to be left out and why.

Every file found is either used, with its own content and label, or quarantined with a reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from regraft.core.config import AS_FOUND, FolderOptions
from regraft.core.errors import DataError, nearest
from regraft.core.files import csv_bytes, sha256_bytes
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import num_cores
from regraft.data.class_names import refuse_twins, refuse_unwritable
from regraft.data.decode import CHECKED_AT, Unreadable, decode
from regraft.data.folder_entries import natural_key
from regraft.data.folder_layout import LabelledFile, Listing, Quarantined
from regraft.data.links import LEADS_OUT
from regraft.data.listings import listed
from regraft.data.remote import fetched
from regraft.data.sources import read_bytes, read_head

T = TypeVar("T")
WAITING = 10_000  # photos that wait for a thread at a time: a million of them would take a gigabyte


@dataclass(frozen=True, slots=True)
class Labelling:
    """Where a label comes from.

    Attributes:
        by: "folder", "list" or "relabel"; or the name of the person who labelled the photo in a sitting.
        at: When it was first recorded, as ISO 8601 in UTC; "" for a label that no run has recorded yet.
        guess: What a model took the photo for when it was labelled in a sitting; "" for nothing.
    """

    by: str
    at: str = ""
    guess: str = ""


@dataclass(frozen=True)
class Dataset:
    """Photos on disk with their classes; holds no pixels.

    Attributes:
        root: The folder.
        paths: N file paths relative to it.
        labels: `(N,)` int64, index into `classes`.
        classes: Names, in natural order (2 before 10).
        splits: N names among "train", "val", "test"; "" where the folder is not split.
        hashes: N SHA-256 of the files' contents, hexadecimal.
        quarantine: Files found and not used.
        notes: Sentences about what else was seen.
        groups: N names of what a photo belongs with, such as a patient, and is never parted from; () where each photo
            stands for itself.
        labelled: N origins of the labels; () where they are not known.
        list_file: The list that named the photos; None where folders did.
    """

    root: Path
    paths: tuple[str, ...] = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    splits: tuple[str, ...] = field(repr=False)
    hashes: tuple[str, ...] = field(repr=False)
    quarantine: tuple[Quarantined, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    groups: tuple[str, ...] = field(default=(), repr=False)
    labelled: tuple[Labelling, ...] = field(default=(), repr=False)
    list_file: Path | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_found(self) -> int:
        """Number of files found: used and quarantined."""
        return len(self.paths) + len(self.quarantine)

    @property
    def counts(self) -> dict[str, int]:
        """Number of photos used of each class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """Return the data set with only some of the photos, in the given order; its classes stay.

        Args:
            indices: Of the photos to keep.
        """
        chosen = list(indices)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=self.labels[chosen],
            splits=tuple(self.splits[i] for i in chosen),
            hashes=tuple(self.hashes[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen) if self.groups else (),
            labelled=tuple(self.labelled[i] for i in chosen) if self.labelled else (),
        )

    def in_order_of_content(self) -> "Dataset":
        """Return the data set in an order that does not depend on where its photos lie, nor on their names."""
        return self.subset(sorted(range(len(self)), key=lambda i: (self.hashes[i], self.labels[i], self.paths[i])))

    def without(self, reasons: Mapping[int, str]) -> "Dataset":
        """Return the data set with some photos moved to the quarantine.

        Args:
            reasons: Why each of these photos is not used, by index.
        """
        moved = tuple(Quarantined(self.paths[i], reason) for i, reason in sorted(reasons.items()))
        kept = self.subset(i for i in range(len(self)) if i not in reasons)
        return replace(kept, quarantine=tuple(sorted((*self.quarantine, *moved), key=lambda q: q.path)))

    def read(self, index: int) -> bytes:
        """Read the content of a photo.

        Raises:
            DataError: It is no longer what was scanned.
            Unreadable: It is gone, or cannot be read.
        """
        path = self.root / self.paths[index]
        data = read_bytes(path)
        if sha256_bytes(data) != self.hashes[index]:
            raise DataError(f"{path} changed while it was being used. Run the command again when nothing writes to it.")
        return data

    def head(self, index: int, size: int) -> bytes:
        """Read the first `size` bytes of a photo's file, or fewer where it is shorter.

        Raises:
            Unreadable: It is gone, or cannot be read.
        """
        return read_head(self.root / self.paths[index], size)

    def quarantine_csv(self) -> bytes:
        """Write the files found and not used, with the reason, as a CSV file."""
        return csv_bytes(("path", "reason"), [(q.path, q.reason) for q in self.quarantine])

    def _repr_html_(self) -> str:
        """Show a table of classes and counts in a notebook."""
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in self.counts.items())
        seen = f"{len(self)} photos used of {self.num_found} found in {escape(str(self.root))}"
        return f"<table><caption>{seen}</caption><tr><th>class</th><th>photos</th></tr>{rows}</table>"

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft scan --json` prints of the data set."""
        return {
            "classes": self.counts,
            "found": self.num_found,
            "used": len(self),
            "quarantined": [{"path": q.path, "reason": q.reason} for q in self.quarantine],
            "notes": list(self.notes),
        }


def scan(
    folder: str | Path, *, min_classes: int = 2, options: FolderOptions = AS_FOUND, progress: Progress = QUIET
) -> Dataset:
    """Read a folder and try every file in it.

    Args:
        folder: `folder/<class>/<image>`, or `folder/train/<class>/<image>` with `val` (or `valid`, `validation`,
            `dev`) and optionally `test`, or a list of photos (`data.list_manifest`).
        min_classes: How many there have to be.
        options: How folders in class folders, and links, are read.
        progress: Shows how far it is.

    Returns:
        Every file found, used or quarantined with a reason.

    Raises:
        DataError: There is no such folder, it holds no photos or too few classes, a split has a class that `train`
            lacks, or it can be read in more than one way.
    """
    dataset = list_photos(folder, min_classes=min_classes, options=options, progress=progress)
    with progress.step("check photos", total=len(dataset)) as advance:
        check = partial(_why_unreadable, dataset)
        reasons = dict(enumerate(map_photos(check, len(dataset), advance)))
    return without_empty_classes(dataset.without({i: reason for i, reason in reasons.items() if reason}), min_classes)


def list_photos(
    folder: str | Path, *, min_classes: int = 2, options: FolderOptions = AS_FOUND, progress: Progress = QUIET
) -> Dataset:
    """Read a folder as `scan` does, but read the files only to hash them: damaged photos are still in.

    For callers that decode the photos next.

    Args:
        folder: As for `scan`.
        min_classes: How many there have to be.
        options: How folders in class folders, and links, are read.
        progress: Shows how far it is.

    Returns:
        Every file found, used or quarantined with a reason.

    Raises:
        DataError: As for `scan`.
    """
    place = fetched(Path(folder).expanduser(), progress)
    with progress.step("list photos"):
        listing = listed(place, options)
    files = listing.files
    classes = _class_map(listing)
    number = {name: i for i, name in enumerate(classes)}
    with progress.step("hash photos", total=len(files)) as advance:
        hashes = list(map_photos(partial(_hash_or_reason, listing), len(files), advance))
    dataset = Dataset(
        root=listing.root,
        paths=tuple(one.path for one in files),
        labels=np.array([number[one.label] for one in files], dtype=np.int64),
        classes=tuple(classes),
        splits=tuple(one.split for one in files),
        hashes=tuple(hashed for hashed, _ in hashes),
        quarantine=tuple(listing.quarantine),
        notes=tuple(listing.notes),
        groups=tuple(one.group or content for one, (content, _) in zip(files, hashes, strict=True))
        if any(one.group for one in files)
        else (),
        labelled=(Labelling(listing.labelled_by),) * len(files),
        list_file=listing.list_file,
    )
    return without_empty_classes(
        dataset.without({i: reason for i, (_, reason) in enumerate(hashes) if reason}), min_classes
    )


def unlabelled(paths: Sequence[Path], progress: Progress = QUIET) -> Dataset:
    """Make a data set of photos that have no labels: all are of one class without a name.

    Args:
        paths: Of their files.
        progress: Shows how far it is.

    Returns:
        The photos, their content hashed but not decoded; those that cannot be read are in the quarantine.
    """
    listing = Listing(Path(), files=[LabelledFile("", "", str(path)) for path in paths])
    with progress.step("hash photos", total=len(paths)) as advance:
        hashes = list(map_photos(partial(_hash_or_reason, listing), len(paths), advance))
    dataset = Dataset(
        root=Path(),
        paths=tuple(map(str, paths)),
        labels=np.zeros(len(paths), np.int64),
        classes=("",),
        splits=("",) * len(paths),
        hashes=tuple(hashed for hashed, _ in hashes),
    )
    return dataset.without({i: reason for i, (_, reason) in enumerate(hashes) if reason})


def without_empty_classes(dataset: Dataset, min_classes: int = 2) -> Dataset:
    """Return the data set without classes that have no photo, if enough is left.

    Args:
        dataset: Photos, perhaps after some were left out.
        min_classes: How many classes with photos there have to be.

    Raises:
        DataError: It has no photos, or too few classes.
    """
    empty = [name for name, count in dataset.counts.items() if count == 0]
    if len(dataset.classes) - len(empty) >= min_classes:
        return _without_classes(dataset, empty) if empty else dataset
    seen = f"{dataset.num_found} files, {len(dataset)} of them readable photos"
    seen += "".join(
        f"; the first: {q.path}: {q.reason}" for q in dataset.quarantine[:1] if not len(dataset) or dataset.list_file
    )
    if len(dataset) == 0:
        raise DataError(f"{_place(dataset)} has no readable photos. {_expected(dataset, seen)}")
    (only,) = [name for name in dataset.classes if name not in empty]
    has = f"{_place(dataset)} has photos of one class only, {only!r}. Expected two classes or more; found {seen}. "
    raise DataError(has + ("List" if dataset.list_file else "Add a folder with") + " photos of something else.")


def _place(dataset: Dataset) -> Path:
    """Return what the user named: a folder or a list."""
    return dataset.list_file or dataset.root


def _expected(dataset: Dataset, actual: str) -> str:
    """Say what was expected instead of no photos, what was found, and what to do."""
    if any(q.reason == LEADS_OUT for q in dataset.quarantine):
        return f"Found {actual}. Follow the links with --follow-links."
    if dataset.list_file:
        return f"Expected paths relative to {dataset.root.absolute()}; found {actual}. Put the paths right."
    if dataset.root.is_file():
        return f"Expected photos with their classes in it; found {actual}."
    where = f"{dataset.root}/<class>/<image>"
    return f"Expected {where}; found {actual}. Put the photos of each class in a folder of their own."


def map_photos(function: Callable[[int], T], count: int, advance: Callable[[int], None]) -> Iterator[T]:
    """Call `function(index)` for every photo, on all cores: Pillow and hashing release the interpreter.

    Args:
        function: Gets an index, 0 to `count - 1`.
        count: Number of photos.
        advance: Called with 1 after each photo.

    Yields:
        Results, in the order of the indices.
    """
    with ThreadPoolExecutor(num_cores()) as pool:
        for start in range(0, count, WAITING):
            for result in pool.map(function, range(start, min(start + WAITING, count))):
                advance(1)
                yield result


def _class_map(listing: Listing) -> list[str]:
    """Classes by name, from `train` where there are splits. The others are matched to it by name."""
    root, notes = listing.list_file or listing.root, listing.notes
    refuse_unwritable(root, {one.label: None for one in listing.files}.keys() - set(listing.options.known_classes))
    refuse_twins(root, "classes", {one.label: None for one in listing.files if one.split in ("", "train")})
    per_split = {name: Counter(one.label for one in listing.files if one.split == name) for name in listing.splits}
    classes = sorted(per_split.get("train") or per_split.get("") or (), key=natural_key)
    for split in sorted(per_split.keys() - {"", "train"}):
        for unknown in sorted(per_split[split].keys() - set(classes)):
            hint = nearest(unknown, classes) or " Expected one of: " + ", ".join(classes) + "."
            raise DataError(
                f"{root} has {per_split[split][unknown]} {split} photos of class {unknown!r}, which train does not "
                f"have.{hint} Rename it, or add training photos of that class."
            )
        if not per_split[split]:
            notes.append(f"{split} has no photos, as if it were not there")
        elif missing := [name for name in classes if name not in per_split[split]]:
            scored = f"{len(classes) - len(missing)} of {len(classes)} classes"
            notes.append(f"{split} has no photos of {', '.join(map(repr, missing))}; scored on {scored}")
    return classes


def _without_classes(dataset: Dataset, empty: list[str]) -> Dataset:
    """Drop classes that have no readable photo at all, and say so."""
    classes = tuple(name for name in dataset.classes if name not in empty)
    labels = np.array([classes.index(dataset.classes[label]) for label in dataset.labels], dtype=np.int64)
    note = f"left out, because no photo of it can be read: {', '.join(map(repr, empty))}"
    return replace(dataset, classes=classes, labels=labels, notes=(*dataset.notes, note))


def _hash_or_reason(listing: Listing, index: int) -> tuple[str, str | None]:
    try:
        return sha256_bytes(read_bytes(listing.root / listing.files[index].path)), None
    except Unreadable as error:
        return "", str(error)


def _why_unreadable(dataset: Dataset, index: int) -> str | None:
    try:
        decode(dataset.read(index), CHECKED_AT)
    except Unreadable as error:
        return str(error)
    return None
