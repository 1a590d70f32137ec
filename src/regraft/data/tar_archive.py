"""Tar archives, plain or packed by gzip: what is in one, and a member's bytes. Nothing is unpacked to disk."""

import io
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from regraft.core.errors import DataError
from regraft.data.decode import Unreadable
from regraft.data.gunzip import Gunzip, Points
from regraft.data.member_names import MAX_MEMBERS, normal, refuse_twice, why_not_named, why_not_sized

BLOCK = 512
MAX_HEADER = 2**20  # bytes of what an archive says of one member


class _Place(NamedTuple):
    """Where a member's bytes are."""

    start: int
    size: int


@dataclass(frozen=True)
class TarSource:
    """A tar archive.

    Attributes:
        file: The archive.
        places: Where each member is.
        refused: Why each member that is not read is not, by its name.
        points: Where unpacking can begin; None for an archive that is not packed.
    """

    file: Path
    places: Mapping[str, _Place] = field(repr=False)
    refused: Mapping[str, str] = field(repr=False)
    points: Points | None = field(default=None, repr=False)

    def names(self) -> list[str]:
        """Return the members that can be read, by their paths within the archive."""
        return list(self.places)

    def read(self, name: str) -> bytes:
        """Read a member.

        Raises:
            Unreadable: The archive has changed, or is damaged there.
            KeyError: There is none of this name.
            OSError: The archive cannot be read.
        """
        place = self.places[name]
        try:
            with (
                open(self.file, "rb") as opened,
                nullcontext(opened) if self.points is None else Gunzip(opened, self.points) as file,
            ):
                file.seek(place.start)
                data = file.read(place.size)
        except (zlib.error, EOFError) as error:
            raise Unreadable(f"damaged in the archive: {error}") from error
        if len(data) != place.size:
            raise Unreadable("damaged: the archive ends within it")
        return data


class _Headers(io.RawIOBase):
    """A file from which `tarfile` reads headers: it may ask for no more than one takes."""

    def __init__(self, file: "io.BufferedReader | Gunzip", name: Path) -> None:
        self._file, self._name = file, name

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise DataError(f"{self._name} has a header of {size} bytes. Expected at most {MAX_HEADER}. Pack it again.")
        return self._file.read(size)


def open_tar(file: Path) -> TarSource:
    """Read the headers of a tar archive from its beginning to its end.

    Raises:
        DataError: It is damaged, a decompression bomb, or has a member twice.
        OSError: It cannot be read.
    """
    with open(file, "rb") as opened:
        points = Points() if opened.read(2) == b"\x1f\x8b" else None
        opened.seek(0)
        stream = opened if points is None else Gunzip(opened, points)
        try:
            members = _members(_Headers(stream, file), file)
        except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise DataError(
                f"{file} is damaged, or no whole tar archive: {error}. Download or pack it again."
            ) from error
    refused = {one.name: reason for one in members if (reason := _why_not(one))}
    kept = [one for one in members if one.name not in refused]
    refuse_twice(file, (normal(one.name) for one in kept))
    places = {normal(one.name): _Place(one.start, one.size) for one in kept}
    return TarSource(file, places, refused, points)


class _Found(NamedTuple):
    name: str
    start: int
    size: int
    kind: bytes
    is_sparse: bool


def _members(headers: _Headers, file: Path) -> list[_Found]:
    """List all members but folders. Raises DataError."""
    members: list[_Found] = []
    with tarfile.open(fileobj=headers, mode="r:") as archive:
        while (one := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all it knows of each
            if not one.isdir():
                members.append(_Found(one.name, one.offset_data, one.size, one.type, one.issparse()))
            if len(members) > MAX_MEMBERS:
                raise DataError(f"{file} has more than {MAX_MEMBERS} members. Divide it.")
        headers.seek(archive.offset)
        if headers.read(BLOCK).strip(b"\0"):
            raise DataError(
                f"{file} is damaged at byte {archive.offset}: no header of a member is there. Pack it again."
            )
    return members


def _why_not(one: _Found) -> str | None:
    if reason := why_not_named(one.name):
        return reason
    if one.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        return "a link in an archive"
    if one.kind not in tarfile.REGULAR_TYPES or one.is_sparse:
        return "not a regular file"
    return why_not_sized(one.size, one.size)
