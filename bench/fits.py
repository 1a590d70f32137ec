"""What cropping, padding and squashing photos is worth to a solved head, judged by photos with no part in it.

    python bench/fits.py [--sets hymenoptera,wbc4]

Each set as it is, and with its photos cut to 5:2 along their longer side; and 120 photos of the orchard, each put
anywhere into one of 5:2. Of each of five folds the photos are answered by a head solved on the others, its penalty
chosen there; "searched" is nested cross-validation of the whole search, as in bench/searching.py. Takes sets from
REGRAFT_DATA. Writes bench/results/fits.json, a set, a shape and a way at a time.
"""

import argparse
import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from record import HERE, cases, complete
from regraft.backbones.backbone import configured
from regraft.backbones.features import extract
from regraft.core.config import TrainConfig
from regraft.core.statistics import accuracy
from regraft.data.decode import decode
from regraft.data.orchard import unpack_orchard
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.models.linear_head import solve
from searching import nested

LONG = 5 / 2
DRAWN = "orchard"
SETS = (DRAWN, "signdigits10s", "hemlock2", "wbc4", "hymenoptera", "grocery_fruit5", "pollen2", "grocery_veg22")
WAYS = ("crop", "pad", "squash", "searched")


def main() -> None:
    """Measure what is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    names = parser.parse_args().sets.split(",")
    chosen = cases(set=names, shape=("5:2", "whole"), way=WAYS)
    wanted = [one for one in chosen if one["shape"] == "5:2" or one["set"] != DRAWN]
    result = complete(HERE / "results" / "fits.json", "python bench/fits.py", wanted, measure)
    for row in result["rows"]:
        print(f"{row['set']:16} {row['shape']:6} {row['way']:9} {accuracy(row['right'], row['n'], '')}")


def measure(case: dict) -> dict:
    """How many photos are right."""
    dataset = scan(photos_of(case["set"], case["shape"]))
    if case["way"] == "searched":
        found = nested(dataset)
        return {"right": found["searched"], "n": found["n"], "chosen": found["chosen"]}
    dataset, features = extract(configured(TrainConfig(fit=case["way"])), dataset)
    score = solve(features, len(dataset.classes), folds_of(dataset, 5, 0)).cross_validated
    return {"right": score.num_right, "n": score.n, "log_loss": score.log_loss}


def photos_of(name: str, shape: str) -> Path:
    """The folder of a set in a shape."""
    if name == DRAWN:
        return drawn()
    folder = Path(os.environ["REGRAFT_DATA"]) / name
    return folder if shape == "whole" else cut(folder)


@cache
def drawn() -> Path:
    """Photos of 5:2, in each of which one of the orchard lies anywhere, on the colour of its rim."""
    place, rng = Path(SCRATCH.name) / DRAWN, np.random.default_rng(0)
    for path in sorted(unpack_orchard(place / "as it is", train_per_class=60, val_per_class=0).rglob("*.jpg")):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((320, 240)))
        rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).mean(axis=0)
        long = rng.normal(rim, 12, (400, round(400 * LONG), 3))
        top, left = rng.integers(0, long.shape[0] - 240 + 1), rng.integers(0, long.shape[1] - 320 + 1)
        long[top : top + 240, left : left + 320] = pixels
        target = place / "long" / path.parent.name / path.with_suffix(".png").name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(long.clip(0, 255).astype(np.uint8)).save(target, compress_level=1)
    return place / "long"


@cache
def cut(folder: Path) -> Path:
    """A copy of a set in which every photo is the middle 5:2 of its own, until this process ends."""
    dataset, place = scan(folder), Path(SCRATCH.name) / folder.name
    for i, path in enumerate(dataset.paths):
        photo = decode(dataset.read(i))
        target = place / Path(path).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        photo.crop(middle(*photo.size)).save(target, compress_level=1)
    return place


def middle(width: int, height: int) -> tuple[int, int, int, int]:
    """The largest box 5:2 in the middle, lying or upright as the photo is: left, top, right, bottom."""
    if width < height:
        top, left, bottom, right = middle(height, width)
        return left, top, right, bottom
    w, h = min(width, round(height * LONG)), min(height, round(width / LONG))
    return (width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h


SCRATCH = tempfile.TemporaryDirectory(prefix="regraft-fits-")

if __name__ == "__main__":
    main()
