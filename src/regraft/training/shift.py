"""Whether the photos for evaluation come from elsewhere: whether a model tells them from the training photos."""

from dataclasses import replace

import numpy as np

from regraft.backbones.features import Features
from regraft.core.statistics import Accuracy, accuracy
from regraft.data.issues import Issue
from regraft.data.scan import Dataset
from regraft.data.splits import fold_ids
from regraft.models.linear_head import Head, out_of_fold

MOST = 300  # photos of each side: more tell no more, and take longer
MIN_DOMAIN_ACCURACY = 0.6  # lower end of the interval above which it is said; half is chance


def domain_accuracy(features: Features, is_outside: np.ndarray) -> Accuracy | None:
    """Measure how often a cross-validated logistic regression tells two kinds of photos apart.

    By chance it does so half of the time. As many photos of each class are taken from both sides, so that the classes
    themselves tell nothing.

    Args:
        features: Of N photos.
        is_outside: `(N,)` bool, the side that each photo is on.

    Returns:
        The share of photos whose side is found right; None where no class has two photos on both sides.
    """
    chosen = _matched(features, is_outside)
    rows = chosen if features.rows is None else features.rows[chosen]
    side, hashes = is_outside[chosen].astype(np.int64), tuple(features.hashes[i] for i in chosen)
    if len(chosen) < 4:
        return None
    folds = fold_ids(side, hashes)
    log_p = out_of_fold(Features(features.table, side, hashes, rows), 2, folds)
    known = np.isfinite(log_p).all(axis=1)
    correct = log_p[known].argmax(axis=1) == side[known]
    return accuracy(int(correct.sum()), len(correct), "told apart") if len(correct) else None


def split_shift(dataset: Dataset, features: Features, head: Head | None = None) -> list[Issue]:
    """Report each of the owner's splits whose photos can be told from the training photos too often for chance.

    Args:
        dataset: N photos, with the splits that its owner gave them.
        features: Of those photos, in that order.
        head: Solved on the training photos. Where it is given, its answers stand for the labels of all others: so what
            is found may decide how a model learns, and the labels that it is evaluated by have no part in it.

    Returns:
        Findings without photos: it is the whole split that differs.
    """
    sides, issues = np.array(dataset.splits), []
    if head is not None:
        answers = head.logits(features.x).argmax(axis=1)
        features = replace(features, y=np.where(sides == "train", features.y, answers))
    for name in ("val", "test"):
        part = np.flatnonzero((sides == "train") | (sides == name))
        if not (sides[part] == name).any() or not (sides[part] == "train").any():
            continue
        apart = domain_accuracy(features.of(dataset.subset(part)), sides[part] == name)
        if apart is not None and apart.low > MIN_DOMAIN_ACCURACY:
            text = (
                f"a model tells {name} photos from train photos in {100 * apart.value:.0f} % (chance 50 %): they come "
                "from elsewhere, so expect less than cross-validation on train says"
            )
            issues.append(Issue("split shift", (), text))
    return issues


def _matched(features: Features, is_outside: np.ndarray) -> np.ndarray:
    """Return `(n,)` int64: photos by content, of each class as many from one side as from the other.

    They are at most MOST of each side.
    """
    order = sorted(range(len(features.hashes)), key=lambda i: features.hashes[i])
    pairs: list[tuple[int, int]] = []
    for label in np.unique(features.y):
        members = [i for i in order if features.y[i] == label]
        inside, outside = ([i for i in members if is_outside[i] == side] for side in (False, True))
        pairs += zip(inside, outside, strict=False)
    pairs = sorted(pairs, key=lambda one: features.hashes[one[0]])[:MOST]
    return np.array([i for one in pairs for i in one], np.int64)
