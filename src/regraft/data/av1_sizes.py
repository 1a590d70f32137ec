"""How large the pictures coded in an AVIF file are, whatever the file says around them.

An AVIF file of two kilobytes may hold a picture of 130 megapixels and call it 64x64: libavif decodes all of it, then
makes it smaller. What counts is in the sequence header that begins each coded picture (AV1 bitstream specification
1.0.0, section 5.5); where the pictures lie is in the file's boxes (ISO/IEC 14496-12, `iinf` and `iloc`). A file that is
not laid out as programs write them counts as the largest one.
"""

import struct
from collections.abc import Iterator

LARGEST = 2**28  # pixels; libavif refuses more
CODED_BYTES = 2.2  # of memory for a coded pixel: 274 MB were measured for 132 megapixels
_LONGEST = 128  # bytes of a sequence header that are looked at
_DELIMITER, _SEQUENCE = 2, 1  # kinds of units of AV1
Span = tuple[int, int]


class _OddError(ValueError):
    """The file is not laid out as programs write them."""


def coded_bytes(data: bytes) -> int:
    """Return the memory for the largest picture that is coded in an AVIF file, in bytes.

    Args:
        data: The file's content.
    """
    try:
        largest = max(_pixels(data, start) for start in _pictures(data))
    except (ValueError, IndexError, KeyError, struct.error):
        largest = LARGEST
    return int(CODED_BYTES * min(largest, LARGEST))


def _pictures(data: bytes) -> Iterator[int]:
    """Where the coded pictures begin. Raises _OddError, or whatever meets the end of the file."""
    file = _boxes(data, (0, len(data)))
    if b"moov" in file:
        raise _OddError("an animation")
    start, end = file[b"meta"]
    meta = _boxes(data, (start + 4, end))
    kinds = _kinds(data, meta[b"iinf"])
    return (place for item, place in _places(data, meta[b"iloc"]) if kinds[item] == b"av01")


def _boxes(data: bytes, span: Span) -> dict[bytes, Span]:
    """The boxes in a part of a file, by kind: where their content begins and ends."""
    boxes: dict[bytes, Span] = {}
    at, end = span
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        size = size or end - at
        if size < 8 or at + size > end or (kind in boxes and kind not in (b"free", b"skip", b"mdat")):
            raise _OddError(f"box {kind!r}")
        boxes[kind] = at + 8, at + size
        at += size
    return boxes


def _kinds(data: bytes, span: Span) -> dict[int, bytes]:
    """What each item of an `iinf` box is."""
    at, end = span
    at += 6 if data[at] == 0 else 8
    kinds = {}
    while at < end:
        size, kind, version = struct.unpack_from(">I4sB", data, at)
        if kind != b"infe" or size < 20:
            raise _OddError("an entry of another kind")
        number, _, item = struct.unpack_from(">HH4s" if version == 2 else ">IH4s", data, at + 12)
        kinds[number] = item
        at += size
    return kinds


def _places(data: bytes, span: Span) -> Iterator[tuple[int, int]]:
    """Items of an `iloc` box, and where they begin; each is to lie in one piece."""
    at = span[0]
    version, sizes = data[at], (data[at + 4] >> 4, data[at + 4] & 15, data[at + 5] >> 4, data[at + 5] & 15)
    offset, length, base, index = sizes
    width = 4 if version == 2 else 2
    count, at = int.from_bytes(data[at + 6 : at + 6 + width]), at + 6 + width
    for _ in range(count):
        number, at = int.from_bytes(data[at : at + width]), at + width
        if version:
            if data[at + 1] & 15:
                raise _OddError("an item within the directory")
            at += 2
        start, at = int.from_bytes(data[at + 2 : at + 2 + base]), at + 2 + base
        if data[at : at + 2] != b"\0\1":
            raise _OddError("an item in pieces")
        at += 2 + (index if version else 0)
        yield number, start + int.from_bytes(data[at : at + offset])
        at += offset + length


def _pixels(data: bytes, start: int) -> int:
    """Read the largest picture that the sequence header of a coded picture allows. Raises _OddError."""
    for _ in range(2):  # a delimiter may come before it
        kind, start = data[start] >> 3, start + (2 if data[start] & 4 else 1)
        size = shift = 0
        while data[start] & 128:
            size, shift, start = size | (data[start] & 127) << shift, shift + 7, start + 1
        size, start = size | data[start] << shift, start + 1
        if kind == _SEQUENCE:
            return _largest(_Bits(data[start : start + _LONGEST]))
        if kind != _DELIMITER:
            break
        start += size
    raise _OddError("no sequence header")


class _Bits:
    """Numbers of so many bits, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise _OddError("cut off")
        self.left -= count
        return (self.value >> self.left) & ((1 << count) - 1)


def _largest(bits: _Bits) -> int:
    bits.take(4)  # profile, and whether it is a still picture
    if bits.take(1):
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    """Skip what a sequence header says of time and of its operating points."""
    delay_bits = 0
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(zeros)
        if bits.take(1):
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)
