"""What grows with the number of photos: the whole of `regraft train`, and solving a head alone.

    python bench/scale.py [--photos 10000,100000] [--heads 10000,100000]

Photos are drawn, 128x128, in 100 classes; each set is trained on (frozen) from nothing but the backbone's graph, again,
and again with one photo in a hundred more. Heads are solved on drawn features, 1,280 numbers a photo, 100 classes.
Prints a table, writes bench/results/scale.json, and fills the table in README.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from record import HERE, fill, machine, measured, processes
from regraft.backbones.features import Features
from regraft.models.linear_head import solve

NUM_CLASSES, SIDE, NUM_FEATURES = 100, 128, 1280


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default="10000,100000")
    parser.add_argument("--heads", default="10000,100000")
    parser.add_argument("--head", type=int, help="solve a head of so many photos in this process")
    arguments = parser.parse_args()
    if arguments.head:
        solve_drawn(arguments.head)
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        for number in _numbers(arguments.heads):
            seconds, megabytes = measured([sys.executable, __file__, "--head", number], Path(folder))
            rows.append({"name": f"a head for {number:,} photos", "seconds": seconds, "megabytes": megabytes})
            print(rows[-1], file=sys.stderr, flush=True)
        for number in _numbers(arguments.photos):
            rows += trained(number, Path(folder) / str(number))
    result = {"command": "python bench/scale.py", **machine(), "rows": rows}
    (HERE / "results" / "scale.json").write_text(json.dumps(result, indent=2) + "\n")
    print(processes(result, 0))
    fill("scale", processes(result, 0))


def trained(number: int, scratch: Path) -> list[dict]:
    """Three trainings on so many drawn photos."""
    train = [sys.executable, "-m", "regraft", "train", "--mode", "frozen", "--quiet", "--out", scratch / "run"]
    warm, photos = draw(scratch / "few", 200, seed=1), draw(scratch / "photos", number)
    measured([*train, warm], scratch / "cache")  # leaves the backbone's graph
    rows = []
    for name in ("", " again", " and 1 % more"):
        if name.endswith("more"):
            draw(photos, number // 100, seed=2)
        seconds, megabytes = measured([*train, photos], scratch / "cache")
        rows.append({"name": f"train {number:,} photos{name}", "seconds": seconds, "megabytes": megabytes})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def draw(folder: Path, number: int, seed: int = 0) -> Path:
    """Photos that share a coarse pattern with others of their class, and have one of their own."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99).integers(0, 256, (NUM_CLASSES, 8, 8, 3))
    for i in range(number):
        label = i % NUM_CLASSES
        place = folder / f"class{label:02}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (shared[label] + rng.integers(0, 256, (8, 8, 3))) // 2
        image = Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(place / f"{seed}-{i}.jpg")
    return folder


def solve_drawn(number: int) -> None:
    """Solve a head, without its drawing; the parent measures the whole."""
    rng = np.random.default_rng(0)
    y = np.arange(number) % NUM_CLASSES
    centres = 0.15 * rng.standard_normal((NUM_CLASSES, NUM_FEATURES), np.float32)
    mixing = rng.standard_normal((NUM_FEATURES, NUM_FEATURES), np.float32) / np.sqrt(np.arange(1, NUM_FEATURES + 1))
    x = np.empty((number, NUM_FEATURES), np.float32)
    for start in range(0, number, 1024):
        own = y[start : start + 1024]
        noise = rng.standard_normal((len(own), NUM_FEATURES), np.float32)
        x[start : start + 1024] = np.maximum((noise + centres[own]) @ mixing.T.astype(np.float32), 0)
    began = time.perf_counter()
    head = solve(Features(x, y, tuple(f"{i:064x}" for i in range(number))), NUM_CLASSES, rng.integers(0, 5, number))
    print(time.perf_counter() - began, head.cross_validated, file=sys.stderr)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()
