"""File bytes to pixels: the only decoder, for training, predicting, serving and reports alike.

A photo is either decoded whole, or refused with a reason. Nothing is guessed and nothing is replaced. What comes out
depends on the bytes alone: not on the process's settings of Pillow (`pillow_settings`), nor on what other threads
decode.
"""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from regraft.data import av1_sizes, file_limits
from regraft.data.memory_budget import DECODING
from regraft.data.pillow_settings import private_settings

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")  # an MPO opens as JPEG
MAX_BYTES = 256 * 2**20
PIECE = 2**20  # bytes that are read at a time where the size is not known
MAX_PIXELS = 2**27  # that are decoded, 134 megapixels: every camera and scanner, and no decompression bomb
MAX_STORED_PIXELS = 2**29  # of a JPEG, which is decoded at a reduced scale: phones take 200 megapixels
MAX_SLOW_SAMPLES = 2**22  # of what Pillow decodes in Python, sample by sample: run-length BMP, odd PPM
MAX_TILES = 2**18  # that Pillow decodes one by one
PEAK_BYTES = {"WEBP": 16, "AVIF": 16, "HEIF": 16, "JPEG2000": 24}  # of memory for a pixel, while it is decoded
USUAL_PEAK_BYTES = 8  # what is loaded and the same as RGB, or that and the same turned
STRIP_PIXELS = 2**22  # of larger pictures, so many are converted at a time
DRAFT_FACTOR = 2  # a JPEG is decoded at a reduced scale only while it stays this much larger than needed
WHITE = 65535.0  # of a 16-bit grey picture
CHECKED_AT = 256  # pixels of the shorter side at which a photo is decoded only to see whether it can be
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
VERSION = 1  # part of every feature's key: raise it when the same bytes decode to other pixels


class Unreadable(Exception):
    """A file is not a readable photo. The message is the reason, fit for a user."""


class EmptyFile(Unreadable):
    """A file has no content."""

    def __init__(self) -> None:
        super().__init__("the file is empty")


def read_open(file: IO[bytes] | io.RawIOBase) -> bytes:
    """Read an open binary file from where it stands, at most MAX_BYTES.

    Args:
        file: If its size can be known and is too large, nothing is read.

    Returns:
        The content.

    Raises:
        Unreadable: It is empty (EmptyFile) or too large.
    """
    expected = PIECE
    if file.seekable():
        here = file.tell()
        expected = file.seek(0, io.SEEK_END) - here
        file.seek(here)
        _check_length(expected)
    parts, length = [file.read(expected + 1) or b""], 0
    while parts[-1] and (length := length + len(parts[-1])) <= MAX_BYTES:
        parts.append(file.read(PIECE) or b"")
    _check_length(length)
    return b"".join(parts) if len(parts) > 2 else parts[0]


def _check_length(size: int) -> None:
    if size <= 0:
        raise EmptyFile
    if size > MAX_BYTES:
        raise Unreadable(f"larger than {MAX_BYTES // 2**20} MB")


def decode(data: bytes, at_least: int | None = None, grey_bits: int | None = None) -> Image.Image:
    """Decode an image file to an upright RGB image; of an animation, the first frame.

    Args:
        data: The file's content.
        at_least: Shorter side in pixels that the caller is going to resize to. A JPEG may then be decoded at a reduced
            scale, never below DRAFT_FACTOR times that.
        grey_bits: How many bits 16-bit greys use, which says what is white; None for all.

    Raises:
        Unreadable: It is no photo, damaged, or too large, by the pixels that would be decoded or by the memory that
            this takes.
    """
    with _opened(data, at_least) as image:
        _check_size(image.size)
        with DECODING.take(_bytes_to_decode(image, data)), private_settings(MAX_PIXELS):
            image.load()
            orientation, rgb = _orientation(image), to_rgb(image, grey_bits)
            if rgb is not image:
                image.close()  # its memory goes before more is asked for
            return _turned(rgb, orientation)


def decoded_size(data: bytes, at_least: int | None = None) -> tuple[int, int]:
    """Return the width and height in pixels at which `decode` decodes, before the photo is turned.

    Args:
        data: The file's content.
        at_least: As for `decode`.

    Raises:
        Unreadable: It is no photo.
    """
    with _opened(data, at_least) as image:
        return image.size


