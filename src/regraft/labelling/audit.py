"""How good the model is, from photos that were drawn at random for this purpose alone and labelled blindly.

The head never learns from them, so each is a fair trial whatever was labelled beside them, and whenever one stops.
"""

from collections.abc import Sequence
from math import exp, log

import numpy as np

from regraft.core.statistics import wilson_interval
from regraft.labelling.cards import AuditedAccuracy, LearningCurvePoint

MORE = 50  # labels whose gain is foretold
FEWEST_POINTS = 3  # of a curve that can be continued


def audited_accuracy(log_p: np.ndarray, y: np.ndarray) -> AuditedAccuracy | None:
    """Score a model on the audited photos.

    Args:
        log_p: `(n, C)` float32, logarithms of its probabilities.
        y: `(n,)` int64, the labels.

    Returns:
        The share that it has right with its interval; None without photos.
    """
    if not len(y):
        return None
    num_right = int((log_p.argmax(axis=1) == y).sum())
    low, high = wilson_interval(num_right, len(y))
    return AuditedAccuracy(num_right / len(y), low, high, len(y))


def curve_point(num_labels: int, audited: AuditedAccuracy) -> LearningCurvePoint:
    """Return a point of the learning curve."""
    return LearningCurvePoint(num_labels, audited.value, audited.low, audited.high)


def checkpoints(num_labels: int) -> list[int]:
    """Return after how many labels the curve has a point: 10, 20, 40 and so on, and now."""
    doubled = [10 * 2**i for i in range(30) if 10 * 2**i < num_labels]
    return [*doubled, num_labels]


def expected_gain(curve: Sequence[LearningCurvePoint], num_audited: int) -> float | None:
    """Foretell what another 50 labels add to the accuracy, by a power law through the errors so far.

    Args:
        curve: Points with growing numbers of labels.
        num_audited: How many photos were audited.

    Returns:
        0..1; None for a curve of fewer than three points.

    References:
        Learning curves as power laws: C. Cortes et al., "Learning curves: asymptotic values and rate of convergence",
        NIPS 1993.
    """
    if len(curve) < FEWEST_POINTS:
        return None
    sizes = [log(point.num_labels) for point in curve]
    errors = [log(((1 - point.accuracy) * num_audited + 0.5) / (num_audited + 1)) for point in curve]
    slope, start = np.polyfit(sizes, errors, 1)
    slope, last = min(float(slope), 0.0), curve[-1].num_labels
    if slope == 0.0:
        return 0.0
    now, then = (exp(float(start) + slope * log(n)) for n in (last, last + MORE))
    return max(0.0, min(now - then, 1 - curve[-1].accuracy))
