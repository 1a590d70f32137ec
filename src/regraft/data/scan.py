"""A folder of photos to a Dataset: what is there, under which class, and what had to be left out and why.

Every file found is either used, with its own content and label, or quarantined with a reason.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from regraft.data.decode import Unreadable, decode, quiet_pillow, read_bytes
from regraft.ground.errors import DataError, nearest
from regraft.ground.files import sha256_bytes
from regraft.ground.progress import QUIET, Progress
from regraft.ground.runtime import num_cores

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
T = TypeVar("T")
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini", "lost+found"}


@dataclass(frozen=True)
class Quarantined:
    """A file that is not used. path: relative to the data set's root."""

    path: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Photos on disk with their classes; holds no pixels.

    root: the folder.  paths: N file paths relative to it.  labels: `(N,)` int64, index into `classes`.
    classes: names, in natural order (2 before 10).  splits: N names among "train", "val", "test"; "" where the folder
    is not split.  hashes: N SHA-256 of the files' contents, hexadecimal.  quarantine: files found and not used.
    notes: sentences about what else was seen.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    hashes: tuple[str, ...]
    quarantine: tuple[Quarantined, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_found(self) -> int:
        """Files found: used and quarantined."""
        return len(self.paths) + len(self.quarantine)

    @property
    def counts(self) -> dict[str, int]:
        """Number of photos used of each class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """The same classes with only some of the photos, in the given order."""
        chosen = list(indices)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=self.labels[chosen],
            splits=tuple(self.splits[i] for i in chosen),
            hashes=tuple(self.hashes[i] for i in chosen),
        )

    def without(self, reasons: Mapping[int, str]) -> "Dataset":
        """The data set with some photos, given by index, moved to the quarantine."""
        moved = tuple(Quarantined(self.paths[i], reason) for i, reason in sorted(reasons.items()))
        kept = self.subset(i for i in range(len(self)) if i not in reasons)
        return replace(kept, quarantine=tuple(sorted((*self.quarantine, *moved), key=lambda q: q.path)))

    def read(self, index: int) -> bytes:
        """Content of a photo. Raises DataError if it is no longer what was scanned, Unreadable if it is gone."""
        path = self.root / self.paths[index]
        data = read_bytes(path)
        if sha256_bytes(data) != self.hashes[index]:
            raise DataError(f"{path} changed while it was being used. Run the command again when nothing writes to it.")
        return data

    def to_json(self) -> dict[str, Any]:
        """As printed by `regraft scan --json`."""
        return {
            "classes": self.counts,
            "found": self.num_found,
            "used": len(self),
            "quarantined": [{"path": q.path, "reason": q.reason} for q in self.quarantine],
            "notes": list(self.notes),
        }


def scan(folder: str | Path, *, progress: Progress = QUIET) -> Dataset:
    """Read a folder and try every file in it.

    folder: `folder/<class>/<image>`, or `folder/train/<class>/<image>` with `val` (or `valid`, `validation`, `dev`)
    and optionally `test`.  Raises DataError when there is no such folder, when it holds no photos or only one class,
    when a split has a class that `train` lacks, or when it can be read in more than one way.
    """
    dataset = list_photos(folder, progress=progress)
    with progress.step("check photos", total=len(dataset)) as advance:
        check = partial(_why_unreadable, dataset)
        reasons = dict(enumerate(map_photos(check, len(dataset), advance)))
    return checked(dataset.without({i: reason for i, reason in reasons.items() if reason}))


def list_photos(folder: str | Path, *, min_classes: int = 2, progress: Progress = QUIET) -> Dataset:
    """Like `scan`, but reads the files only to hash them: damaged photos are still in. For callers that decode next."""
    root = _existing(Path(folder).expanduser())
    notes: list[str] = []
    quarantine: list[Quarantined] = []
    splits = _split_folders(root, notes, quarantine)
    found = [
        (split, label, path)
        for split, split_folder in splits
        for label, path in _labelled_files(split_folder, notes, quarantine, root)
    ]
    classes = _class_map(root, [split for split, _ in splits], found, notes)
    with progress.step("hash photos", total=len(found)) as advance:
        hashes = list(map_photos(partial(_hash_or_reason, [path for _, _, path in found]), len(found), advance))
    dataset = Dataset(
        root=root,
        paths=tuple(str(path.relative_to(root)) for _, _, path in found),
        labels=np.array([classes.index(label) for _, label, _ in found], dtype=np.int64),
        classes=tuple(classes),
        splits=tuple(split for split, _, _ in found),
        hashes=tuple(hashed for hashed, _ in hashes),
        quarantine=tuple(quarantine),
        notes=tuple(notes),
    )
    return checked(dataset.without({i: reason for i, (_, reason) in enumerate(hashes) if reason}), min_classes)


def checked(dataset: Dataset, min_classes: int = 2) -> Dataset:
    """The data set itself, without classes that have no photo, if enough is left. Raises DataError."""
    empty = [name for name, count in dataset.counts.items() if count == 0]
    if len(dataset.classes) - len(empty) >= min_classes:
        return _without_classes(dataset, empty) if empty else dataset
    seen = f"{dataset.num_found} files, {len(dataset)} of them readable photos"
    if len(dataset) == 0:
        first = dataset.quarantine[:1]
        example = "".join(f"; the first: {q.path}: {q.reason}" for q in first)
        raise DataError(
            f"{dataset.root} has no readable photos. Expected {dataset.root}/<class>/<image>; found {seen}{example}. "
            "Put the photos of each class in a folder of their own."
        )
    (only,) = [name for name in dataset.classes if name not in empty]
    raise DataError(
        f"{dataset.root} has photos of one class only, {only!r}. Expected two classes or more; found {seen}. "
        "Add a folder with photos of something else."
    )


def map_photos(function: Callable[[int], T], count: int, advance: Callable[[int], None]) -> Iterator[T]:
    """`function(index)` for every photo in order, on all cores: Pillow and hashing release the interpreter."""
    with quiet_pillow(), ThreadPoolExecutor(num_cores()) as pool:
        for result in pool.map(function, range(count)):
            advance(1)
            yield result


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorting key under which "2" comes before "10"; the name itself decides between "01" and "1"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts], name


def is_junk(name: str) -> bool:
    """Hidden files and folders, and what operating systems and editors leave behind."""
    return name.startswith(".") or name.lower() in JUNK or name.lower().endswith("~")


def _existing(root: Path) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"{root} is a file. Expected the folder that holds <class>/<image>. Name that folder.")
    siblings = [entry.name for entry in root.parent.iterdir() if entry.is_dir()] if root.parent.is_dir() else []
    hint = nearest(root.name, siblings) or f" Looked in {root.parent.absolute()}. Check the path."
    raise DataError(f"There is no folder {root}. Expected a folder that holds <class>/<image>.{hint}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"Cannot list {folder}: {reason}. Check its permissions.") from error


def _visible(folder: Path, notes: list[str]) -> list[os.DirEntry[str]]:
    entries = _entries(folder)
    junk = [entry.name for entry in entries if is_junk(entry.name)]
    if junk:
        notes.append(f"skipped in {folder}: {', '.join(junk)} (hidden or left by the system)")
    return [entry for entry in entries if not is_junk(entry.name)]


def _split_folders(root: Path, notes: list[str], quarantine: list[Quarantined]) -> list[tuple[str, Path]]:
    """`[("train", root/train), ...]`, or `[("", root)]` when the folder is not split."""
    folders = [entry for entry in _entries(root) if _is_folder(entry) and not is_junk(entry.name)]
    named = {entry.name: SPLIT_NAMES[entry.name.lower()] for entry in folders if entry.name.lower() in SPLIT_NAMES}
    only_splits = len(named) == len(folders) > 1  # then "train" is no class, even if it holds photos only
    if "train" not in named.values() or not (only_splits or _has_folders(root / _folder_of("train", named))):
        return [("", root)]
    _check_splits(root, [entry for entry in folders if entry.name in named], named)
    _set_aside([entry for entry in _visible(root, notes) if not _is_folder(entry)], quarantine, root)
    others = [entry.name for entry in folders if entry.name not in named]
    if others:
        notes.append(f"skipped in {root}: {', '.join(others)} (not a split: expected train, val and test)")
    return [(split, root / _folder_of(split, named)) for split in ("train", "val", "test") if split in named.values()]


def _check_splits(root: Path, folders: list[os.DirEntry[str]], named: Mapping[str, str]) -> None:
    for split in ("train", "val", "test"):
        same = [name for name, meaning in named.items() if meaning == split]
        if len(same) > 1:
            raise DataError(
                f"{root} has more than one {split} folder: {', '.join(same)}. Expected one. Merge them or rename one."
            )
    for entry in folders:
        if reason := _why_not_followed(entry, root):
            raise DataError(f"{entry.path} is {reason}. Expected a folder. Copy the photos to where the link is.")


def _folder_of(split: str, named: dict[str, str]) -> str:
    return next(name for name, meaning in named.items() if meaning == split)


def _has_folders(folder: Path) -> bool:
    return any(_is_folder(entry) and not is_junk(entry.name) for entry in _entries(folder))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A folder or a link to one. A link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _labelled_files(
    folder: Path, notes: list[str], quarantine: list[Quarantined], root: Path
) -> Iterator[tuple[str, Path]]:
    """`(class, file)` of one split."""
    entries = _visible(folder, notes)
    class_folders = [entry for entry in entries if _is_folder(entry)]
    loose = [entry for entry in entries if not _is_folder(entry)]
    if loose and not class_folders:
        raise DataError(
            f"{folder} has no class folders. Expected {folder}/<class>/<image>; found {len(loose)} files directly "
            "inside. Put the photos of each class in a folder of their own."
        )
    _set_aside(loose, quarantine, root)
    for class_folder in class_folders:
        if reason := _why_not_followed(class_folder, root):
            quarantine.append(Quarantined(_relative(class_folder, root), reason))
        else:
            yield from _files_of_class(Path(class_folder.path), notes, quarantine, root)


def _files_of_class(
    folder: Path, notes: list[str], quarantine: list[Quarantined], root: Path
) -> Iterator[tuple[str, Path]]:
    entries = _visible(folder, notes)
    if nested := [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]:
        raise DataError(
            f"{folder} holds folders ({', '.join(nested[:3])}), so its photos could be of one class or of several. "
            f"Expected {folder}/<image>. Move the photos up, or point regraft at {folder}."
        )
    if not entries:
        notes.append(f"class folder {folder} is empty")
    for entry in entries:
        if reason := _why_not_regular(entry, root):
            quarantine.append(Quarantined(_relative(entry, root), reason))
        else:
            yield folder.name, Path(entry.path)


def _why_not_regular(entry: os.DirEntry[str], root: Path) -> str | None:
    """A pipe would hang its reader and a link may lead anywhere: neither is opened."""
    try:
        mode = entry.stat(follow_symlinks=True).st_mode
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    if reason := _why_not_followed(entry, root):
        return reason
    return None if stat.S_ISREG(mode) else "not a regular file"


def _why_not_followed(entry: os.DirEntry[str], root: Path) -> str | None:
    if not entry.is_symlink():
        return None
    path = Path(entry.path)
    target = path.resolve()
    if not target.is_relative_to(root.resolve()):
        return "a link that leads out of the data folder"
    return "a link to a folder around it" if path.parent.resolve().is_relative_to(target) else None


def _set_aside(loose: list[os.DirEntry[str]], quarantine: list[Quarantined], root: Path) -> None:
    quarantine.extend(Quarantined(_relative(entry, root), "not inside a class folder") for entry in loose)


def _relative(entry: os.DirEntry[str], root: Path) -> str:
    return str(Path(entry.path).relative_to(root))


def _class_map(root: Path, splits: list[str], found: list[tuple[str, str, Path]], notes: list[str]) -> list[str]:
    """Classes by name, from `train` where the folder is split. Splits are matched to it by name."""
    per_split = {name: Counter(label for s, label, _ in found if s == name) for name in splits}
    classes = sorted(per_split.get("train") or per_split.get("") or (), key=natural_key)
    for split in sorted(per_split.keys() - {"", "train"}):
        for unknown in sorted(per_split[split].keys() - set(classes)):
            hint = nearest(unknown, classes) or " Expected one of: " + ", ".join(classes) + "."
            raise DataError(
                f"{root} has {per_split[split][unknown]} {split} photos of class {unknown!r}, which train does not "
                f"have.{hint} Rename the folder, or add training photos of that class."
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


def _hash_or_reason(paths: list[Path], index: int) -> tuple[str, str | None]:
    try:
        return sha256_bytes(read_bytes(paths[index])), None
    except Unreadable as error:
        return "", str(error)


def _why_unreadable(dataset: Dataset, index: int) -> str | None:
    try:
        decode(dataset.read(index))
    except Unreadable as error:
        return str(error)
    return None
