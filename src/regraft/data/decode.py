"""File bytes to pixels: the only decoder, for training, predicting, serving and reports alike.

A photo is either decoded whole, or refused with a reason. Nothing is guessed and nothing is replaced.
"""

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")  # an MPO opens as JPEG
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 2**27  # 134 megapixels: every camera and scanner in common use, and no decompression bomb
DRAFT_FACTOR = 2  # a JPEG is decoded at a reduced scale only while it stays this much larger than needed
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
    """A file that is not a readable photo. The message is the reason, fit for a user."""


def read_bytes(path: Path) -> bytes:
    """Content of a regular file of at most MAX_BYTES. Raises Unreadable."""
    try:
        if not path.is_file():
            raise Unreadable("not a regular file" if path.exists() else "the file does not exist")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    if not data:
        raise Unreadable("the file is empty")
    if len(data) > MAX_BYTES:
        raise Unreadable(f"larger than {MAX_BYTES // 2**20} MB")
    return data


def decode(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decode an image file to an upright RGB image; of an animation, the first frame.

    at_least: shorter side in pixels that the caller is going to resize to. A JPEG may then be decoded at a reduced
    scale, never below DRAFT_FACTOR times that.  Raises Unreadable with the reason.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            _check_size(image.size)
            if at_least is not None:
                image.draft("RGB", (at_least * DRAFT_FACTOR, at_least * DRAFT_FACTOR))
            image.load()
            return to_rgb(_upright(image))
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(_not_an_image(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"more than {MAX_PIXELS // 10**6} megapixels") from None
    except Exception as error:  # Pillow's plugins raise whatever they meet in a damaged file
        raise Unreadable(f"damaged: {str(error) or type(error).__name__}") from error


@dataclass(frozen=True)
class Header:
    """What a file says of itself. size: (width, height) in pixels, as stored.  camera: make and model, "" for none."""

    format: str
    size: tuple[int, int]
    camera: str

    @property
    def format_number(self) -> int:
        """Place among FORMATS, from 1; 0 for another."""
        return FORMATS.index(self.format) + 1 if self.format in FORMATS else 0

    @property
    def camera_number(self) -> int:
        """Of 24 bits, which a float32 holds exactly; 0 for none."""
        return zlib.crc32(self.camera.encode()) >> 8 if self.camera else 0


def header(data: bytes) -> Header:
    """What is known of an image file before its pixels are. Raises Unreadable."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            return Header(image.format or "", image.size, _camera(image))
    except Unreadable:
        raise
    except UnidentifiedImageError:
        raise Unreadable(_not_an_image(data)) from None
    except Exception as error:  # as in decode
        raise Unreadable(f"damaged: {str(error) or type(error).__name__}") from error


def _camera(image: Image.Image) -> str:
    try:
        exif = image.getexif()
        return " ".join(
            str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model)
        ).strip()
    except Exception:  # whatever a damaged EXIF block raises, it names no camera
        return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: transparency on white, 16-bit and float greys scaled to their full range."""
    if image.mode.startswith(("I", "F")):
        return _grey_to_8_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about odd files while worker threads decode: the outcome says enough.

    Filters of warnings belong to the process, not to a thread, so this stands around a pool, never inside it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width}x{height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says.

    Pillow's own `exif_transpose` writes the EXIF back and fails where it is odd, on many a photo whose pixels are good.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever a damaged EXIF block raises, it says nothing about the pixels
        return image
    turn = _TURNS.get(orientation or 1)
    return image if turn is None else image.transpose(turn)


def _grey_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit greys by their format's range, 32-bit and float ones by their own smallest and largest value."""
    values = np.asarray(image).astype(np.float32)
    if image.mode.startswith("I;16") or (image.mode == "I" and values.min() >= 0 and values.max() <= 65535):
        low, high = 0.0, 65535.0
    elif not np.isfinite(values).all():
        raise Unreadable("damaged: grey values that are not finite")
    else:
        low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255.0 / max(high - low, 1e-12))
    return Image.fromarray(np.round(scaled).clip(0, 255).astype(np.uint8))


def _formats(data: bytes) -> tuple[str, ...]:
    """The formats that a file is tried as. A HEIC photo needs a library of its own, which is loaded for the first."""
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
