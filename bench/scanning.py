"""`regraft scan`: photos seen before, ten thousand new ones, a million paths.

    python bench/scanning.py [--photos DIR]

Whole processes, three times where nothing changes between. Without --photos, the photos seen before are those of
`REGRAFT_DATA/hymenoptera`, or the orchard. Prints a table, writes bench/results/scanning.json, and fills the table in
README.md.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from record import HERE, fill, machine, measured, processes, real_or_drawn

NUM_NEW, NUM_PATHS, ROUNDS = 10_000, 1_000_000, 3
LIST = """import sys
from pathlib import Path
from regraft.data.folder_layout import list_folder
from regraft.core.config import FolderOptions
print(len(list_folder(Path(sys.argv[1]), FolderOptions("top")).files))"""


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        photos = arguments.photos or real_or_drawn("hymenoptera", scratch)
        scan = [sys.executable, "-m", "regraft", "scan"]
        measured([*scan, photos], scratch / "cache")
        again = [measured([*scan, photos], scratch / "cache") for _ in range(ROUNDS)]
        new = [measured([*scan, draw(scratch / "new")], scratch / "cache")]
        listed = [measured([sys.executable, "-c", LIST, name(scratch / "names")], scratch / "cache")]
        num_photos = sum(1 for path in photos.rglob("*") if path.is_file())
    rows = {
        f"scan {num_photos} photos again": again,
        f"scan {NUM_NEW:,} new photos (drawn, 160x120)": new,
        f"list {NUM_PATHS:,} paths": listed,
    }
    summary = [
        {"name": what, "seconds": statistics.median(s for s, _ in runs), "megabytes": max(m for _, m in runs)}
        for what, runs in rows.items()
    ]
    result = {"command": "python bench/scanning.py", **machine(), "rows": summary}
    (HERE / "results" / "scanning.json").write_text(json.dumps(result, indent=2) + "\n")
    print(processes(result, 1))
    fill("scanning", processes(result, 1))


def draw(folder: Path) -> Path:
    """Ten thousand small photos of ten classes, none like another."""
    rng = np.random.default_rng(0)
    for number in range(NUM_NEW):
        place = folder / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(place / f"{number}.jpg")
    return folder


def name(folder: Path) -> Path:
    """A million empty files in ten classes."""
    for number in range(NUM_PATHS // 1000):
        place = folder / f"class{number % 10}" / f"part{number}"
        place.mkdir(parents=True)
        for i in range(1000):
            os.mknod(place / f"{i}.jpg")
    return folder


if __name__ == "__main__":
    main()
