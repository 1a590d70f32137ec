"""A box of a photo as a photo of its own: `a.jpg#10,20,64,48` is 64 x 48 pixels of `a.jpg`, from column 10 and row 20.

Its bytes are those of a PPM file, which has no choices, so that the same box is the same content everywhere.
"""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from regraft.data.decode import Unreadable, decode

_NAME = re.compile(r"(.+)#([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})")
_LAST = threading.local()  # the photo that a thread has decoded last: boxes of one photo come together


@dataclass(frozen=True)
class Box:
    """A box in pixels of the upright photo.

    Attributes:
        left: First column.
        top: First row.
        width: Number of columns.
        height: Number of rows.
    """

    left: float
    top: float
    width: float
    height: float

    def named(self, photo: str, margin: float = 0.0) -> str:
        """Return the path of the box as a photo.

        Args:
            photo: Path of the photo that it is in.
            margin: How much is added on each side, as a share of the longer side.
        """
        added = margin * max(self.width, self.height)
        left, top = max(0, round(self.left - added)), max(0, round(self.top - added))
        right, bottom = round(self.left + self.width + added), round(self.top + self.height + added)
        return f"{photo}#{left},{top},{max(1, right - left)},{max(1, bottom - top)}"


def parsed(path: Path) -> tuple[Path, tuple[int, int, int, int]] | None:
    """Return the photo and the box (left, top, width, height) that a path names; None for the path of a whole photo."""
    match = _NAME.fullmatch(path.name)
    if not match:
        return None
    left, top, width, height = map(int, match.groups()[1:])
    return path.with_name(match[1]), (left, top, width, height)


def crop(photo: Path, box: tuple[int, int, int, int], read: Callable[[Path], bytes]) -> bytes:
    """Cut a box out of a photo.

    Args:
        photo: Path of the photo.
        box: (left, top, width, height) in pixels; what lies outside the photo is left out.
        read: Reads a photo's bytes.

    Returns:
        The content of a PPM file.

    Raises:
        Unreadable: The photo cannot be read, or the box is outside it.
    """
    image = _decoded(read(photo))
    left, top, width, height = box
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    if left >= right or top >= bottom:
        raise Unreadable(f"the box lies outside the photo, which has {image.width}x{image.height} pixels")
    piece = image.crop((left, top, right, bottom))
    return b"P6\n%d %d\n255\n" % piece.size + piece.tobytes()


def _decoded(data: bytes) -> Image.Image:
    kept = getattr(_LAST, "photo", None)
    if kept is None or kept[0] != data:
        _LAST.photo = kept = (data, decode(data))
    image: Image.Image = kept[1]
    return image