@contextmanager
def _opened(data: bytes, at_least: int | None = None) -> Iterator[Image.Image]:
    """Open a file and read its header. Whatever goes wrong with it until the block ends is raised as Unreadable."""
    try:
        if reason := file_limits.refusal(data):
            raise Unreadable(reason)
        with private_settings(MAX_STORED_PIXELS), Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            if at_least is not None:
                image.draft("RGB", (at_least * DRAFT_FACTOR, at_least * DRAFT_FACTOR))
            yield image
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(_not_an_image(data)) from None
    except Image.DecompressionBombError:
        most = MAX_STORED_PIXELS if data.startswith(b"\xff\xd8") else MAX_PIXELS
        raise Unreadable(f"more than {most // 10**6} megapixels") from None
    except Exception as error:  # Pillow's plugins raise whatever they meet in a damaged file
        raise Unreadable(f"damaged: {str(error) or type(error).__name__}") from error


def grey_maximum(data: bytes) -> int | None:
    """Return the largest value of a 16-bit grey picture; None for any other picture.

    Args:
        data: The file's content.

    Raises:
        Unreadable: It cannot be decoded.
    """
    with _opened(data) as image:
        if not image.mode.startswith("I"):
            return None
        _check_size(image.size)
        with DECODING.take(_bytes_to_decode(image, data)), private_settings(MAX_PIXELS):
            arrays = [np.asarray(strip) for strip, _ in _strips(image)]
            low, high = min(int(one.min()) for one in arrays), max(int(one.max()) for one in arrays)
    return high if low >= 0 and high <= WHITE else None


