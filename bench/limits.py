"""How close extraction and prediction come to what the cores allow.

    python bench/limits.py [--photos 2400] [--rounds 3] [--check]

The limit: decoding and resizing alone on all cores, then the engine alone on all cores, one after the other. Photos
are those of `REGRAFT_DATA/hymenoptera`, or of the orchard, 500x375, several versions of each. Every round measures
everything in turn. Then one photo is predicted by a process of its own. Writes bench/results/limits.json, fills
README.md. --check: one round of few photos, and exit 1 where extraction is less than half as close as on record.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from record import HERE, check, fill, machine, real_or_drawn, where
from regraft.backbones.backbone import Backbone, load_backbone
from regraft.backbones.features import extract
from regraft.bundle.bundle import load
from regraft.bundle.predict import predict
from regraft.data.scan import Dataset, list_photos, map_photos
from regraft.data.transforms import photo_to_input

SIZE = (500, 375)
COLD = ("predict one photo", "import regraft's predict", "import openvino", "start Python")


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        os.environ["REGRAFT_CACHE"] = str(scratch / "cache")
        count = 200 if arguments.check else arguments.photos
        photos = versions(real_or_drawn("hymenoptera", scratch), scratch / "photos", count)
        dataset, backbone = list_photos(photos), load_backbone()
        if arguments.check:
            check("limits", lambda: of_limit(extraction(dataset, backbone, scratch)), shares_of)
            return
        run = [sys.executable, "-m", "regraft", "train", real_or_drawn("hymenoptera", scratch), "--mode", "frozen"]
        subprocess.run([*map(str, run), "--out", str(scratch / "run"), "--quiet"], check=True, capture_output=True)
        rounds = [one_round(dataset, backbone, scratch) for _ in range(arguments.rounds)]
        cold = [one_photo(dataset.root / dataset.paths[0], scratch) for _ in range(5)]
    speed = {name: statistics.median(len(dataset) / r[name] for r in rounds) for name in rounds[0]}
    shares = {"extract of the limit": statistics.median(map(of_limit, rounds))}
    shares["predict of extract"] = statistics.median(r["extract"] / r["predict"] for r in rounds)
    seconds = {name: statistics.median(one[name] for one in cold) for name in COLD}
    result = {"command": "python bench/limits.py", **machine(), "num_photos": len(dataset)}
    result |= {"photos_per_s": speed, "shares": shares, "cold_s": seconds, "rounds": rounds}
    (HERE / "results" / "limits.json").write_text(json.dumps(result, indent=1) + "\n")
    fill("limits", table(result))
    print(table(result))


def of_limit(seconds: dict[str, float]) -> float:
    """Speed of extraction beside decoding and the engine one after the other, in a round."""
    return (seconds["decode"] + seconds["engine"]) / seconds["extract"]


def shares_of(recorded: dict) -> float:
    """The same, as it is on record."""
    return recorded["shares"]["extract of the limit"]


def one_round(dataset: Dataset, backbone: Backbone, scratch: Path) -> dict[str, float]:
    """Seconds that all photos take, each way."""
    bundle, paths = load(scratch / "run"), [dataset.root / path for path in dataset.paths]
    return {
        "read": timed(lambda: [path.read_bytes() for path in paths]),
        **extraction(dataset, backbone, scratch),
        "predict": timed(lambda: sum(1 for _ in predict(bundle, [dataset.root]))),
    }


def extraction(dataset: Dataset, backbone: Backbone, scratch: Path) -> dict[str, float]:
    """Seconds of extraction, and of what limits it."""
    shutil.rmtree(scratch / "cache" / "features", ignore_errors=True)
    n, p, engine = len(dataset), backbone.preprocessing, backbone.engine()
    noise = np.random.default_rng(0).integers(0, 256, (1, p.height, p.width, 3), np.uint8)
    paths = [dataset.root / path for path in dataset.paths]
    return {
        "decode": timed(lambda: over(lambda i: photo_to_input(paths[i].read_bytes(), p), n)),
        "engine": timed(lambda: over(lambda _: engine(noise), n)),
        "extract": timed(lambda: extract(backbone, dataset)),
    }


def over(function: Callable[[int], object], count: int) -> None:
    """On all cores."""
    for _ in map_photos(function, count, lambda _: None):
        pass


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_photo(photo: Path, scratch: Path) -> dict[str, float]:
    """Seconds of whole processes."""
    modules = "regraft.cli, regraft.bundle.bundle, regraft.bundle.predict"
    commands = (
        ["-m", "regraft", "predict", str(scratch / "run"), str(photo)],
        ["-c", f"import {modules}"],
        ["-c", "import openvino"],
        ["-c", ""],
    )
    return {
        name: timed(lambda command=command: subprocess.run([sys.executable, *command], check=True, capture_output=True))
        for name, command in zip(COLD, commands, strict=True)
    }


def versions(photos: Path, folder: Path, count: int) -> Path:
    """So many photos of 500x375, each one of another content: real ones, shifted."""
    found = [path for path in sorted(photos.rglob("*.jpg")) if path.stat().st_size]
    for number in range(count):
        path = found[number % len(found)]
        place = folder / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize(SIZE))
        shifted = np.roll(pixels, 37 * (number // len(found)), axis=1)
        Image.fromarray(shifted).save(place / f"{number}.jpg", quality=90)
    return folder


def table(result: dict) -> str:
    """What README.md shows."""
    names = {
        "read": "files read",
        "decode": "decoded, resized and cropped, nothing else",
        "engine": "through the engine, nothing else",
        "extract": "features of new photos, from file to cache",
        "predict": "predicted, from file to probabilities",
    }
    lines = ["| photos of 500x375 | photos/s |", "|---|---:|"]
    lines += [f"| {text} | {result['photos_per_s'][name]:.0f} |" for name, text in names.items()]
    shares, cold = result["shares"], result["cold_s"]
    lines += [
        "",
        f"{result['num_photos']} photos, {where(result)}. New features come at "
        f"{100 * shares['extract of the limit']:.0f} % of what decoding and the engine allow one after the other, "
        f"predictions at {100 * shares['predict of extract']:.0f} % of that speed. One photo by a process of its own: "
        f"{cold[COLD[0]]:.2f} s, of which {cold[COLD[1]] - cold[COLD[3]]:.2f} s are regraft's imports, "
        f"{cold[COLD[3]]:.2f} s Python's start; `{result['command']}`.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
