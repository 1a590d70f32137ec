"""Pixels to the input that a backbone was trained on; the parameters belong to the weights and travel in the bundle."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps

from regraft.core.config import Fit
from regraft.data.decode import decode

MAX_SIZE = 4096  # pixels
MAX_ASPECT = 64  # of a picture that is resized whole; a centre crop shows nothing of what lies further out
CropMode = Literal["center", "squash", "border"]
CROP_MODES: dict[Fit, CropMode] = {"crop": "center", "pad": "border", "squash": "squash"}
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a network's input.

    Attributes:
        height: What the network takes, in pixels.
        width: What the network takes, in pixels.
        resize: What the shorter side ("center"), both sides ("squash") or the longer side ("border") is resized to
            first, given as the pair (height, width), in pixels.
        interpolation: Pillow's name of the resampling filter.
        crop_mode: "center" cuts the middle out, "squash" ignores the aspect ratio, "border" pads with the mean colour.
        mean: Mean of each of red, green and blue, on the scale 0..1.
        std: Standard deviation of each of red, green and blue, on the scale 0..1.
        grey_bits: How many bits the 16-bit greys that were learned from use, 8 to 15; None for all.

    Raises:
        ValueError: A value is one that no network takes.
    """

    height: int
    width: int
    resize: tuple[int, int]
    interpolation: str
    crop_mode: CropMode
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grey_bits: int | None = None

    def __post_init__(self) -> None:
        sizes = (self.height, self.width, *self.resize)
        if not all(isinstance(size, int) and 0 < size <= MAX_SIZE for size in sizes) or len(self.resize) != 2:
            raise ValueError(f"sizes are not whole numbers from 1 to {MAX_SIZE}: {sizes}")
        if self.interpolation not in FILTERS or self.crop_mode not in get_args(CropMode):
            raise ValueError(f"unknown interpolation or crop: {self.interpolation!r}, {self.crop_mode!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise ValueError(f"mean and std are not three numbers each, std above 0: {self.mean}, {self.std}")
        if self.grey_bits not in (None, *range(8, 16)):
            raise ValueError(f"16-bit greys that use {self.grey_bits!r} bits")

    @property
    def fill(self) -> tuple[int, int, int]:
        """Colour of the padding: the mean, which normalisation makes zero; black where a photo is cropped."""
        if self.crop_mode != "border":
            return 0, 0, 0
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def scaled(self, height: int) -> "Preprocessing":
        """Return the same for an input of another height, in pixels; everything grows alike."""
        width, *resize = (round(side * height / self.height) for side in (self.width, *self.resize))
        return replace(self, height=height, width=width, resize=(resize[0], resize[1]))

    def fitted(self, fit: Fit | None) -> "Preprocessing":
        """Return the same with another way to make photos that are not square fit the input.

        Args:
            fit: "crop" cuts the middle out of the photo, resized as it was; "pad" and "squash" show all of it, so it is
                resized to the input and no larger. None for the way it has.
        """
        if fit is None or CROP_MODES[fit] == self.crop_mode:
            return self
        resize = self.resize if fit == "crop" else (self.height, self.width)
        return replace(self, crop_mode=CROP_MODES[fit], resize=resize)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as stored in manifests and as part of keys in the cache.

        `grey_bits` is there only where it is set.
        """
        values = asdict(self)
        if self.grey_bits is None:
            del values["grey_bits"]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """Restore what `to_json` returned.

        Raises:
            TypeError: A field is missing, unknown or of another type.
            ValueError: A value is one that no network takes.
        """
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)

    def __str__(self) -> str:
        scale = f"{self.resize[0]}" if self.resize[0] == self.resize[1] else f"{self.resize[0]}x{self.resize[1]}"
        numbers = f"mean {_short(self.mean)}, std {_short(self.std)}"
        if self.grey_bits is not None:
            numbers += f", 16-bit greys of {self.grey_bits} bits"
        return f"{self.interpolation} resize to {scale}, {self.crop_mode} crop {self.height}x{self.width}, {numbers}"


def photo_to_input(data: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Decode a file and transform it to a network's input; normalisation is part of the network's graph.

    Args:
        data: The file's content.
        preprocessing: The network's.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        Unreadable: It is no photo, damaged or too large.
    """
    return transform(decode(data, max(preprocessing.resize), preprocessing.grey_bits), preprocessing)


def transform(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resize and crop an RGB image to a network's input.

    Bit for bit what torchvision's Resize and CenterCrop, and timm's evaluation transform, make of a Pillow image. They
    would resize a line of 65500 pixels to gigapixels; here its ends beyond MAX_ASPECT are cut off first.

    Args:
        image: Upright RGB.
        preprocessing: The network's.

    Returns:
        `(H, W, 3)` uint8.
    """
    if preprocessing.crop_mode == "center":
        image = _middle(image)
    size = _resized(image.size, preprocessing)
    image = image.resize(size, FILTERS[preprocessing.interpolation])
    return np.asarray(_center_crop(image, preprocessing.width, preprocessing.height, preprocessing.fill))


def _middle(image: Image.Image) -> Image.Image:
    width, height = min(image.width, MAX_ASPECT * image.height), min(image.height, MAX_ASPECT * image.width)
    return image if (width, height) == image.size else _center_crop(image, width, height, (0, 0, 0))


def _resized(size: tuple[int, int], p: Preprocessing) -> tuple[int, int]:
    """Size `(width, height)` after resizing."""
    width, height = size
    if p.crop_mode == "squash":
        return p.resize[1], p.resize[0]
    if p.crop_mode == "center" and p.resize[0] == p.resize[1]:
        short = p.resize[0]  # torchvision truncates the longer side
        return (short, max(1, int(short * height / width))) if width <= height else (int(short * width / height), short)
    choose = max if p.crop_mode == "border" else min
    ratio = choose(height / p.resize[0], width / p.resize[1])
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _center_crop(image: Image.Image, width: int, height: int, fill: tuple[int, int, int]) -> Image.Image:
    missing = (max(0, width - image.width), max(0, height - image.height))
    if any(missing):
        left, top = missing[0] // 2, missing[1] // 2
        image = ImageOps.expand(image, (left, top, missing[0] - left, missing[1] - top), fill=fill)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _short(values: tuple[float, ...]) -> str:
    unique = values[:1] if len(set(values)) == 1 else values
    return "/".join(f"{value:g}" for value in unique)
