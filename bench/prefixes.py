"""Training the last stages behind frozen ones that run once, beside training all layers: speed and accuracy.

    python bench/prefixes.py [--sets wbc4,signdigits10s] [--seeds 0,1,2]

Takes sets from REGRAFT_DATA. All contenders of a set and seed run one after the other, as whole processes that find
the backbone's graph in the cache, and no features. Photos a second are those of the median epoch, judging included.
Measures what bench/results/prefixes.json does not hold yet, so it can be done in pieces; then fills the table in
README.md.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from record import HERE, cases, complete, fill, where
from regimes import cell, score, traced, trained

SETS = ("wbc4", "signdigits10s", "hymenoptera")
CONTENDERS = {
    "all layers": [],
    "last two stages": ["--unfreeze", 2, "--views", 6],
    "last stage": ["--unfreeze", 1, "--views", 6],
}
RESULT = HERE / "results" / "prefixes.json"


def main() -> None:
    """Measure what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--busy", action="store_true", help="other work goes on beside it: its seconds do not count")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    seeds = map(int, arguments.seeds.split(","))
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        graphs = traced(Path(folder))
        result = complete(
            arguments.result,
            "python bench/prefixes.py",
            cases(seed=seeds, set=arguments.sets.split(","), contender=CONTENDERS),
            lambda case: {**measure(case, graphs, Path(folder)), "busy": arguments.busy},
        )
    if arguments.result == RESULT:
        fill("prefixes", table(result))
    print(table(result))


def measure(case: dict, graphs: Path, scratch: Path) -> dict:
    """One training in a process of its own."""
    photos = Path(os.environ["REGRAFT_DATA"]) / case["set"]
    options = ["--mode", "full", "--seed", case["seed"], "--no-report", *CONTENDERS[case["contender"]]]
    answer, seconds = trained(photos, options, graphs, scratch)
    lines = (scratch / "run" / "photos.jsonl").read_text().splitlines()
    num_train = sum(json.loads(line).get("split") == "train" for line in lines)
    return {
        **score(answer, photos),
        "photos_per_s": num_train / statistics.median(row["seconds"] for row in answer["history"]),
        "frozen_stages_s": answer["seconds"].get("run_frozen_stages", 0.0),
        "seconds": round(seconds, 1),
    }


def table(result: dict) -> str:
    """A line for each contender: accuracy and seconds on each set, and how many times faster it learns."""
    rows = result["rows"]
    sets = [name for name in SETS if any(row["set"] == name for row in rows)]
    lines = ["| what learns | photos/s, beside all layers | " + " | ".join(sets) + " |"]
    lines.append("|---|---:|" + "---:|" * len(sets))
    for contender in CONTENDERS:
        own = [row for row in rows if row["contender"] == contender]
        cells = [cell([row for row in own if row["set"] == name]) for name in sets]
        lines.append(f"| {contender} | {faster(contender, rows):.1f} x | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


def faster(contender: str, rows: list[dict]) -> float:
    """Median ratio of photos a second over sets and seeds."""
    speed = {(row["set"], row["seed"], row["contender"]): row["photos_per_s"] for row in rows}
    pairs = [(speed[name, seed, who], speed[name, seed, "all layers"]) for name, seed, who in speed if who == contender]
    return statistics.median(own / usual for own, usual in pairs)


if __name__ == "__main__":
    main()
