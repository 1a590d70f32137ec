"""Install the lowest versions that pyproject.toml allows, and try the core with them.

    python deploy/floors.py [--python PYTHON]

Every package of the core has just the version of its floor; what those need in their turn is for pip to choose. There
it has to train a frozen model, predict, export, and serve one photo. Needs the network; about a minute on a quiet
machine.
"""

import argparse
import json
import re
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from dist import report, run, try_server

from regraft.data.orchard import unpack_orchard

ROOT = Path(__file__).parents[1]


def floors() -> list[str]:
    """The core's requirements, `name==lowest version`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.sub(r"^([\w.-]+)>=([\w.]+).*", r"\1==\2", one) for one in project["dependencies"]]


def main() -> None:
    """Everything, and a line for each thing that holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    python, began = parser.parse_args().python, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="regraft-floors-") as folder:
        scratch = Path(folder)
        run(python, "-m", "venv", scratch / "env")
        programs = scratch / "env" / "bin"
        run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROOT, *floors())
        report(f"installed: {', '.join(floors())}")
        try_core(programs, scratch)
    report(f"the floors hold, {time.monotonic() - began:.0f} s in all")


def try_core(programs: Path, scratch: Path) -> None:
    """Train frozen, predict, export, serve one photo."""
    regraft, photos = programs / "regraft", unpack_orchard(scratch / "photos", train_per_class=4, val_per_class=2)
    photo, cache = next((photos / "val" / "kiwi").glob("*.jpg")), scratch / "cache"
    train = (regraft, "train", photos, "--mode", "frozen", "--no-report", "--out", scratch / "run", "--json")
    assert json.loads(run(*train, cache=cache))["accuracy"]["n"] == 4
    bundle = scratch / "run" / "bundle"
    assert json.loads(run(regraft, "predict", bundle, photo, "--json", cache=cache))["label"] == "kiwi"
    run(regraft, "export", bundle, "--format", "openvino", "--out", scratch / "exported.xml", cache=cache)
    try_server(regraft, bundle, photo)
    report("trains frozen, predicts, exports, serves one photo")


if __name__ == "__main__":
    main()
