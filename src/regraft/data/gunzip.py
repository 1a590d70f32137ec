"""Reading anywhere in a gzip file: places from which unpacking can begin are remembered while it is read through once.

The method is that of zlib's example `zran.c`; a copy of the decompressor, some 40 kB, stands for its window.
"""

import io
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import IO, Any

from regraft.core.errors import DataError
from regraft.data.member_names import is_bomb

PIECE = 2**14  # packed bytes that are read at a time
MAX_POINTS = 1024
MAX_ENDS = 16
FIRST_SPACING = 2**20  # unpacked bytes from point to point, doubled when there are too many


@dataclass
class Points:
    """Where unpacking can begin.

    Attributes:
        starts: Offsets in the unpacked bytes, ascending.
        states: For each, the offset in the file, and the decompressor as it was there.
        spacing: Least distance between two starts.
        ends: Where the last readers stood at their ends, by their offsets in the unpacked bytes: files are mostly read
            in order, so that the next one begins there. Each is taken by one reader only.
    """

    starts: list[int] = field(default_factory=list)
    states: list[tuple[int, Any]] = field(default_factory=list)
    spacing: int = FIRST_SPACING
    ends: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def add(self, start: int, place: int, state: Any) -> None:
        """Remember a place, unless one close to it is known."""
        if start < (self.starts[-1] if self.starts else 0) + self.spacing:
            return
        self.starts.append(start)
        self.states.append((place, state.copy()))
        if len(self.starts) > MAX_POINTS:
            self.starts, self.states, self.spacing = self.starts[1::2], self.states[1::2], 2 * self.spacing

    def leave(self, end: int, place: int, state: Any) -> None:
        """Remember where a reader stood at its end, which uses the decompressor no more."""
        self.ends[end] = (place, state)
        while len(self.ends) > MAX_ENDS:
            self.ends.pop(next(iter(list(self.ends))), None)

    def before(self, start: int) -> tuple[int, int, Any]:
        """Return the last place at or before an offset: unpacked offset, offset in the file, decompressor."""
        number = bisect_right(self.starts, start) - 1
        known = self.starts[number] if number >= 0 else 0
        end = max((at for at in list(self.ends) if known < at <= start), default=None)
        if end is not None and (taken := self.ends.pop(end, None)) is not None:  # else another thread was faster
            return end, *taken
        if number < 0:
            return 0, 0, zlib.decompressobj(zlib.MAX_WBITS | 16)
        place, state = self.states[number]
        return self.starts[number], place, state.copy()


class Gunzip:
    """The unpacked bytes of a gzip file, to be read from anywhere.

    Args:
        file: The packed file.
        points: Known places, to which those met on the way are added.
    """

    def __init__(self, file: IO[bytes], points: Points) -> None:
        self._file, self._points = file, points
        self._at, self._place, self._state = points.before(0)
        file.seek(self._place)

    def __enter__(self) -> "Gunzip":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Leave the place to the next reader, unless something is damaged there."""
        if kind is None:
            self._points.leave(self._at, self._file.tell(), self._state)

    def tell(self) -> int:
        """Return the offset in the unpacked bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset in the unpacked bytes, or to their end where that is before it.

        Raises:
            zlib.error: The file is damaged.
            EOFError: It ends within a packed piece.
            DataError: It is a decompression bomb.
        """
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        known = self._points.before(target)
        if not known[0] <= self._at <= target:
            self._at, place, self._state = known
            self._file.seek(place)
        while self._at < target and self._unpacked(target - self._at):
            pass
        return self._at

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or fewer at the end. Raises as `seek` does."""
        parts = []
        while size > 0 and (part := self._unpacked(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _unpacked(self, limit: int) -> bytes:
        """Unpack some bytes, `limit` at most; b"" at the end. Raises DataError for a bomb."""
        data = b""
        while not data:
            packed = (self._state.unused_data if self._state.eof else self._state.unconsumed_tail) or self._file.read(
                PIECE
            )
            if self._state.eof:
                if not packed.strip(b"\0"):
                    return b""
                self._state = zlib.decompressobj(zlib.MAX_WBITS | 16)  # gzip files may stand one behind another
            elif not packed:
                raise EOFError("it ends too early")
            data = self._state.decompress(packed, min(limit, 2**20))
        self._at += len(data)
        if is_bomb(self._at, self._file.tell()):
            name = getattr(self._file, "name", "The archive")
            raise DataError(f"{name} is a decompression bomb: {self._file.tell()} bytes become {self._at} and more.")
        self._points.add(self._at, self._file.tell(), self._state)
        return data
