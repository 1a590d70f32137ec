"""A folder to labelled files: which file is of which class and split, and what is not to be read at all.

Whatever could be read in more than one way is refused, by its path.
"""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regraft.core.errors import DataError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson")
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini", "lost+found"}


@dataclass(frozen=True)
class Quarantined:
    """A file that is not used. path: relative to the data set's root."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A file with its class and its split, "" where there are none. path: relative to the data set's root."""

    split: str
    label: str
    path: str


@dataclass
class Listing:
    """What was found below `root`. splits: their names, [""] where there are none.  loose: files beside the classes."""

    root: Path
    splits: list[str] = field(default_factory=list)
    files: list[Labelled] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)


def list_folder(root: Path) -> Listing:
    """`root/<class>/<image>`, where a class may be nested, as `a/x`; or the same below train, val and test.

    Raises DataError for what cannot be read in one way only.
    """
    listing = Listing(root)
    for split, folder in _split_folders(listing):
        listing.splits.append(split)
        _refuse_twins(folder, [entry.name for entry in _visible(folder, []) if _is_folder(entry)])
        found = _labelled_files(folder, listing)
        listing.files += [Labelled(split, unicodedata.normalize("NFC", label), path) for label, path in found]
    return listing


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorting key under which "2" comes before "10"; the name itself decides between "01" and "1"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts], name


def is_manifest(path: Path) -> bool:
    """Whether a file may be a list of labelled photos, by its name."""
    return path.suffix.lower() in MANIFESTS


def is_junk(name: str) -> bool:
    """Hidden files and folders, and what operating systems and editors leave behind."""
    return name.startswith(".") or name.lower() in JUNK or name.lower().endswith("~")


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


def _split_folders(listing: Listing) -> list[tuple[str, Path]]:
    """`[("train", root/train), ...]`, or `[("", root)]` when the folder is not split."""
    root = listing.root
    folders = [entry for entry in _entries(root) if _is_folder(entry) and not is_junk(entry.name)]
    named = {entry.name: SPLIT_NAMES[entry.name.lower()] for entry in folders if entry.name.lower() in SPLIT_NAMES}
    only_splits = len(named) == len(folders) > 1  # then "train" is no class, even if it holds photos only
    if "train" not in named.values() or not (only_splits or _has_folders(root / _folder_of("train", named))):
        return [("", root)]
    _check_splits(root, [entry for entry in folders if entry.name in named], named)
    _set_aside([entry for entry in _visible(root, listing.notes) if not _is_folder(entry)], listing)
    others = [entry.name for entry in folders if entry.name not in named]
    if others:
        listing.notes.append(f"skipped in {root}: {', '.join(others)} (not a split: expected train, val and test)")
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


def _labelled_files(folder: Path, listing: Listing) -> Iterator[tuple[str, str]]:
    """`(class, path)` of one split's files."""
    entries = _visible(folder, listing.notes)
    class_folders = [entry for entry in entries if _is_folder(entry)]
    loose = [entry for entry in entries if not _is_folder(entry)]
    if loose and not class_folders:
        lists = [entry.path for entry in loose if is_manifest(Path(entry.path))]
        cure = f" If {lists[0]} says which is which, name that file instead." if lists else ""
        raise DataError(
            f"{folder} has no class folders. Expected {folder}/<class>/<image>; found {len(loose)} files directly "
            f"inside. Put the photos of each class in a folder of their own.{cure}"
        )
    _set_aside(loose, listing)
    for class_folder in class_folders:
        if reason := _why_not_followed(class_folder, listing.root):
            listing.quarantine.append(Quarantined(_relative(class_folder, listing.root), reason))
        else:
            yield from _files_of_class(Path(class_folder.path), class_folder.name, listing)


def _files_of_class(folder: Path, name: str, listing: Listing) -> Iterator[tuple[str, str]]:
    """Files of one class, or of the classes nested in it, which are called `name/inner`."""
    entries = _visible(folder, listing.notes)
    inner = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    if inner and len(inner) < len(entries):
        raise DataError(
            f"{folder} holds photos and folders ({', '.join(entry.name for entry in inner[:3])}), so it could be one "
            f"class or several. Expected one or the other. Move the photos or the folders, or name {folder} itself."
        )
    if splits := [entry.name for entry in inner if entry.name.lower() in SPLIT_NAMES]:
        raise DataError(
            f"{folder} holds {', '.join(splits)}, so it could be a data set of its own. Expected class folders in "
            f"{folder.parent}. Point regraft at {folder}."
        )
    if not entries:
        listing.notes.append(f"class folder {folder} is empty")
    _refuse_twins(folder, [entry.name for entry in inner])
    for entry in inner:
        yield from _files_of_class(Path(entry.path), f"{name}/{entry.name}", listing)
    place = folder.relative_to(listing.root)
    for entry in entries if not inner else ():
        if reason := _why_not_regular(entry, listing.root):
            listing.quarantine.append(Quarantined(f"{place}/{entry.name}", reason))
        else:
            yield name, f"{place}/{entry.name}"


def _refuse_twins(folder: Path, names: list[str]) -> None:
    """Names that a reader, or another file system, would take for one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(
                f"{folder} has the folders {other!r} and {name!r}, which differ in case or in how letters are encoded "
                "alone, so they could be one class or two. Merge them, or rename one."
            )


def _why_not_regular(entry: os.DirEntry[str], root: Path) -> str | None:
    """A pipe would hang its reader and a link may lead anywhere: neither is opened."""
    if entry.is_file(follow_symlinks=False):
        return None
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


def _set_aside(loose: list[os.DirEntry[str]], listing: Listing) -> None:
    listing.loose += [Path(entry.path) for entry in loose]
    listing.quarantine += [Quarantined(_relative(entry, listing.root), "not inside a class folder") for entry in loose]


def _relative(entry: os.DirEntry[str], root: Path) -> str:
    return str(Path(entry.path).relative_to(root))
