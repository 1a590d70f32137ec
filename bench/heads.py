"""What standardising features in one way or another is worth to a solved head, judged by photos with no part in it.

    python bench/heads.py [--sets hymenoptera,wbc4]

Five outer folds; the penalty is chosen inside, by five inner ones, exactly as `regraft train` does it. Beside accuracy
and log loss of the outer folds stands the log loss that cross-validation inside promised. Takes sets from REGRAFT_DATA;
the last two had no part in choosing. Writes bench/results/heads.json, a set and a way at a time.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from record import HERE, cases, complete
from regraft.backbones.backbone import configured
from regraft.backbones.features import Features, extract
from regraft.core.config import TrainConfig
from regraft.core.progress import QUIET
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.models import linear_head, standardised
from regraft.models.logistic import log_softmax

SETS = ("hymenoptera", "grocery_fruit5", "wbc4", "signdigits10s", "hemlock2", "grocery_veg22", "pollen2")
Scale = Callable[[np.ndarray, np.ndarray], np.ndarray]


def own_spread(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Every feature by its own spread, as it was before."""
    noise = np.maximum(1e-8 * spread.max(), 1e-6 * np.abs(mean))
    return np.where(spread > noise, spread, 1.0)


def shrunk(_: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Halfway to the median spread, in squares."""
    return np.sqrt((np.square(spread) + np.median(spread[spread > 0]) ** 2) / 2)


def signed_root(x: np.ndarray) -> np.ndarray:
    """Square roots, of unit length: F. Perronnin et al., "Improving the Fisher kernel", ECCV 2010."""
    roots = np.sign(x) * np.sqrt(np.abs(x))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-9), np.float32)


WAYS: dict[str, tuple[Scale, Callable[[np.ndarray], np.ndarray]]] = {
    "own spread": (own_spread, np.asarray),
    "floor": (standardised.floored, np.asarray),
    "shrunk": (shrunk, np.asarray),
    "floor, roots of unit length": (standardised.floored, signed_root),
}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    wanted = cases(set=parser.parse_args().sets.split(","), way=WAYS)
    complete(HERE / "results" / "heads.json", "python bench/heads.py", wanted, measure)


def measure(case: dict) -> dict:
    """Accuracy and log loss of outer folds, and what was promised inside."""
    standardised.floored, change = WAYS[case["way"]]
    dataset = scan(Path(os.environ["REGRAFT_DATA"]) / case["set"])
    dataset, features = extract(configured(TrainConfig()), dataset, progress=QUIET)
    folds, x, num_classes = folds_of(dataset, 5, 0), change(features.x), len(dataset.classes)
    lost, promised = np.full(len(folds), np.nan), []
    num_right = 0
    for number in np.unique(folds[folds >= 0]):
        inside, outside = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        learned = dataset.subset(inside)
        known = Features(x[inside], learned.labels, learned.hashes)
        head = linear_head.solve(known, num_classes, folds_of(learned, 5, 0))
        log_p = log_softmax(head.logits(x[outside]).astype(np.float64))
        lost[outside] = -log_p[np.arange(len(outside)), dataset.labels[outside]]
        num_right += int((log_p.argmax(axis=1) == dataset.labels[outside]).sum())
        promised.append(head.cross_validated.log_loss if head.cross_validated else np.nan)
    n = int((folds >= 0).sum())
    return {"right": num_right, "n": n, "log_loss": float(np.nanmean(lost)), "promised": float(np.mean(promised))}


if __name__ == "__main__":
    main()