def pixels_of(image: Image.Image, grey_bits: int | None = None) -> Image.Image:
    """Convert a picture that is in memory to upright RGB, as `decode` would have made it of its file.

    Args:
        image: Of any mode; one that was opened and not decoded yet is decoded.
        grey_bits: As for `decode`.

    Raises:
        Unreadable: It cannot be decoded, or made RGB.
    """
    try:
        with private_settings(MAX_PIXELS):
            image.load()
            return _turned(to_rgb(image, grey_bits), _orientation(image))
    except Unreadable:
        raise
    except Exception as error:  # as in decode
        raise Unreadable(f"damaged: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        format: Pillow's name of the file format; "" for none.
        size: (width, height) in pixels, as stored.
        camera: Make and model; "" for none.
    """

    format: str
    size: tuple[int, int]
    camera: str

    @property
    def format_number(self) -> int:
        """Place of the format among FORMATS, from 1; 0 for another."""
        return FORMATS.index(self.format) + 1 if self.format in FORMATS else 0

    @property
    def camera_number(self) -> int:
        """Number of 24 bits, which a float32 holds exactly, made from the camera's name; 0 for none."""
        return zlib.crc32(self.camera.encode()) >> 8 if self.camera else 0


def header(data: bytes) -> Header:
    """Read what is known of an image file before its pixels are decoded.

    Raises:
        Unreadable: It is no photo, or its header is damaged.
    """
    with _opened(data) as image:
        return Header(image.format or "", image.size, _camera(image))


def _camera(image: Image.Image) -> str:
    try:
        exif = image.getexif()
        return " ".join(
            str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
        ).strip()
    except Exception:  # whatever a damaged EXIF block raises, it names no camera
        return ""


def to_rgb(image: Image.Image, grey_bits: int | None = None) -> Image.Image:
    """Convert any Pillow image to RGB: transparency on white, 16-bit and float greys scaled to their full range.

    Args:
        image: Of any mode. A large one is converted in strips, so that no more than it and the outcome is in memory.
        grey_bits: As for `decode`.

    Raises:
        Unreadable: It holds grey values that are not finite.
        ValueError: Pillow knows no way from its mode to RGB.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    limits = _limits(image, grey_bits) if image.mode.startswith(("I", "F")) else (0.0, 255.0)
    if image.width * image.height <= STRIP_PIXELS:
        return _converted(image, limits)
    whole = Image.new("RGB", image.size)
    for strip, box in _strips(image):
        whole.paste(_converted(strip, limits), box)
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int, int, int]]]:
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image.crop(box), box


def _converted(image: Image.Image, limits: tuple[float, float]) -> Image.Image:
    """Convert one piece of an image to RGB; `limits` are the grey values that become black and white."""
    if image.mode.startswith(("I", "F")):
        return _grey_to_8_bit(image, limits).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width}x{height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read")


def _bytes_to_decode(image: Image.Image, data: bytes) -> int:
    """Memory that decoding takes at its peak. Raises Unreadable where that is too much."""
    pixels, tiles = image.width * image.height, getattr(image, "tile", [])
    is_slow = any(tile[0] in Image.DECODERS for tile in tiles[:1])
    if is_slow and pixels * len(image.getbands()) > MAX_SLOW_SAMPLES:
        kind = f"{image.width}x{image.height} pixels in a slow kind of {image.format}"
        raise Unreadable(f"{kind}; at most {MAX_SLOW_SAMPLES / 1e6:.0f} million numbers are read of these")
    if len(tiles) > MAX_TILES:
        raise Unreadable(f"a picture in more than {MAX_TILES} pieces")
    needed = PEAK_BYTES.get(image.format or "", USUAL_PEAK_BYTES) * pixels + file_limits.coefficient_bytes(data)
    if needed > DECODING.total:
        kind = f"{image.width}x{image.height} pixels take {needed // 2**20} MB to decode"
        raise Unreadable(f"{kind}; at most {DECODING.total // 2**20} MB are used")
    return needed + (av1_sizes.coded_bytes(data) if image.format == "AVIF" else 0)


def _orientation(image: Image.Image) -> Any:
    """Return the orientation that the EXIF names, None for none.

    Pillow's own `exif_transpose` writes the EXIF back and fails where it is odd, on many a photo whose pixels are good.
    """
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever a damaged EXIF block raises, it says nothing about the pixels
        return None


def _turned(image: Image.Image, orientation: Any) -> Image.Image:
    """Turn the image as its EXIF says."""
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _limits(image: Image.Image, grey_bits: int | None) -> tuple[float, float]:
    """Return the values of black and white: 16-bit greys as given, others by their own range. Raises Unreadable."""
    white = WHITE if grey_bits is None else 2.0**grey_bits - 1
    if image.mode.startswith("I;16"):
        return 0.0, white
    extremes = [(v.min(), v.max()) for v in (np.asarray(strip).astype(np.float32) for strip, _ in _strips(image))]
    low, high = float(min(low for low, _ in extremes)), float(max(high for _, high in extremes))
    if not np.isfinite([*sum(extremes, ())]).all():
        raise Unreadable("damaged: grey values that are not finite")
    return (0.0, white) if image.mode == "I" and low >= 0 and high <= WHITE else (low, high)


def _grey_to_8_bit(image: Image.Image, limits: tuple[float, float]) -> Image.Image:
    low, high = limits
    with np.errstate(all="ignore"):
        scaled = (np.asarray(image).astype(np.float32) - low) * (255.0 / max(high - low, 1e-12))
        return Image.fromarray(np.round(scaled).clip(0, 255).astype(np.uint8))


def _formats(data: bytes) -> tuple[str, ...]:
    """List the formats that a file is tried as. Raises Unreadable.

    A HEIC photo needs a library of its own, which is loaded for the first one.
    """
    if not _is_heic(data):
        return FORMATS
    if not _can_read_heic():
        raise Unreadable("a HEIC photo; to read these: pip install 'regraft[heic]'")
    return ("HEIF",)


def _is_heic(data: bytes) -> bool:
    brands = (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")
    return data[4:12].startswith(brands) and b"avif" not in data[8:64]


@cache
def _can_read_heic() -> bool:
    try:
        import pi_heif
    except ImportError:
        return False
    pi_heif.register_heif_opener()
    return True


def _not_an_image(data: bytes) -> str:
    if _is_heic(data):
        return "damaged: a HEIC file without a whole picture"
    if data.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the photo; run: git lfs pull"
    return "not an image of a known format"
