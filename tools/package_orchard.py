"""Draw the demo's photos into src/regraft/data/orchard.zip.

    python tools/package_orchard.py

Half a minute on two cores. The photos are a function of the drawing code, numpy and Pillow, so another version of these
may draw other bytes; then `SHA256` in regraft/data/orchard.py has to follow.
"""

import tempfile
import zipfile
from pathlib import Path

from orchard.photos import draw_orchard
from regraft.core.files import sha256_file
from regraft.data.orchard import ARCHIVE


def main() -> None:
    """Draw, pack, and say the archive's hash."""
    with tempfile.TemporaryDirectory() as scratch:
        pack(draw_orchard(scratch), ARCHIVE)
    print(f"{ARCHIVE.stat().st_size:,} bytes, sha256 {sha256_file(ARCHIVE)}")


def pack(folder: Path, archive: Path) -> None:
    """A zip archive of all photos below a folder, a function of their names and content."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:  # JPEGs do not get smaller
        for path in sorted(folder.rglob("*.jpg")):
            packed.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix()), path.read_bytes())


if __name__ == "__main__":
    main()
