"""The one reader of bytes: a photo is a source and a member of it, and its path names both.

`photos/ants/1.jpg` is a file; `photos.zip/ants/1.jpg` is the member `ants/1.jpg` of the archive `photos.zip`. So a
source is a folder to all that lists, joins, records and shows photos, and only this module knows better. A source is
opened once and kept as an index; its file is opened for each read, so that threads and processes share nothing.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from regraft.core.errors import DataError
from regraft.core.files import write_atomic
from regraft.data import crops
from regraft.data.decode import EmptyFile, Unreadable, read_open
from regraft.data.parquet_rows import open_parquet
from regraft.data.tar_archive import open_tar
from regraft.data.video import ENDINGS, VideoSource
from regraft.data.zip_archive import open_zip

NUM_OPEN = 64  # indices of sources that are kept
UNREAD = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ\x00", "packed by xz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd"),
)


class Source(Protocol):
    """Something that holds photos as a folder does."""

    @property
    def refused(self) -> Mapping[str, str]:
        """Why each member that is not to be read is not, by its name as the source has it."""

    def names(self) -> list[str]:
        """Return the members that can be read, by their paths within the source."""

    def read(self, name: str) -> bytes:
        """Read a member. Raises Unreadable where it is damaged, and KeyError where it is not there."""


class FolderEntry(Protocol):
    """What a folder holds, be it on disk or in a source: the part of `os.DirEntry` that is used."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def path(self) -> str:
        """Its path, which begins with that of its folder."""

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a folder."""

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a file."""

    def is_symlink(self) -> bool:
        """Return whether it is a link."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what the file system knows of it."""


@dataclass(frozen=True)
class MemberEntry:
    """A member of a source, or a folder of members, as an entry of the folder around it.

    Attributes:
        name: Its name.
        path: Its path, which begins with that of its folder.
        is_around: Whether it is a folder.
    """

    name: str
    path: str
    is_around: bool

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a folder."""
        return self.is_around

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether it is a member."""
        return not self.is_around

    def is_symlink(self) -> bool:
        """Return False: links in a source are refused."""
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return what is known of the source. Raises OSError."""
        inside = _inside(Path(self.path))
        return os.stat(inside[0] if inside else self.path)  # noqa: PTH116


@dataclass(frozen=True)
class _Opened:
    """A source with its members in folders: the names in each, and whether a name is a folder's."""

    source: Source
    folders: Mapping[str, Mapping[str, bool]] = field(repr=False)


def read_bytes(path: Path) -> bytes:
    """Read a photo: a regular file of at most `decode.MAX_BYTES`, or a member of a source.

    Raises:
        Unreadable: It is missing, empty, too large, not a regular file, or cannot be read.
    """
    try:
        if path.is_file():
            with open(path, "rb") as file:
                return read_open(file)
        if (cut := crops.parsed(path)) and not is_photo_file(path):
            return crops.crop(*cut, read_bytes)
        if (inside := _inside(path)) and is_source(inside[0]):
            return _member(*inside)
        raise Unreadable("not a regular file" if path.exists() else "the file does not exist")
    except OSError as error:
        raise Unreadable(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # a name that no file can have
        raise Unreadable(f"cannot be read: {error}") from error


def read_head(path: Path, size: int) -> bytes:
    """Read the first `size` bytes of a photo, or fewer where it is shorter.

    Raises:
        Unreadable: It is gone, or cannot be read.
    """
    if not path.is_file():
        return read_bytes(path)[:size]
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error}") from error


@contextmanager
def on_disk(paths: Sequence[Path], around: Path) -> Iterator[list[Path]]:
    """Provide photos as files, for programs that know no sources.

    Args:
        paths: Of the photos.
        around: A folder, in which members of sources are written for as long as the block lasts.

    Yields:
        Paths of files; that of a member which cannot be read leads to nothing.
    """
    with tempfile.TemporaryDirectory(dir=around) as folder:
        yield [_as_file(path, Path(folder) / f"{number}-{path.name}"[-100:]) for number, path in enumerate(paths)]


def _as_file(path: Path, place: Path) -> Path:
    if not is_in_source(path):
        return path
    with suppress(Unreadable):
        write_atomic(place, read_bytes(path))
    return place


def entries(folder: Path) -> list[FolderEntry]:
    """List what a folder holds, or a source, or a folder in a source.

    Raises:
        OSError: It cannot be listed.
        DataError: The source cannot be read.
    """
    inside = _inside(folder, itself=True)
    if inside is None:
        return list(os.scandir(folder))
    folder_entries = _opened(inside[0]).folders.get(inside[1])
    if folder_entries is None:
        raise NotADirectoryError(0, "not a directory", str(folder))
    return [MemberEntry(name, str(folder / name), around) for name, around in folder_entries.items()]


