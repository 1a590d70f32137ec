"""What cropping, padding and squashing photos is worth to a solved head, judged by photos with no part in it.

    python bench/fits.py [--sets hymenoptera,wbc4]

Each set as it is, and with its photos cut to 5:2 along their longer side. Of each of five folds the photos are answered
by a head solved on the others, its penalty chosen there; "searched" is nested cross-validation of the whole search, as
in bench/searching.py. Takes sets from REGRAFT_DATA. Writes bench/results/fits.json, a set, a shape and a way at a time.
"""

import argparse
import os
import tempfile
from functools import cache
from pathlib import Path

from heads import SETS
from record import HERE, cases, complete
from regraft.backbones.backbone import configured
from regraft.backbones.features import extract
from regraft.core.config import TrainConfig
from regraft.core.statistics import accuracy
from regraft.data.decode import decode
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.models.linear_head import solve
from searching import nested

LONG = 5 / 2


def main() -> None:
    """Measure what is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    names = parser.parse_args().sets.split(",")
    wanted = cases(set=names, shape=("whole", "5:2"), way=("crop", "pad", "squash", "searched"))
    result = complete(HERE / "results" / "fits.json", "python bench/fits.py", wanted, measure)
    for row in result["rows"]:
        print(f"{row['set']:16} {row['shape']:6} {row['way']:9} {accuracy(row['right'], row['n'], '')}")


def measure(case: dict) -> dict:
    """How many photos are right."""
    folder = Path(os.environ["REGRAFT_DATA"]) / case["set"]
    dataset = scan(folder if case["shape"] == "whole" else cut(folder))
    if case["way"] == "searched":
        found = nested(dataset)
        return {"right": found["searched"], "n": found["n"], "chosen": found["chosen"]}
    dataset, features = extract(configured(TrainConfig(fit=case["way"])), dataset)
    score = solve(features, len(dataset.classes), folds_of(dataset, 5, 0)).cross_validated
    return {"right": score.num_right, "n": score.n, "log_loss": score.log_loss}


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
