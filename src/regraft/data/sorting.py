"""Photos into class folders, by hard links or copies, and out of them again; the photos themselves stay as they are.

A hidden list in the folder, `.regraft-sorted.jsonl`, names what was made there, and is written before it is made. What
is removed again is a file of that list whose content is still that of the photo it was made from, so that nothing is
lost: whatever a person added, renamed or changed stays, and so does the last copy of a photo.
"""

import filecmp
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain, count
from pathlib import Path, PurePosixPath

from regraft.core.errors import DataError, OutputError
from regraft.core.files import LOCK, MARKER, exclusive, read_marker, remove, sweep, write_atomic
from regraft.core.ownership import foreign, write_output
from regraft.data.decode import Unreadable
from regraft.data.sources import read_bytes

RECORD = ".regraft-sorted.jsonl"
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*%]|^[. ]|[. ]$')  # in names of folders, on one system or another
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)  # on Windows


@dataclass(frozen=True)
class UndoneSorting:
    """What became of a folder of sorted photos.

    Attributes:
        num_removed: Files that were removed.
        kept: Files that regraft made and that stay, because they, or the photos they were made from, are no longer
            what they were.
    """

    num_removed: int
    kept: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Placed:
    """A photo, its class, and the path below the folder that it is put at."""

    source: str
    label: str
    name: str


@dataclass
class _Record:
    """What regraft made in a folder: photos by their source, and folders, "." for the folder itself."""

    photos: dict[str, _Placed] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def to_bytes(self) -> bytes:
        rows: Iterable[dict[str, str]] = chain(
            ({"folder": name} for name in sorted(self.folders)), map(asdict, self.photos.values())
        )
        return "".join(json.dumps(row) + "\n" for row in rows).encode()


def sort_photos(assignments: Sequence[tuple[Path, str]], out: Path) -> int:
    """Put photos into class folders, by hard links, or by copies where links cannot be.

    Photos that were sorted there before stay, but for those that have another class now.

    Args:
        assignments: Photos and the class of each; "/" in a class makes a folder in a folder. A photo that is named
            twice gets its last class.
        out: The folder to be; it may hold other files, which stay.

    Returns:
        Number of photos that are in their class folders now.

    Raises:
        DataError: A photo is gone.
        OutputError: The folder cannot be written, another process uses it, or photos to be sorted lie in it.
    """
    out = out.expanduser().absolute()
    wanted = _by_source(assignments)
    _refuse_inside(out, wanted)
    is_new = not out.exists()
    with exclusive(out):
        before = _read(out)
        after = _planned(before, wanted, out)
        after.folders |= {"."} if is_new else set()
        write_output(out / RECORD, after.to_bytes())  # before anything is made: a kill leaves nothing that is not named
        try:
            _take_away(out, (old for old in before.photos.values() if after.photos[old.source] != old))
            within = _within(out)
            for folder in {str(PurePosixPath(after.photos[source].name).parent) for source in wanted}:
                _make(out, out / folder, within)
            for source in wanted:
                _put(out, after.photos[source])
            _remove_empty(out, before.folders)
        except OSError as error:
            raise _explained(out, error) from error
    return len(wanted)


def undo(out: Path) -> UndoneSorting:
    """Remove what `sort_photos` made in a folder, and the folder too where nothing else is in it.

    Args:
        out: The folder.

    Returns:
        How many files were removed, and which ones stay because they are no longer copies of their photos.

    Raises:
        DataError: There is no such folder, or nothing was sorted into it.
        OutputError: A file cannot be removed, or another process uses the folder.
    """
    out = out.expanduser().absolute()
    if not (out / RECORD).is_file():
        raise DataError(f"Nothing was sorted into {out}. Expected a folder that photos were sorted into.")
    with exclusive(out):
        made = _read(out)
        there = [one for one in made.photos.values() if os.path.lexists(out / one.name)]
        try:
            kept = _take_away(out, there)
            _remove_empty(out, made.folders)
            (out / RECORD).unlink()
        except OSError as error:
            raise _explained(out, error) from error
    _leave(out, is_own="." in made.folders)
    return UndoneSorting(len(there) - len(kept), tuple(kept))


def _by_source(assignments: Sequence[tuple[Path, str]]) -> dict[str, str]:
    """Return the class of each photo by where it lies, links followed; each folder is looked at once."""
    real = cache(Path.resolve)
    return {
        str(path.resolve() if path.is_symlink() else real(path.parent) / path.name): label
        for path, label in assignments
    }


def _refuse_inside(out: Path, sources: Iterable[str]) -> None:
    place = out.resolve()
    for source in sources:
        if Path(source).is_relative_to(place):
            raise OutputError(f"{source} is in {out}, the folder to sort into. Choose a folder beside the photos.")


def _read(out: Path) -> _Record:
    """Read what was made in a folder; a list that somebody changed could name anything. Raises OutputError."""
    if foreign(out / RECORD):
        raise OutputError(f"{out / RECORD} is not as regraft wrote it, so {out} stays as it is. Choose another folder.")
    record = _Record()
    if (out / RECORD).exists():
        for row in map(json.loads, (out / RECORD).read_text().splitlines()):
            if "folder" in row:
                record.folders.add(row["folder"])
            else:
                record.photos[row["source"]] = _Placed(**row)
    return record


