"""Whatever a person holds as a photo, to a file's bytes or to pixels: for a bundle, an estimator and a server alike.

A photo is a path, a file's content, an open binary file, a Pillow image, an array or a tensor. Nothing else is taken,
and nothing is guessed: what could be read in two ways is refused.
"""

import io
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile

from regraft.core.errors import DataError
from regraft.data.decode import MAX_PIXELS, Unreadable, pixels_of, read_open
from regraft.data.sources import read_bytes
from regraft.data.transforms import Preprocessing, photo_to_input, transform

Photo = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray | Any
"""What is taken as a photo; Any stands for a torch tensor, whose library is not imported."""
EXPECTED = (
    "Expected a path, a file's bytes or an open binary file of a JPEG, PNG, WebP or similar, a Pillow image, "
    "an array (H, W, 3) or a tensor (3, H, W)."
)
CHANNELS = (1, 3, 4)


def to_input(photo: Photo, preprocessing: Preprocessing) -> np.ndarray:
    """Turn a photo of any kind into a network's input.

    Args:
        photo: A path, a file's content, an open binary file, a Pillow image, an array or a tensor.
        preprocessing: The network's.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        DataError: It is no photo, or cannot be read.
    """
    try:
        held = _held(photo, preprocessing.grey_bits)
        return transform(held, preprocessing) if isinstance(held, Image.Image) else photo_to_input(held, preprocessing)
    except Unreadable as error:
        raise _refused(photo, "The photo", error) from error


def content_of(photo: Photo, name: str = "The photo") -> bytes:
    """Turn a photo of any kind into a file's content; pixels into that of a PNG file that holds them exactly.

    Args:
        photo: A path, a file's content, an open binary file, a Pillow image, an array or a tensor.
        name: What an error calls it, where it has no path.

    Raises:
        DataError: It is no photo, or cannot be read.
    """
    buffer = io.BytesIO()
    try:
        if isinstance(photo, np.ndarray) and photo.dtype == np.uint16:
            _picture(photo, "(H, W)").save(buffer, "PNG")  # how many bits are used is not known yet
            return buffer.getvalue()
        held = _held(photo)
    except Unreadable as error:
        raise _refused(photo, name, error) from error
    if not isinstance(held, Image.Image):
        return held
    Image.fromarray(np.asarray(held)).save(buffer, "PNG", compress_level=1)  # the pixels alone, without what they bear
    return buffer.getvalue()


