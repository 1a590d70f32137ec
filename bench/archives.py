"""How fast features come from archives beside a folder, and what a large tar takes.

    python bench/archives.py [--photos 600] [--rounds 5] [--gigabytes 20]

The same photos of 500x375 in a folder, a zip, a packed zip, a tar and a tar.gz, listed, hashed and extracted in turn;
of several rounds the fastest counts, as other work on the machine only slows. Then `regraft train --mode frozen` on a
tar of drawn photos of 4 MB, whose files are blank behind the picture and take no room on the disk. With 0 photos or 0
gigabytes what is on record stays. Writes bench/results/archives.json.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from limits import timed, versions
from record import HERE, machine, measured, real_or_drawn
from regraft.backbones.backbone import load_backbone
from regraft.backbones.features import extract
from regraft.data.scan import list_photos

PHOTO_BYTES = 4 * 2**20
SHADES = {"ash": (60, 90, 150), "birch": (150, 90, 60), "cedar": (70, 150, 80)}


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        os.environ["REGRAFT_CACHE"] = str(scratch / "cache")
        file = HERE / "results" / "archives.json"
        result = json.loads(file.read_text()) if file.exists() else {}
        result |= {"command": "python bench/archives.py", **machine()}
        if arguments.photos:
            seconds = speeds(scratch, arguments.photos, arguments.rounds)
            result |= {"num_photos": arguments.photos, "seconds": seconds}
            result["of_folder"] = {name: ratios(seconds, name) for name in seconds}
        if arguments.gigabytes:
            result["large"] = trained(scratch, arguments.gigabytes)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result.get(name) for name in ("of_folder", "large")}, indent=1))


def ratios(seconds: dict[str, dict[str, list[float]]], name: str) -> dict[str, float]:
    """Speed of each step beside the folder's, by the fastest rounds, and by the processor's time in all rounds."""
    own, folder = seconds[name], seconds["folder"]
    fastest = {step: min(folder[step]) / min(own[step]) for step in ("list", "extract")}
    return {**fastest, "processor": sum(folder["processor"]) / sum(own["processor"])}


def speeds(scratch: Path, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of listing with hashing, of extraction, and of the processor for both, of every round."""
    places, backbone = (
        packed(versions(real_or_drawn("hymenoptera", scratch), scratch / "photos", count)),
        load_backbone(),
    )
    extract(backbone, list_photos(places["folder"]))  # what is made once
    found: dict[str, dict[str, list[float]]] = {name: {"list": [], "extract": [], "processor": []} for name in places}
    for number in range(rounds):
        for name in sorted(places, reverse=number % 2 == 1):
            shutil.rmtree(scratch / "cache" / "features")
            began, listed = time.process_time(), []
            found[name]["list"].append(timed(lambda place=places[name], to=listed: to.append(list_photos(place))))
            found[name]["extract"].append(timed(lambda dataset=listed[0]: extract(backbone, dataset)))
            found[name]["processor"].append(time.process_time() - began)
            print(number, name, {step: round(values[-1], 2) for step, values in found[name].items()}, file=sys.stderr)
    return found


def packed(folder: Path) -> dict[str, Path]:
    """The same photos in every kind of archive."""
    photos, around = sorted(folder.rglob("*.jpg")), folder.parent
    for name, method in (("stored.zip", zipfile.ZIP_STORED), ("packed.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(around / name, "w", method) as archive:
            for path in photos:
                archive.write(path, path.relative_to(folder))
    for name, mode in (("photos.tar", "w"), ("photos.tar.gz", "w:gz")):
        with tarfile.open(around / name, mode) as archive:
            archive.add(folder, "photos")
    names = ("stored.zip", "packed.zip", "photos.tar", "photos.tar.gz")
    return {"folder": folder, **{name: around / name for name in names}}


def trained(scratch: Path, gigabytes: float) -> dict[str, float]:
    """Seconds and peak memory of training on a large tar."""
    train = [sys.executable, "-m", "regraft", "train", "--mode", "frozen", "--no-report", "--quiet"]
    measured([*train, draw(scratch / "few.tar", 60), "--out", scratch / "few"], scratch / "cache")
    count = round(gigabytes * 10**9 / PHOTO_BYTES)
    place = draw(scratch / "large.tar", count, seed=1)
    size, on_disk = place.stat().st_size, 512 * place.stat().st_blocks
    print(f"{size / 1e9:.1f} GB, {on_disk / 1e9:.2f} GB on disk", file=sys.stderr, flush=True)
    seconds, megabytes = measured([*train, place, "--out", scratch / "run"], scratch / "cache")
    summary = json.loads((scratch / "run" / "result.json").read_text())
    assert summary["images"]["used"] == count, summary["images"]
    return {"bytes": size, "on_disk": on_disk, "num_photos": count, "seconds": seconds, "megabytes": megabytes}


def draw(file: Path, count: int, seed: int = 0) -> Path:
    """A tar of noisy photos of three shades, each filled up with nothing to 4 MB."""
    rng, names = np.random.default_rng(seed), list(SHADES)
    with open(file, "wb") as opened:
        for number in range(count):
            name, packed_photo = names[number % len(names)], io.BytesIO()
            coarse = np.asarray(SHADES[name]) + rng.normal(0, 40, (24, 32, 3))
            photo = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
            photo.save(packed_photo, "JPEG")
            info = tarfile.TarInfo(f"{name}/{number:06d}.jpg")
            info.size, start = PHOTO_BYTES, opened.tell()
            opened.write(info.tobuf() + packed_photo.getvalue())
            opened.seek(start + tarfile.BLOCKSIZE + PHOTO_BYTES)
        opened.truncate(opened.tell() + 2 * tarfile.BLOCKSIZE)
    return file


if __name__ == "__main__":
    main()
