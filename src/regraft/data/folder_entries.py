"""What lies in a folder or archive, in order: entries, those that are not junk, and the folders among them."""

import re
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.sources import FolderEntry

MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson")
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini", "lost+found"}


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sorting key under which "2" comes before "10"; the name itself decides between "01" and "1"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts], name


def is_manifest(path: Path) -> bool:
    """Return whether a file may be a list of labelled photos, by its name."""
    return path.suffix.lower() in MANIFESTS


def is_junk(name: str) -> bool:
    """Return whether a file or folder is hidden, or left behind by an operating system or editor, by its name."""
    return name.startswith(".") or name.lower() in JUNK or name.lower().endswith("~")


def list_entries(folder: Path) -> list[FolderEntry]:
    """List what is in a folder, in natural order.

    Raises:
        DataError: It cannot be listed.
    """
    try:
        return sorted(sources.entries(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"Cannot list {folder}: {reason}. Check its permissions.") from error


def visible_entries(folder: Path, notes: list[str]) -> list[FolderEntry]:
    """List what is in a folder, without junk; a line that names the junk is added to `notes`."""
    entries = list_entries(folder)
    junk = [entry.name for entry in entries if is_junk(entry.name)]
    if junk:
        notes.append(f"skipped in {folder}: {', '.join(junk)} (hidden or left by the system)")
    return [entry for entry in entries if not is_junk(entry.name)]


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that are not junk."""
    return [entry.name for entry in list_entries(folder) if is_folder_entry(entry) and not is_junk(entry.name)]


def has_photos_in_folders(folder: Path) -> bool:
    """Return whether folders in a folder hold files that are called like photos."""
    photo = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
    files = (entry.name.lower() for name in names_below(folder) for entry in peeked(folder / name))
    return any(name.endswith(photo) for name in files)


def only_folder(folder: Path) -> Path | None:
    """Return the one folder in a folder, files beside it not counted; a link is not a folder here."""
    folders = [entry for entry in list_entries(folder) if is_folder_entry(entry) and not is_junk(entry.name)]
    return Path(folders[0].path) if len(folders) == 1 and not folders[0].is_symlink() else None


def is_folder_entry(entry: FolderEntry) -> bool:
    """Return whether this is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def names_below(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, and of what is in the only one of them, if that holds folders."""
    names = _names_of_folders(folder)
    return (_names_of_folders(folder / names[0]) if len(names) == 1 else []) or names


def _names_of_folders(folder: Path) -> list[str]:
    return [entry.name for entry in peeked(folder) if entry.is_dir(follow_symlinks=False)]


def peeked(folder: Path) -> list[FolderEntry]:
    """List what is in a folder that may be left out; nothing where it cannot be listed."""
    try:
        return visible_entries(folder, [])
    except DataError:
        return []
