"""What the search for better frozen features is worth, judged by photos that had no part in it, and what it takes.

    python bench/searching.py [--sets hymenoptera,wbc4]

Nested cross-validation: on each fold's other photos ways are tried and the best is chosen, exactly as `regraft train`
does it, and its head is judged on the fold. Seconds are those of `regraft train --mode frozen --search` as a whole
process, with the networks' graphs in the cache: with new photos, and again. Takes sets from REGRAFT_DATA. Writes
bench/results/searching.json and fills README.md.
"""

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from record import HERE, fill, machine, where
from regimes import SETS, run
from regraft.backbones.backbone import configured
from regraft.backbones.features import extract
from regraft.core.config import TrainConfig
from regraft.core.progress import QUIET
from regraft.core.statistics import accuracy
from regraft.data.scan import Dataset, scan
from regraft.data.splits import folds_of
from regraft.models.feature_search import FeatureConfig, best, input_of, run_trial, search


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        for name in arguments.sets.split(","):
            photos = Path(os.environ["REGRAFT_DATA"]) / name
            os.environ["REGRAFT_CACHE"] = str(Path(folder) / "cache")
            rows.append({"set": name, **nested(scan(photos)), **timed(photos, Path(folder))})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    result = {"command": "python bench/searching.py", **machine(), "rows": rows}
    (HERE / "results" / "searching.json").write_text(json.dumps(result, indent=1) + "\n")
    fill("searching", table(result))
    print(table(result))


def nested(dataset: Dataset) -> dict:
    """Photos right with the usual features, and with those chosen on the other folds."""
    config = TrainConfig(mode="frozen", search=True)
    plain = configured(config)
    usual = FeatureConfig(input_of(plain), plain, extract(plain, dataset)[1].by_content)
    folds, counts, chosen = folds_of(dataset, 5, 0), {"plain": 0, "searched": 0}, []
    for number in np.unique(folds[folds >= 0]):
        learned = dataset.subset(np.flatnonzero(folds != number))
        evaluated = dataset.subset(np.flatnonzero(folds == number))
        inside = folds_of(learned, 5, 0)
        trials = search(run_trial(usual, learned, inside, QUIET), dataset, learned, inside, config, math.inf, QUIET)
        counts["plain"] += num_right(trials[0].feature_config, trials[0].head, evaluated)
        counts["searched"] += num_right(best(trials).feature_config, best(trials).head, evaluated)
        chosen.append(best(trials).feature_config.name)
    return {**counts, "n": int((folds >= 0).sum()), "chosen": chosen}


def num_right(feature_config: FeatureConfig, head: object, evaluated: Dataset) -> int:
    """How many of the photos a head has right."""
    return int((head.logits(feature_config.features.of(evaluated).x).argmax(axis=1) == evaluated.labels).sum())


def timed(photos: Path, scratch: Path) -> dict[str, float]:
    """Seconds with new photos and again, graphs in the cache."""
    command = ["train", photos, "--mode", "frozen", "--search", "--out", scratch / "run"]
    cache, seconds = scratch / "cache", {}
    shutil.rmtree(cache / "features")
    for name in ("new_s", "again_s"):
        began = time.perf_counter()
        run(command, cache)
        seconds[name] = time.perf_counter() - began
    return seconds


def table(result: dict) -> str:
    """A line for each set."""
    lines = ["| | usual features | searched | new photos | again |", "|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        a, b = (accuracy(row[name], row["n"], "") for name in ("plain", "searched"))
        cells = (f"{100 * x.value:.1f} % ({100 * x.low:.1f} to {100 * x.high:.1f})" for x in (a, b))
        lines.append(f"| {row['set']} | {' | '.join(cells)} | {row['new_s']:.0f} s | {row['again_s']:.0f} s |")
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


if __name__ == "__main__":
    main()
