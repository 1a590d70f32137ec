"""What a file's header says of the work that it asks for, before any of that work is done.

Decoders do what a file asks: walk a photo's blocks once for each of ten thousand scans, read a million chunks one by
one, keep sixty thousand tags. No camera or program writes such files. They are refused here, as are camera raw files,
whose first picture is a thumbnail. To look through a usual photo takes a small part of the time of decoding it.
"""

import re
import struct
from collections.abc import Iterator
from itertools import islice

import numpy as np

from regraft.data import tiff_directories

JPEG = b"\xff\xd8"
SCAN = 0xDAFF  # what begins a scan, as a number
IN_SCAN = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # within a scan, 0 or a restart's number follows 255
MAX_SCANS = 128  # of a JPEG; programs write about 10
MAX_SCANNED_PIXELS = 2**32  # of all scans together: each goes over the whole picture
MAX_PARTS = 50_000  # segments of a JPEG before its picture, chunks of a PNG, boxes of a JPEG 2000
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))  # markers with the size
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
MAX_GIF_TEXT = 2**20  # bytes of comments and the like before a GIF's picture
MAX_ICON_PIXELS = 2**22
MAX_ICONS = 256
RAW_ADVICE = "develop it to a JPEG or TIFF first, for example with darktable, RawTherapee or the camera maker's program"
RAW_SIGNATURES = (
    (0, b"FUJIFILMCCD-RAW", "RAF"),
    (0, b"IIRO", "ORF"),
    (0, b"IIRS", "ORF"),
    (0, b"MMOR", "ORF"),
    (0, b"IIU\0", "RW2"),
    (0, b"FOVb", "X3F"),
    (0, b"\0MRM", "MRW"),
    (6, b"HEAPCCDR", "CRW"),
    (4, b"ftypcrx ", "CR3"),
    (8, b"CR\2", "CR2"),
    (8, b"IIII", "IIQ"),
)  # where, what, and the usual ending of such files


def refusal(data: bytes) -> str | None:
    """Return why a file is not to be decoded; None for one that may be.

    Args:
        data: The file's content.
    """
    for start, signature, name in RAW_SIGNATURES:
        if data.startswith(signature, start):
            return _is_raw(name)
    for signature, check in _CHECKS.items():
        if data.startswith(signature):
            return check(data)
    return None


def coefficient_bytes(data: bytes) -> int:
    """Compute how many bytes a JPEG's coefficients take while it is decoded.

    Where there are several scans, all coefficients wait in memory.

    Args:
        data: The file's content.

    Returns:
        The bytes; 0 for what is no JPEG, or for one whose only scan is decoded as it is read.
    """
    frame, scan = _frame_and_scan(data) if data.startswith(JPEG) else (b"", b"")
    if len(frame) < 13 or not _has_several_scans(frame, scan):
        return 0
    sampling = [(byte >> 4, byte & 15) for byte in frame[11 : 10 + 3 * frame[9] : 3]]
    largest = max(h for h, _ in sampling) * max(v for _, v in sampling)
    return 2 * _num_pixels(frame) * sum(h * v for h, v in sampling) // max(1, largest)


def _frame_and_scan(data: bytes) -> tuple[bytes, bytes]:
    """Return the beginnings of a JPEG's segments that name its size and sampling, and what its first scan holds."""
    frame = b""
    for start in _markers(data):
        if data[start] == 0xFF and data[start + 1] in FRAMES:
            frame = data[start : start + 10 + 3 * 4]
        elif data[start] == 0xFF and data[start + 1] == 0xDA:
            return frame, data[start : start + 5]
    return frame, b""


def _has_several_scans(frame: bytes, scan: bytes) -> bool:
    """Return whether a JPEG may have several scans; where its first one holds all, decoders take no other."""
    return len(frame) < 13 or len(scan) < 5 or frame[1] in PROGRESSIVE or scan[4] != frame[9]


def _num_pixels(frame: bytes) -> int:
    return int.from_bytes(frame[5:7]) * int.from_bytes(frame[7:9])


def _is_raw(name: str) -> str:
    return f"a camera raw file ({name}); {RAW_ADVICE}"


def _more_than(parts: Iterator[int], limit: int) -> bool:
    return next(islice(parts, limit, None), None) is not None


def _check_jpeg(data: bytes) -> str | None:
    if _more_than(_markers(data), MAX_PARTS):
        return f"more than {MAX_PARTS} segments before the picture"
    frame, scan = _frame_and_scan(data)
    most = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(1, _num_pixels(frame)))
    if _has_several_scans(frame, scan) and _num_marks(data) > most and _more_than(_scans(data), most):
        return f"a JPEG of more than {most} scans"
    return None