def is_folder(path: Path) -> bool:
    """Return whether a path leads to a folder, a source that can be listed, or a folder in one.

    Raises:
        DataError: It leads to a source that cannot be read.
    """
    if path.is_dir():
        return True
    inside = _inside(path, itself=True)
    return inside is not None and is_source(inside[0]) and inside[1] in _opened(inside[0]).folders


def is_photo_file(path: Path) -> bool:
    """Return whether a path leads to a file or to a member of a source.

    Raises:
        DataError: It leads into a source that cannot be read.
    """
    if path.is_file():
        return True
    inside = _inside(path)
    if inside is None or not is_source(inside[0]):
        return False
    folder, _, name = inside[1].rpartition("/")
    return _opened(inside[0]).folders.get(folder, {}).get(name) is False


def is_there(path: Path) -> bool:
    """Return whether a path leads to anything, on disk or in a source."""
    return path.exists() or is_folder(path) or is_photo_file(path)


def is_in_source(path: Path) -> bool:
    """Return whether a path leads into a source, or to one or to a box, and not to a plain file or folder."""
    if crops.parsed(path) and not path.exists():
        return True
    inside = _inside(path, itself=True)
    return inside is not None and is_source(inside[0])


def members(source: Path) -> list[str]:
    """Return the members of a source that can be read.

    Raises:
        DataError: It cannot be read.
    """
    return _opened(source).source.names()


def refused(source: Path) -> Mapping[str, str]:
    """Return why each member of a source that is not read is not, by its name; {} for a folder.

    Raises:
        DataError: It cannot be read.
    """
    return _opened(source).source.refused if source.is_file() and is_source(source) else {}


def is_source(file: Path) -> bool:
    """Return whether a file holds photos as a folder does.

    Raises:
        DataError: It is an archive of a kind that is not read.
    """
    try:
        status = os.stat(file)  # noqa: PTH116
    except OSError:
        return False
    return _kind(str(file), status.st_mtime_ns, status.st_size) != ""


@lru_cache(4096)
def _kind(path: str, mtime_ns: int, size: int) -> str:
    return kind_of(Path(path))


def kind_of(file: Path) -> str:
    """Return what kind of source a file is, by its content: "zip", "tar", "parquet" or "video"; "" for another file.

    Raises:
        DataError: It is an archive of a kind that is not read.
    """
    try:
        with open(file, "rb") as opened:
            start = opened.read(512)
    except OSError:
        return ""
    for signature, name in UNREAD:
        if start.startswith(signature):
            raise DataError(
                f"{file} is {name}. Expected a folder, .zip, .tar or .tar.gz. Pack the photos as one of these."
            )
    if file.name.lower().endswith(ENDINGS):
        return "video"
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if start.startswith(b"PAR1"):
        return "parquet"
    return "tar" if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar" else ""


def _inside(path: Path, *, itself: bool = False) -> tuple[Path, str] | None:
    """Return the file that a path leads into, and the rest; with `itself` also for a file, whose rest is ""."""
    for place in (path, *path.parents) if itself else path.parents:
        try:
            mode = os.stat(place).st_mode  # noqa: PTH116
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            return None
        return place, "" if place == path else path.relative_to(place).as_posix()
    return None


def _member(source: Path, name: str) -> bytes:
    try:
        opened = _opened(source)
    except DataError as error:
        raise Unreadable(str(error)) from error
    try:
        data = opened.source.read(name)
    except KeyError:
        raise Unreadable(f"the file does not exist in {source.name}") from None
    if not data:
        raise EmptyFile
    return data


def _opened(source: Path) -> _Opened:
    """Return a source's index, made anew where the file has changed. Raises DataError."""
    try:
        status = os.stat(source)  # noqa: PTH116
        return _index(str(source), status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise DataError(
            f"{source} cannot be read: {(error.strerror or str(error)).lower()}. Check the path."
        ) from error


@lru_cache(NUM_OPEN)
def _index(path: str, mtime_ns: int, size: int) -> _Opened:
    kind = kind_of(Path(path))
    if not kind:
        raise FileNotFoundError(0, "it holds no photos", path)
    source = _OPENERS[kind](Path(path))
    return _Opened(source, _in_folders(Path(path), source.names()))


def _in_folders(source: Path, names: list[str]) -> dict[str, dict[str, bool]]:
    folders: dict[str, dict[str, bool]] = {"": {}}
    for path in names:
        name, around, is_around = path, "", False
        while name:
            around, _, last = name.rpartition("/")
            known = folders.setdefault(around, {})
            if known.setdefault(last, is_around) != is_around:
                raise DataError(
                    f"{source} has {name} as a file and as a folder, so it could be read in two ways. Pack it again."
                )
            name, is_around = around, True
    return folders


_OPENERS: dict[str, Callable[[Path], Source]] = {
    "zip": open_zip,
    "tar": open_tar,
    "parquet": open_parquet,
    "video": VideoSource,
}