def photos_in_order(several: Any) -> list[Any]:
    """Several photos in the order in which they are held, whatever holds them.

    Args:
        several: A list, tuple, array, series, table of one column or anything else that gives photos one by one. The
            labels of an index mean nothing: photos are taken by position.

    Raises:
        DataError: It is a single photo, a table of several columns, or has no order.
    """
    if isinstance(several, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(
        several, "read"
    ):
        raise DataError(f"A single {type(several).__name__} is one photo. Expected several: put it in a list.")
    if isinstance(several, Mapping | Set):
        raise DataError(f"A {type(several).__name__} has no order that could be kept. Expected a list of photos.")
    shape = tuple(getattr(several, "shape", ()))
    if len(shape) == 2:
        several = _only_column(several, shape)
    elif len(shape) == 3 and shape[0 if _is_tensor(several) else 2] in CHANNELS:
        raise DataError(f"Pixels of shape {shape} are one photo. Expected several, (N, H, W, 3): put it in a list.")
    try:
        return list(several)
    except TypeError as error:
        raise DataError(f"A {type(several).__name__} holds no photos. Expected a list of photos.") from error


def _only_column(table: Any, shape: tuple[int, ...]) -> Any:
    names = getattr(table, "columns", None)
    if shape[1] == 1:
        return table[:, 0] if names is None else table[names[0]]
    which = f" ({', '.join(map(str, list(names)[:5]))}, ...)" if names is not None and len(names) else ""
    raise DataError(
        f"A table of {shape[1]} columns{which}, of shape {shape}, holds no photos. Expected one column of photos, or "
        "an array (N, H, W, 3). Hand over the column with the paths."
    )


def _is_tensor(value: Any) -> bool:
    """Of torch, which is not imported for it."""
    return type(value).__module__ == "torch" or type(value).__module__.startswith(("torch.", "torchvision."))


def _refused(photo: Photo, name: str, reason: Unreadable) -> DataError:
    what = str(photo)[:300] if isinstance(photo, str | os.PathLike) else name
    return DataError(f"{what} cannot be used: {reason}. {EXPECTED}")


def _held(photo: Photo, grey_bits: int | None = None) -> bytes | Image.Image:
    """Return a file's content, or upright RGB. Raises Unreadable."""
    if isinstance(photo, str | os.PathLike):
        return _content_at(photo)
    if isinstance(photo, bytes | bytearray | memoryview):
        if not len(photo):
            raise Unreadable("the file is empty")
        return bytes(photo)
    if isinstance(photo, Image.Image):
        return _of_pillow(photo, grey_bits)
    if isinstance(photo, np.ndarray):
        return pixels_of(_picture(photo, "(H, W, 3)"), grey_bits)
    if _is_tensor(photo):
        return pixels_of(_picture(_channels_last(photo), "(3, H, W)"))
    if hasattr(photo, "read"):
        return _content_in(photo)
    advice = "; numpy.asarray(...) makes an array of it" if hasattr(photo, "__array__") else ""
    raise Unreadable(f"{type(photo).__name__} is no photo{advice}")


def _content_at(path: str | os.PathLike[str]) -> bytes:
    name = os.fsdecode(path)
    if name.startswith(("http://", "https://", "s3://", "data:")):
        raise Unreadable("an address, not a file; download it and hand over its content")
    return read_bytes(Path(name))


def _content_in(file: Any) -> bytes:
    """Content of an open file, from its beginning where it has one; afterwards it stands where it stood."""
    if isinstance(file, io.TextIOBase):
        raise Unreadable('a file opened as text; open it with "rb"')
    try:
        if not (hasattr(file, "seekable") and file.seekable()):
            return read_open(_Stream(file))
        here = file.tell()
        try:
            file.seek(0)
            return read_open(file)
        finally:
            file.seek(here)
    except (OSError, ValueError, TypeError, EOFError) as error:  # closed, or not a file at all
        raise Unreadable(f"{type(file).__name__} cannot be read: {error}") from error


class _Stream(io.RawIOBase):
    """Wrapper for what has `read` and no more, such as an answer from the network."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        part = self._source.read(size)
        if not isinstance(part, bytes | bytearray):
            raise TypeError(f"read() gave {type(part).__name__}, not bytes")
        return bytes(part)


def _of_pillow(image: Image.Image, grey_bits: int | None) -> bytes | Image.Image:
    """Return the file of an image that was opened and not decoded yet, so that it is decoded as the file would be.

    Of any other image, its pixels.
    """
    file = getattr(image, "fp", None)
    is_untouched = isinstance(image, ImageFile.ImageFile) and bool(image.tile) and image.tell() == 0
    if is_untouched and file is not None and not getattr(file, "closed", True):
        return _content_in(file)
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(f"{image.width}x{image.height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read")
    return pixels_of(image, grey_bits)


def _channels_last(tensor: Any) -> np.ndarray:
    """Convert a tensor `(C, H, W)` or `(H, W)` to an array `(H, W, C)` or `(H, W)`."""
    held = tensor.detach().cpu()
    values = np.asarray(held.float().numpy() if held.is_floating_point() else held.numpy())
    if values.ndim == 3 and values.shape[0] not in CHANNELS:
        raise Unreadable(f"a tensor of shape {values.shape}; expected (3, H, W), channels first")
    return np.moveaxis(values, 0, -1) if values.ndim == 3 else values


def _picture(values: np.ndarray, expected: str) -> Image.Image:
    """Convert an array `(H, W)`, or `(H, W, C)` with C of 1, 3 or 4, to an image.

    Its values are uint8, bool, uint16 of one channel, or float in 0..1.
    """
    shape = values.shape
    if values.ndim == 3 and shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and shape[2] not in CHANNELS) or not values.size:
        raise Unreadable(f"pixels of shape {shape}{_advice(shape)}; expected {expected} or (H, W), one photo at a time")
    if values.shape[0] * values.shape[1] > MAX_PIXELS:
        raise Unreadable(f"{shape[1]}x{shape[0]} pixels; at most {MAX_PIXELS // 10**6} megapixels are read")
    if values.dtype == np.uint16 and values.ndim == 2:
        return Image.fromarray(np.ascontiguousarray(values.astype("<u2")))
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(values)))


def _advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in CHANNELS:
        return ", channels first"
    return {1: ", a row of a table", 4: ", several photos"}.get(len(shape), "")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Convert any kind of numbers whose range is sure to uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind != "f":
        raise Unreadable(f"pixels of type {values.dtype}; expected uint8 in 0..255 or floats in 0..1")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where one is not a number
        raise Unreadable(f"floats from {low:g} to {high:g}; expected 0..1, or uint8 in 0..255, not normalised")
    return np.asarray(np.round(values.astype(np.float32) * np.float32(255)).astype(np.uint8))