def _num_marks(data: bytes) -> int:
    """How often the two bytes that begin a scan come, be it by chance: ten times as fast as `bytes.count`."""
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    return sum(int(np.count_nonzero(pair == SCAN)) for pair in pairs)


def _scans(data: bytes) -> Iterator[int]:
    """Where a JPEG's scans begin. What follows its end, such as the film that a phone adds, is not looked at."""
    start = 2
    while marker := IN_SCAN.search(data, start):
        start = marker.start()
        if data[start + 1] == 0xD9:
            return
        if data[start + 1] == 0xDA:
            yield start
        start += 2 + int.from_bytes(data[start + 2 : start + 4])


def _markers(data: bytes, start: int = 2, last: tuple[int, ...] = (0xDA,)) -> Iterator[int]:
    """Where segments begin, and bytes between them, up to the picture: all that is read one by one in Python."""
    while start + 4 <= len(data):
        yield start
        kind = data[start + 1]
        if data[start] != 0xFF or kind in (0, 0xFF):
            start += 1
        elif kind in last:
            return
        elif kind in ALONE:
            start += 2
        else:
            start += 2 + int.from_bytes(data[start + 2 : start + 4])


def _check_png(data: bytes) -> str | None:
    if _more_than(_chunks(data), MAX_PARTS):
        return f"a PNG of more than {MAX_PARTS} chunks"
    return None


def _chunks(data: bytes) -> Iterator[int]:
    start = 8
    while start + 8 <= len(data):
        yield start
        start += 12 + int.from_bytes(data[start : start + 4])


def _check_gif(data: bytes) -> str | None:
    """Check that the first picture comes early: Pillow puts the comments before it together piece by piece."""
    flags = data[10] if len(data) > 10 else 0
    start = 13 + (3 << (flags % 8 + 1) if flags & 128 else 0)
    while data[start : start + 1] == b"!" and start < MAX_GIF_TEXT:
        start += 2
        while start < min(len(data), MAX_GIF_TEXT) and data[start]:
            start += 1 + data[start]
        start += 1
    return f"more than {MAX_GIF_TEXT // 2**20} MB of text before a GIF's picture" if start > MAX_GIF_TEXT else None


def _check_jpeg2000(data: bytes) -> str | None:
    start = max(0, data.find(b"\xff\x4f\xff\x51"))
    if _more_than(_boxes(data), MAX_PARTS) or _more_than(_markers(data, start + 2, (0x90, 0xD9)), MAX_PARTS):
        return f"a JPEG 2000 of more than {MAX_PARTS} parts"
    return None


def _boxes(data: bytes) -> Iterator[int]:
    """Where the boxes of a JPEG 2000 file begin, those within its header too."""
    start = 0
    while start + 8 <= len(data):
        yield start
        size, kind = struct.unpack_from(">I4s", data, start)
        start += 8 if kind in (b"jp2h", b"res ") or size < 8 else size


def _check_icon(data: bytes) -> str | None:
    """Check the sizes of an icon's pictures, because they are decoded as soon as it is opened."""
    count = int.from_bytes(data[4:6], "little")
    if count > MAX_ICONS:
        return f"an icon of {count} pictures"
    for number in range(count):
        start = int.from_bytes(data[18 + 16 * number : 22 + 16 * number], "little")
        width, height = _size_of_icon(data[start : start + 24])
        if width * height > MAX_ICON_PIXELS:
            return f"{width}x{height} pixels in an icon; at most {MAX_ICON_PIXELS // 10**6} megapixels are read"
    return None


def _size_of_icon(picture: bytes) -> tuple[int, int]:
    """Width and height in pixels, of a PNG's or a bitmap's first bytes."""
    if len(picture) < 24:
        return 0, 0
    if picture.startswith(b"\x89PNG"):
        width, height = struct.unpack(">II", picture[16:24])
        return width, height
    header, width, height = struct.unpack("<Iii", picture[:12])
    if header == 12:
        width, height = struct.unpack("<HH", picture[4:8])
    return abs(width), abs(height) // 2  # the second half is its mask


def _check_tiff(data: bytes) -> str | None:
    directories = tiff_directories.read_directories(data)
    if name := tiff_directories.raw_name(directories):
        return _is_raw(name)
    return tiff_directories.excess(directories)


_CHECKS = {
    JPEG: _check_jpeg,
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"GIF8": _check_gif,
    b"\0\0\0\x0cjP  ": _check_jpeg2000,
    b"\xff\x4f\xff\x51": _check_jpeg2000,
    b"\0\0\1\0": _check_icon,
    b"II": _check_tiff,
    b"MM": _check_tiff,
}
