"""How photos look: size, light, sharpness and a thumbnail, measured once for each photo and then cached."""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from regraft.core.files import sha256_json
from regraft.core.progress import QUIET, Progress
from regraft.data import decode
from regraft.data.decode import Header, Unreadable
from regraft.data.decoders import decoder_identity
from regraft.data.feature_cache import FeatureCache, look_up_or_compute
from regraft.data.scan import Dataset, map_photos

THUMB = 16  # pixels
MEASURED = 256  # pixels of the shorter side at which light and sharpness are measured
VERSION = 1  # raise it when a row means something else


@dataclass(frozen=True)
class ImageStats:
    """How N photos look, a row for each.

    Attributes:
        width: `(N,)` int64, in pixels.
        height: `(N,)` int64, in pixels.
        brightness: `(N,)` float32, mean of the grey levels, 0..1.
        contrast: `(N,)` float32, standard deviation of the grey levels, which are 0..1.
        sharpness: `(N,)` float32, size of the finest detail relative to that of all detail.
        thumbnails: `(N, 16, 16, 3)` float32, 0..1.
        format: `(N,)` int64, numbers that are equal where the file's format is.
        camera: `(N,)` int64, numbers that are equal where the camera that the file's EXIF names is.
    """

    width: np.ndarray
    height: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    sharpness: np.ndarray
    thumbnails: np.ndarray
    format: np.ndarray
    camera: np.ndarray

    def without(self, indices: Container[int]) -> "ImageStats":
        """Return the rows of all photos but those with the given indices."""
        kept = [i for i in range(len(self.width)) if i not in indices]
        return ImageStats(**{name: column[kept] for name, column in vars(self).items()})


def look(dataset: Dataset, *, progress: Progress = QUIET) -> tuple[ImageStats, dict[int, str]]:
    """Measure every photo.

    Args:
        dataset: The photos.
        progress: Shows how far it is.

    Returns:
        The measurements, and the photos that cannot be decoded: index -> reason. The rows of these are zeros.

    Raises:
        DataError: A photo changed since it was scanned.
    """
    store = FeatureCache("looks", sha256_json([VERSION, *decoder_identity()])[:32])

    def compute(new: list[int], advance: Callable[[int], None]) -> Iterator[tuple[str, np.ndarray | str]]:
        for i, outcome in zip(new, map_photos(lambda k: _measured(dataset, new[k]), len(new), advance), strict=True):
            yield dataset.hashes[i], outcome

    rows, failures = look_up_or_compute(store, dataset, "look at photos", compute, progress)
    nothing = np.zeros(len(_FIELDS) + THUMB * THUMB * 3, np.float32)
    table = np.stack([rows.get(content, nothing) for content in dataset.hashes])
    columns = {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(_FIELDS.items())}
    return ImageStats(**columns, thumbnails=table[:, len(_FIELDS) :].reshape(-1, THUMB, THUMB, 3)), failures


_FIELDS = {
    "width": np.int64,
    "height": np.int64,
    "format": np.int64,
    "camera": np.int64,
    "brightness": np.float32,
    "contrast": np.float32,
    "sharpness": np.float32,
}


def _measured(dataset: Dataset, index: int) -> np.ndarray | str:
    try:
        data = dataset.read(index)
        return measure(decode.decode(data, at_least=MEASURED), decode.header(data))
    except Unreadable as error:
        return str(error)


def measure(image: Image.Image, header: Header) -> np.ndarray:
    """Measure a photo.

    Args:
        image: Its pixels.
        header: What its file says.

    Returns:
        Its row, `(7 + 16 * 16 * 3,)` float32: width, height, format, camera, brightness, contrast, sharpness, and the
        thumbnail.
    """
    scale = MEASURED / min(image.size)
    if scale < 1:
        longer = 4 * MEASURED  # of a line, no more than this is looked at
        image = image.resize([max(1, min(longer, round(scale * side))) for side in image.size], Image.Resampling.BOX)
    grey = np.asarray(image.convert("L"), np.float32) / 255
    thumbnail = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX), np.float32) / 255
    numbers = [*header.size, header.format_number, header.camera_number, grey.mean(), grey.std(), _sharpness(grey)]
    return np.concatenate([np.array(numbers, np.float32), thumbnail.ravel()])


def _sharpness(grey: np.ndarray) -> float:
    """Divide the standard deviation of the Laplacian by that of the grey levels, taken as 0.001 where it is smaller.

    0 for pictures with fewer than 3 pixels a side.
    """
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(laplacian.std() / max(float(middle.std()), 1e-3))
