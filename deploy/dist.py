"""Build wheel and sdist, check them, and try the wheel in clean environments.

    python deploy/dist.py [--python PYTHON]... [--train]

For each PYTHON (this one, if none is named) the wheel is installed with its core alone, and has to train frozen models,
learn from more photos, predict, evaluate, report, export and serve where there is no torch; its model has to have the
bytes of the one that the environment that runs this script trains. With --train it is also installed as regraft[train],
which trains all layers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

from regraft import train
from regraft.data.orchard import unpack_orchard

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
CONSTRAINTS = ("--constraint", ROOT / "constraints.txt")
BEGAN = time.monotonic()
ABSENT = ("torch", "torchvision", "timm", "sklearn", "scipy", "onnxruntime")
NEEDED = (
    "regraft/py.typed",
    "regraft/serving/page/index.html",
    "regraft/reporting/templates/report.html",
    "regraft/data/orchard.zip",
    "regraft/backbones/pretrained/tf_efficientnet_lite0.safetensors",
    "regraft/backbones/pretrained/LICENSE",
)
MODEL = ("model.onnx", "model.safetensors", "config.json")
MEGA = 2**20
MAX_WHEEL_BYTES, MAX_CORE_BYTES = 22 * MEGA, 450 * MEGA


def main() -> None:
    """Everything, and a line for each thing that holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--train", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-dist-") as folder:
        scratch = Path(folder)
        wheel = built(scratch)
        photos = unpack_orchard(scratch / "photos", train_per_class=8, val_per_class=4)
        train(photos, scratch / "run", mode="frozen", quiet=True, report=False)
        for number, python in enumerate(arguments.python or [sys.executable]):
            try_core(environment(scratch / f"core{number}", python, str(wheel)), scratch, photos)
            if arguments.train:
                try_train(environment(scratch / f"train{number}", python, f"{wheel}[train]"), scratch, photos)


def built(scratch: Path) -> Path:
    """The wheel. Its sdist lies beside it, and both pass twine's check."""
    tools = environment(scratch / "tools", sys.executable, "build", "twine")
    for old in DIST.glob("regraft-*"):
        old.unlink()
    run(tools / "python", "-m", "build", "--outdir", DIST, ROOT)
    run(tools / "python", "-m", "twine", "check", "--strict", *DIST.glob("regraft-*"))
    (wheel,) = DIST.glob("regraft-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in NEEDED:
        assert needed in names, f"{wheel.name} lacks {needed}"
    size = wheel.stat().st_size
    assert size <= MAX_WHEEL_BYTES, f"{wheel.name} has {size / MEGA:.0f} MB"
    report(f"{', '.join(sorted(path.name for path in DIST.iterdir()))}: {size / MEGA:.0f} MB, built and checked")
    return wheel


def environment(folder: Path, python: str, *packages: str) -> Path:
    """A clean environment with some packages; its folder of programs."""
    run(python, "-m", "venv", folder)
    programs = folder / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CONSTRAINTS, *packages)
    return programs


def try_core(programs: Path, scratch: Path, photos: Path) -> None:
    """Train frozen, add, predict, evaluate, report, export, serve; and training all layers says what it lacks."""
    version = run(programs / "python", "--version").strip()
    found = f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)])"
    assert run(programs / "python", "-c", found).strip() == "[]", "the core brings what only training needs"
    size = sum(path.lstat().st_size for path in programs.parent.rglob("*"))
    assert size <= MAX_CORE_BYTES, f"the core has {size / MEGA:.0f} MB"
    regraft, photo = programs / "regraft", next(photos.glob("val/kiwi/*.jpg"))
    bundle, cache = scratch / f"run-{programs.parent.name}", scratch / f"cache-{programs.parent.name}"
    run(regraft, "train", photos, "--mode", "frozen", "--out", bundle, "--offline", cache=cache)
    for name in MODEL:
        same = (bundle / "bundle" / name).read_bytes() == (scratch / "run" / "bundle" / name).read_bytes()
        assert same, f"{name} is another one than where torch is installed"
    run(regraft, "add", bundle, more_photos(scratch), "--out", scratch / f"grown-{programs.parent.name}", cache=cache)
    run(regraft, "export", bundle, "--format", "openvino", "--out", scratch / "exported.xml", cache=cache)
    assert json.loads(run(regraft, "predict", bundle, photo, "--json"))["label"] == "kiwi"
    assert json.loads(run(regraft, "evaluate", bundle, photos / "val", "--json"))["accuracy"]["n"] == 8
    run(regraft, "report", bundle, photos / "val", "--out", scratch / "report.html")
    command = [regraft, "train", photos, "--mode", "full"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)
    assert (refused.returncode, "pip install 'regraft[train]'" in refused.stderr) == (1, True), refused.stderr
    try_server(regraft, bundle, photo)
    report(f"{version}, core alone, {size / MEGA:.0f} MB: trains frozen, adds, predicts, reports, exports, serves")


def more_photos(scratch: Path) -> Path:
    """Four of each class that the photos to learn from lack."""
    folder = unpack_orchard(scratch / "more", train_per_class=12, val_per_class=0) / "train"
    for known in folder.glob("*/*_00[0-7].jpg"):
        known.unlink()
    return folder


def try_server(regraft: Path, bundle: Path, photo: Path) -> None:
    """One request to a server on a free port."""
    command = [regraft, "serve", bundle, "--port", "0", "--workers", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            told: list[str] = []
            while "http://" not in (line := server.stderr.readline()):
                told.append(line)
                if not line:
                    raise SystemExit(f"the server did not start:\n{''.join(told)}")
            address = next(word for word in line.split() if word.startswith("http://"))
            headers = {"Content-Type": "image/jpeg"}
            asked = urllib.request.Request(f"{address}v1/predict", photo.read_bytes(), headers)
            with urllib.request.urlopen(asked, timeout=60) as answer:
                assert json.load(answer)["predictions"][0]["label"] == "kiwi"
        finally:
            server.terminate()


def try_train(programs: Path, scratch: Path, photos: Path) -> None:
    """Train frozen and full, offline, with a cache of its own."""
    version = run(programs / "python", "--version").strip()
    for mode in ("frozen", "full"):
        out = scratch / f"trained-{programs.parent.name}-{mode}"
        epochs = ["--epochs", "1"] if mode == "full" else []
        command = [programs / "regraft", "train", photos, "--mode", mode, *epochs, "--out", out, "--offline", "--json"]
        assert json.loads(run(*command, cache=scratch / f"cache-{programs.parent.name}"))["accuracy"]["n"] == 8
    report(f"{version}, regraft[train]: trains frozen and full")


def run(*command: object, cache: Path | None = None) -> str:
    """Stdout of a program that has to end well; without what the caller's environment would lend it."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"REGRAFT_CACHE": str(cache)} if cache else {}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def report(line: str) -> None:
    """A line with the seconds so far."""
    print(f"{time.monotonic() - BEGAN:4.0f} s  {line}", flush=True)


if __name__ == "__main__":
    main()
