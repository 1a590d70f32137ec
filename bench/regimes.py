"""Accuracy and seconds of every regime on real photos, as whole processes: ours, and the tutorial's recipe.

    python bench/regimes.py [--sets hymenoptera,wbc4] [--regimes frozen,full] [--seeds 0,1,2]

Takes sets from REGRAFT_DATA. A set without splits of its own is split anew by each seed. Measures what
bench/results/regimes.json does not hold yet, so it can be done in pieces; then fills the table in README.md. Each run
finds the backbone's graph in the cache, and no features.
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
from collections.abc import Callable, Sequence
from pathlib import Path

from record import HERE, cases, complete, fill, where
from regraft.core.statistics import accuracy

SETS = ("hymenoptera", "grocery_fruit5", "wbc4", "signdigits10s")
REGIMES = {
    "frozen": ["--mode", "frozen"],
    "frozen searched": ["--mode", "frozen", "--search"],
    "full": ["--mode", "full"],
    "scratch": ["--mode", "scratch"],
    "tutorial frozen": ["--mode", "frozen", "--recipe", "tutorial"],
    "tutorial full": ["--mode", "full", "--recipe", "tutorial"],
    "tutorial scratch": ["--mode", "scratch", "--recipe", "tutorial"],
}
RESULT = HERE / "results" / "regimes.json"


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--regimes", default=",".join(REGIMES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--busy", action="store_true", help="other work goes on on its cores: its seconds do not count")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    seeds, regimes = map(int, arguments.seeds.split(",")), arguments.regimes.split(",")
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        graphs = traced(Path(folder))
        result = complete(
            arguments.result,
            "python bench/regimes.py",
            cases(seed=seeds, regime=regimes, set=arguments.sets.split(",")),
            lambda case: {**measure(case, graphs, Path(folder), REGIMES[case["regime"]]), "busy": arguments.busy},
        )
    if arguments.result == RESULT:
        fill("regimes", table(result))
    print(table(result))


def traced(folder: Path) -> Path:
    """A cache that holds the default backbone's graph and nothing else."""
    photos = Path(os.environ["REGRAFT_DATA"]) / "hemlock2"
    run(["train", photos, "--mode", "frozen", "--out", folder / "warm"], folder / "graphs")
    shutil.rmtree(folder / "graphs" / "features")
    return folder / "graphs"


def measure(case: dict, graphs: Path, scratch: Path, options: Sequence[str]) -> dict:
    """One run with these options in a process of its own."""
    photos = Path(os.environ["REGRAFT_DATA"]) / case["set"]
    answer, seconds = trained(photos, [*options, "--seed", case["seed"]], graphs, scratch)
    return {**score(answer, photos), "seconds": round(seconds, 1)}


def score(answer: dict, photos: Path) -> dict:
    """How many photos were right, of how many, and whether the set has splits of its own."""
    a = answer["accuracy"]
    return {"num_right": round(a["value"] * a["n"]), "n": a["n"], "given": (photos / "train").is_dir()}


def trained(photos: Path, options: list, graphs: Path, scratch: Path) -> tuple[dict, float]:
    """What `regraft train` prints, and its seconds, with the graph in the cache and no features."""
    cache, out = scratch / "cache", scratch / "run"
    for left in (cache, out):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(graphs, cache)
    start = time.perf_counter()
    return run(["train", photos, *options, "--out", out], cache), time.perf_counter() - start


def run(arguments: list, cache: Path) -> dict:
    """`regraft ... --json --quiet`."""
    command = [sys.executable, "-m", "regraft", *map(str, arguments), "--json", "--quiet", "--offline"]
    env = {**os.environ, "REGRAFT_CACHE": str(cache)}
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


def table(result: dict) -> str:
    """A line for each regime: pooled accuracy with its interval, and median seconds, on each set."""
    lines = by_set(result["rows"], "regime", {regime: regime for regime in REGIMES}, cell)
    return "\n".join([*lines, "", f"Seconds on {where(result)}; `{result['command']}`."])


def by_set(
    rows: list[dict], key: str, names: dict[str, str], cell: Callable[[list[dict]], str], of: Sequence[str] = SETS
) -> list[str]:
    """A column for each set, a line for each value of a key that was measured. names: what a value is called."""
    sets = [name for name in of if any(row["set"] == name for row in rows)]
    lines = ["| | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for value, name in names.items():
        cells = [cell([row for row in rows if row["set"] == one and row[key] == value]) for one in sets]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def cell(rows: list[dict]) -> str:
    """`94.8 % (90.0 to 97.3), 6 s, 3x`. Runs on one given split share their photos: the interval is that of one.

    Seconds are those of runs that had their cores to themselves.
    """
    if not rows:
        return ""
    num_right, n = sum(r["num_right"] for r in rows), sum(r["n"] for r in rows)
    num_photos = rows[0]["n"] if rows[0]["given"] else n
    a = accuracy(round(num_photos * num_right / n), num_photos, "")
    quiet = [r["seconds"] for r in rows if not r["busy"]]
    seconds = f"{statistics.median(quiet):.0f} s, " if quiet else ""
    interval = f"{100 * a.low:.1f} to {100 * a.high:.1f}"
    return f"{100 * num_right / n:.1f} % ({interval}), {seconds}{len(rows)}x"


if __name__ == "__main__":
    main()
