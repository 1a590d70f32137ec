"""Zip archives, whose directory `zipfile` reads: what is in one, and a member's bytes. Nothing is unpacked to disk."""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from regraft.core.errors import DataError
from regraft.data.decode import Unreadable
from regraft.data.member_names import normal, refuse_twice, why_not_named, why_not_sized

MAX_DIRECTORY = 2**27  # bytes of the list of members: about a million photos
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then at its end the lengths of the name and of what follows it
END = struct.Struct("<4s8xLL2x")  # the end of the directory: signature, bytes of the directory, where it begins
ENCRYPTED, SLACK = 1, 2**16


class _Place(NamedTuple):
    """Where a member's bytes are, and what the directory says of them."""

    start: int
    packed: int
    size: int
    crc: int
    is_packed: bool


@dataclass(frozen=True)
class ZipSource:
    """A zip archive.

    Attributes:
        file: The archive.
        places: Where each member is.
        refused: Why each member that is not read is not, by its name.
    """

    file: Path
    places: Mapping[str, _Place] = field(repr=False)
    refused: Mapping[str, str] = field(repr=False)

    def names(self) -> list[str]:
        """Return the members that can be read, by their paths within the archive."""
        return list(self.places)

    def read(self, name: str) -> bytes:
        """Read a member.

        Raises:
            Unreadable: It is not what the archive says of it.
            KeyError: There is none of this name.
            OSError: The archive cannot be read.
        """
        place = self.places[name]
        with open(self.file, "rb") as file:
            file.seek(place.start)
            head = file.read(LOCAL_HEADER.size)
            if len(head) < LOCAL_HEADER.size or head[:4] != b"PK\3\4":
                raise Unreadable("damaged: the archive has no file where it says that one is")
            _, name_length, rest = LOCAL_HEADER.unpack(head)
            file.seek(name_length + rest, os.SEEK_CUR)
            data = file.read(place.packed)
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, place.size + 1) if place.is_packed else data
        except zlib.error as error:
            raise Unreadable(f"damaged in the archive: {error}") from error
        if len(data) != place.size or zlib.crc32(data) != place.crc:
            raise Unreadable("damaged: it is not what the archive says of it")
        return data


def open_zip(file: Path) -> ZipSource:
    """Read the directory of a zip archive.

    Raises:
        DataError: It is damaged, or has a member twice.
        OSError: It cannot be read.
    """
    try:
        _refuse_large_directory(file)
        with zipfile.ZipFile(file) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, OverflowError) as error:
        raise DataError(f"{file} is damaged, or no whole zip archive: {error}. Download or pack it again.") from error
    refused = {info.filename: reason for info in infos if (reason := _why_not(info))}
    infos = [info for info in infos if info.filename not in refused]
    names = [normal(info.filename.replace("\\", "/")) for info in infos]
    refuse_twice(file, names)
    return ZipSource(file, dict(zip(names, map(_place, infos), strict=True)), refused)


def _refuse_large_directory(file: Path) -> None:
    """Raise DataError where the directory would take too much memory; one that lies of its size is refused later."""
    with open(file, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, size - END.size - SLACK))
        tail = opened.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0 or place + END.size > len(tail):
        return
    _, length, _ = END.unpack_from(tail, place)
    if length == 2**32 - 1:  # it is written elsewhere, and cannot be longer than what is left of the file
        length = size if size > MAX_DIRECTORY and b"PK\6\6" not in tail else 0
    if length > MAX_DIRECTORY:
        raise DataError(f"{file} has a list of members of {length} bytes. Expected at most {MAX_DIRECTORY}. Divide it.")


def _why_not(info: zipfile.ZipInfo) -> str | None:
    if reason := why_not_named(info.filename.replace("\\", "/")):
        return reason
    if info.flag_bits & ENCRYPTED:
        return "encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link in an archive"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"packed by method {info.compress_type}, which is not read; pack it by deflate"
    if info.compress_size > info.file_size + info.file_size // 1000 + SLACK:
        return "damaged: it takes more bytes packed than unpacked"
    return why_not_sized(info.file_size, info.compress_size)


def _place(info: zipfile.ZipInfo) -> _Place:
    is_packed = info.compress_type == zipfile.ZIP_DEFLATED
    return _Place(info.header_offset, info.compress_size, info.file_size, info.CRC, is_packed)
