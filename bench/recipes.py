"""The recipe study: fine-tuning all layers from different heads, with BatchNorm in both modes, at several rates.

    python bench/recipes.py [--sets wbc4,signdigits10s] [--variants "solved, kept, cut, 3e-4"] [--seeds 0,1,2]

A variant is where the head begins (zero, solved), what BatchNorm's statistics do (learning, kept), what becomes of long
gradients (free, cut at 1), and the backbone's rate; with crops, photos keep their colours. Takes sets from
REGRAFT_DATA. Each run is a process of its own that finds the backbone's graph in the cache. Measures what
bench/results/recipes.json does not hold yet, so it can be done in pieces, and prints a table: right of all judged
photos, which other work on the machine does not change.
"""

import argparse
import os
import tempfile
from pathlib import Path

from record import HERE, cases, complete, where
from regimes import SETS, by_set, score, traced, trained

WORDS = {
    "zero": ["--head-start", "zero"],
    "solved": ["--head-start", "solved"],
    "learning": ["--batchnorm", "train"],
    "kept": ["--batchnorm", "eval"],
    "free": ["--clip", 0],
    "cut": ["--clip", 1],
    "crops": ["--augment", "crop"],
}
VARIANTS = (
    "zero, learning, free, 1e-3",
    "zero, learning, free, 2e-4",
    "zero, learning, free, 1e-3, crops",
    "zero, kept, free, 1e-3",
    "zero, kept, free, 5e-4",
    "zero, kept, free, 3e-4",
    "zero, kept, cut, 1e-3",
    "solved, learning, free, 1e-3",
    "solved, kept, free, 6e-4",
    "solved, kept, free, 3e-4",
    "solved, kept, free, 1e-4",
    "solved, kept, cut, 6e-4",
    "solved, kept, cut, 3e-4",
)


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
    options = ["--mode", "full", "--seed", case["seed"], "--no-report", *settings(case["variant"])]
    answer, _ = trained(photos, options, graphs, scratch)
    return {**score(answer, photos), "val_loss": answer["history"][-1]["val_loss"]}


def settings(variant: str) -> list:
    """Options of `regraft train`: a word's, or else a rate."""
    return [option for word in variant.split(", ") for option in WORDS.get(word, ["--learning-rate", word])]


def table(result: dict) -> str:
    """A line for each variant: right of all judged photos of each set, over the seeds."""
    lines = by_set(result["rows"], "variant", {variant: variant for variant in VARIANTS}, cell)
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


def cell(rows: list[dict]) -> str:
    """`109/120 (36, 37, 36)`: right of all, and of each seed."""
    if not rows:
        return ""
    each = ", ".join(str(row["num_right"]) for row in sorted(rows, key=lambda row: row["seed"]))
    return f"{sum(row['num_right'] for row in rows)}/{sum(row['n'] for row in rows)} ({each})"


if __name__ == "__main__":
    main()
