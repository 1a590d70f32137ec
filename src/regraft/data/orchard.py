"""The orchard: 320 photos of kiwis and watermelons that come with regraft, for the demo and for trying things out.

They are drawings, made by `tools/package_orchard.py`: light, ground, clutter, places and sizes are drawn without a look
at the label, so only the shape and texture of the fruit tell the classes apart.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from regraft.core.errors import DataError

ARCHIVE = Path(__file__).parent / "orchard.zip"
SHA256 = "c38ac245cc99e42c7dfc406cfcd92794d160a8035fb5b5da85a52e0ceeba63ca"
NUM_PHOTOS = 320
COUNTS = {"train": 120, "val": 40}  # photos of each class


def unpack_orchard(
    root: str | Path,
    *,
    train_per_class: int = COUNTS["train"],
    val_per_class: int = COUNTS["val"],
    on_photo: Callable[[], None] | None = None,
) -> Path:
    """Write photos of kiwis and watermelons as `root/{train,val}/{kiwi,watermelon}/*.jpg`.

    Args:
        root: A folder, made where it is missing. Files of the same names are replaced.
        train_per_class: How many of each class to learn from, the first ones; 120 at most.
        val_per_class: How many of each class to evaluate on, 40 at most.
        on_photo: Called after each photo.

    Returns:
        The folder.

    Raises:
        DataError: The archive in the installation is damaged.
    """
    root, counts = Path(root), {"train": train_per_class, "val": val_per_class}
    with zipfile.ZipFile(io.BytesIO(_archive())) as archive:
        for name in archive.namelist():
            place = PurePosixPath(name)
            if int(place.stem.rpartition("_")[2]) < counts[place.parts[0]]:
                _write(root / place, archive.read(name))
                if on_photo:
                    on_photo()
    return root


def _archive() -> bytes:
    try:
        data = ARCHIVE.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {ARCHIVE}: {error.strerror}. Install regraft anew.") from error
    if (digest := hashlib.sha256(data).hexdigest()) != SHA256:
        raise DataError(f"{ARCHIVE} is damaged: sha256 {digest}, expected {SHA256}. Install regraft anew.")
    return data


def _write(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}")
    hidden.write_bytes(data)
    os.replace(hidden, path)