def _planned(before: _Record, wanted: Mapping[str, str], out: Path) -> _Record:
    """Give every photo its place: the one it has, where its class is the same, else a free one."""
    folders = {one.label: str(PurePosixPath(one.name).parent) for one in before.photos.values()}
    taken_folders = {_folded(name) for name in folders.values()}
    taken_files: dict[str, set[str]] = {}
    after = _Record(dict(before.photos), set(before.folders))
    for source, label in wanted.items():
        if label not in folders:
            folders[label] = _free("/".join(map(safe_name, label.split("/"))), taken_folders)
            after.folders |= _missing(out, folders[label])
        if source in before.photos and before.photos[source].label == label:
            continue
        folder = folders[label]
        if folder not in taken_files:
            taken_files[folder] = {_folded(name) for name in _names_in(out / folder)}
            taken_files[folder] |= {
                _folded(PurePosixPath(one.name).name)
                for one in before.photos.values()
                if str(PurePosixPath(one.name).parent) == folder
            }
        after.photos[source] = _Placed(source, label, f"{folder}/{_free(Path(source).name, taken_files[folder])}")
    return after


def safe_name(name: str) -> str:
    """Return a name that every file system takes for a visible folder; other characters become %XX."""
    safe = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name) or "%"
    return f"%{ord(safe[0]):02X}{safe[1:]}" if _RESERVED.fullmatch(safe) else safe


def _free(name: str, taken: set[str]) -> str:
    """Return the name, or the first of `name-2`, `name-3`, ... that is free, and take it."""
    path = PurePosixPath(name)
    names = chain([name], (str(path.with_name(f"{path.stem}-{i}{path.suffix}")) for i in count(2)))
    free = next(one for one in names if _folded(one) not in taken)
    taken.add(_folded(free))
    return free


def _folded(name: str) -> str:
    """Return what names have in common that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def _missing(out: Path, folder: str) -> set[str]:
    """Return those of a folder and the ones around it that will have to be made."""
    path = PurePosixPath(folder)
    return {str(one) for one in (path, *path.parents[:-1]) if not os.path.lexists(out / one)}


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _make(out: Path, folder: Path, within: Callable[[Path], bool]) -> None:
    if not within(folder):
        raise OutputError(f"{folder} leads out of {out} by a link. Remove the link, or choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)


def _put(out: Path, placed: _Placed) -> None:
    """Link or copy a photo to its place, where nothing is there yet."""
    target = out / placed.name
    if os.path.lexists(target):
        return
    try:
        os.link(placed.source, target)
    except OSError:  # another disk, a file system without links, or a photo in an archive
        write_atomic(target, _content(placed.source))


def _content(source: str) -> bytes:
    """Read a photo. Raises DataError where it is gone."""
    try:
        return read_bytes(Path(source))
    except Unreadable as error:
        raise DataError(f"{source} {error}. Run the command again when nothing moves the photos.") from error


def _within(out: Path) -> Callable[[Path], bool]:
    """Return a function that says whether a folder lies in another, links followed; each is looked at once."""
    place = out.resolve()
    return cache(lambda folder: folder.resolve().is_relative_to(place))


def _take_away(out: Path, photos: Iterable[_Placed]) -> list[Path]:
    """Remove files that are still their photos, which stay where they are; return those that are not."""
    kept, within = [], _within(out)
    for one in photos:
        target, source = out / one.name, Path(one.source)
        if not os.path.lexists(target):
            continue
        if _is_spare(target, source, within):
            target.unlink()
        else:
            kept.append(target)
    return kept


def _is_spare(target: Path, source: Path, within: Callable[[Path], bool]) -> bool:
    """Return whether a file in the folder can go without loss: the same photo lies outside of it."""
    if target.is_symlink() or not within(target.parent):
        return False
    if within(source.resolve() if source.is_symlink() else source.parent):  # where a link leads, the last copy may be
        return False
    if source.is_file():
        return target.samefile(source) or filecmp.cmp(target, source, shallow=False)
    try:
        return read_bytes(source) == target.read_bytes()  # of a photo in an archive
    except Unreadable:
        return False


def _remove_empty(out: Path, folders: set[str]) -> None:
    """Remove folders that regraft made and that hold nothing, the inner ones first."""
    for name in sorted(folders - {"."}, key=len, reverse=True):
        sweep(out / name)
        with suppress(OSError):
            (out / name).rmdir()


def _leave(out: Path, *, is_own: bool) -> None:
    """Remove regraft's marker where nothing of regraft's is left, and the folder where it is regraft's and empty."""
    if not any(os.path.lexists(out / name) for name in (read_marker(out) or {}).get("files", ())):
        remove(out / MARKER)
        remove(out / LOCK)
    if is_own:
        with suppress(OSError):
            out.rmdir()


def _explained(out: Path, error: OSError) -> OutputError:
    reason = (error.strerror or str(error)).lower()
    return OutputError(f"Cannot sort photos in {out}: {reason}. Make room, or choose another folder.")
