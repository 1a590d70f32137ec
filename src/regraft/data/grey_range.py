"""How many bits the 16-bit greys of a data set use.

Cameras of 10, 12 and 14 bits write greys of 16 bits that are nearly black.
"""

from regraft.core.progress import QUIET, Progress
from regraft.data.decode import Unreadable, grey_maximum
from regraft.data.scan import Dataset, map_photos

BITS = (8, 10, 12, 14)
HEAD_BYTES = 32


def grey_bits(dataset: Dataset, progress: Progress = QUIET) -> int | None:
    """Find the bits that all 16-bit greys of a data set use together, and say so.

    Args:
        dataset: All its photos count, so that two of them keep their relation to each other.
        progress: Says what was found.

    Returns:
        8, 10, 12 or 14; None where there are no such photos, or where they use more.

    Raises:
        DataError: A photo changed since it was scanned.
    """

    def largest(index: int) -> int | None:
        try:
            return grey_maximum(dataset.read(index)) if may_be_16_bit(dataset.head(index, HEAD_BYTES)) else None
        except Unreadable:
            return None

    peaks = [value for value in map_photos(largest, len(dataset), lambda _: None) if value is not None]
    bits = next((bits for bits in BITS if peaks and max(peaks) < 2**bits), None)
    if bits:
        progress.say(f"  {len(peaks)} greys of 16 bits use {bits} of them: {2**bits - 1} is white, in predictions too")
    return bits


def may_be_16_bit(head: bytes) -> bool:
    """Return whether a file may be a grey picture of 16 bits, by its first HEAD_BYTES bytes."""
    if head.startswith(b"\x89PNG"):
        return head[24:26] == b"\x10\0"
    return head.startswith((b"II", b"MM", b"P5", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"))
