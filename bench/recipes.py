"""The recipe study: fine-tuning all layers from different heads, with BatchNorm in both modes, at several rates.

    python bench/recipes.py [--sets wbc4,signdigits10s] [--variants "zero, learning/crops"] [--seeds 0,1,2]

Takes sets from REGRAFT_DATA. Each run is a process of its own that finds the backbone's graph in the cache. Measures
what bench/results/recipes.json does not hold yet, so it can be done in pieces, and prints a table: right of all judged
photos, which other work on the machine does not change.
"""

import argparse
import os
import tempfile
from pathlib import Path

from record import HERE, cases, complete, where
from regimes import SETS, judged, traced, trained

ZERO, SOLVED = ["--head-start", "zero"], ["--head-start", "solved"]
LEARNING, KEPT = ["--batchnorm", "train"], ["--batchnorm", "eval"]
VARIANTS = {
    "zero, learning": [*ZERO, *LEARNING, "--learning-rate", 1e-3],
    "zero, learning, slow": [*ZERO, *LEARNING, "--learning-rate", 2e-4],
    "zero, kept": [*ZERO, *KEPT, "--learning-rate", 1e-3],
    "zero, kept, slow": [*ZERO, *KEPT, "--learning-rate", 5e-4],
    "zero, kept, slower": [*ZERO, *KEPT, "--learning-rate", 3e-4],
    "solved, learning": [*SOLVED, *LEARNING, "--learning-rate", 1e-3],
    "solved, kept": [*SOLVED, *KEPT, "--learning-rate", 3e-4],
    "solved, kept, fast": [*SOLVED, *KEPT, "--learning-rate", 6e-4],
    "solved, kept, slow": [*SOLVED, *KEPT, "--learning-rate", 1e-4],
    "crops": ["--augment", "crop"],
}
NAMES = {
    "zero, learning": "near-zero head, BatchNorm learning, rate 1e-3: the default where the frozen model errs often",
    "zero, learning, slow": "the same, rate 2e-4",
    "zero, kept": "near-zero head, BatchNorm's statistics kept, rate 1e-3",
    "zero, kept, slow": "the same, rate 5e-4",
    "zero, kept, slower": "the same, rate 3e-4",
    "solved, learning": "solved head, BatchNorm learning, rate 1e-3",
    "solved, kept": "solved head, BatchNorm's statistics kept, rate 3e-4: the default where it errs seldom",
    "solved, kept, fast": "the same, rate 6e-4",
    "solved, kept, slow": "the same, rate 1e-4",
    "crops": "the default, crops alone, no changed colours",
}


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--variants", default="/".join(VARIANTS), help="separated by /")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    seeds, variants = map(int, arguments.seeds.split(",")), arguments.variants.split("/")
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        graphs = traced(Path(folder))
        result = complete(
            HERE / "results" / "recipes.json",
            "python bench/recipes.py",
            cases(seed=seeds, variant=variants, set=arguments.sets.split(",")),
            lambda case: measure(case, graphs, Path(folder)),
        )
    print(table(result))


def measure(case: dict, graphs: Path, scratch: Path) -> dict:
    """One training in a process of its own."""
    photos = Path(os.environ["REGRAFT_DATA"]) / case["set"]
    options = ["--mode", "full", "--seed", case["seed"], "--no-report", *VARIANTS[case["variant"]]]
    answer, _ = trained(photos, options, graphs, scratch)
    return {**judged(answer, photos), "val_loss": answer["history"][-1]["val_loss"]}


def table(result: dict) -> str:
    """A line for each variant: right of all judged photos of each set, over the seeds."""
    rows = result["rows"]
    sets = [name for name in SETS if any(row["set"] == name for row in rows)]
    lines = ["| | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for variant in VARIANTS:
        cells = [cell([r for r in rows if r["set"] == name and r["variant"] == variant]) for name in sets]
        if any(cells):
            lines.append(f"| {NAMES[variant]} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


def cell(rows: list[dict]) -> str:
    """`109/120 (36, 37, 36)`: right of all, and of each seed."""
    if not rows:
        return ""
    each = ", ".join(str(row["num_right"]) for row in sorted(rows, key=lambda row: row["seed"]))
    return f"{sum(row['num_right'] for row in rows)}/{sum(row['n'] for row in rows)} ({each})"


if __name__ == "__main__":
    main()
