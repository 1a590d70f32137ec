"""A head that is solved again after every answer: logistic regression whose cost has a bound.

Features are standardised and turned to the principal axes of all photos, labelled or not, of which the first 256 are
kept; a fit begins where the last one ended, and learns from at most 4096 labels, as many of each class as that allows.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.backbones.features import roots
from regraft.core.pca import principal_axes
from regraft.models.linear_head import FEW, MIDDLING
from regraft.models.logistic import Curvature, RowsInMemory, Solution, Task, fit_logistic, log_probabilities, moments
from regraft.models.standardised import floored

NUM_AXES = 256
SAMPLE = 4096  # photos that tell the axes where there are more
MOST_ROWS = 4096  # labels that a fit learns from
ABOVE, MOST_ABOVE = 0.1, 1e-3  # nats that a fit may lie above its minimum: in all, so that one label counts; a label
BLOCK = 4096  # photos turned at a time


@dataclass(frozen=True)
class Projection:
    """From raw features to what the head sees.

    Attributes:
        matrix: `(D, R)` float32, by which features are multiplied.
        offset: `(R,)` float32, which is subtracted then.
        variances: `(R,)` float64, of the photos along the axes.
        num_photos: How many photos were there when it was found.
    """

    matrix: np.ndarray
    offset: np.ndarray
    variances: np.ndarray
    num_photos: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return `(n, R)` float32 of features `x (n, D)`."""
        return np.asarray(x @ self.matrix - self.offset)


@dataclass(frozen=True)
class FastHead:
    """A solved head.

    Attributes:
        solution: One fit `(1, C, R)`.
        num_labels: How many labels there were.
    """

    solution: Solution
    num_labels: int

    def log_probabilities(self, z: np.ndarray) -> np.ndarray:
        """Return `(n, C)` float32, logarithms of probabilities of projected features `z (n, R)`."""
        which = np.zeros(len(z), np.int64)
        return log_probabilities(RowsInMemory(z), self.solution, which).astype(np.float32)


def find_projection(features: np.ndarray, rows: np.ndarray) -> Projection:
    """Find the principal axes of some photos.

    Args:
        features: `(N, D)` float32.
        rows: `(n,)` int64, which of them are known; n > 0.
    """
    sample = rows[:: -(-len(rows) // SAMPLE)]
    mean, spread = moments(features, sample)
    scale = floored(mean, spread)
    axes, variances = principal_axes((features[sample] - mean) / scale, NUM_AXES)
    matrix = axes / scale[:, np.newaxis]
    return Projection(matrix.astype(np.float32), (mean @ matrix).astype(np.float32), variances, len(rows))


def project_roots(features: np.ndarray) -> np.ndarray:
    """Turn square roots of features `(n, D)` float32, of unit length, to their principal axes; n > 0.

    Returns:
        `(n, R)` float32.
    """
    sample = roots(features[:: -(-len(features) // SAMPLE)])
    projection = find_projection(sample, np.arange(len(sample)))
    return np.concatenate([projection(roots(features[i : i + BLOCK])) for i in range(0, len(features), BLOCK)])


def solve_head(
    z: np.ndarray, y: np.ndarray, num_classes: int, projection: Projection, start: FastHead | None = None
) -> FastHead:
    """Solve a head.

    Args:
        z: `(n, R)` float32, projected features of the labelled photos.
        y: `(n,)` int64, their labels.
        num_classes: Number C of classes; one that no photo shows is never an answer.
        projection: Where `z` comes from.
        start: A head in the same projection to begin at, perhaps of fewer classes.
    """
    rows = bounded(y)
    task = Task(RowsInMemory(z[rows]), y[rows], np.ones((len(rows), 1)), num_classes, penalty_of(len(rows)))
    begin = None if start is None else _widened(start.solution, num_classes)
    with threadpool_limits(1):
        above = min(MOST_ABOVE, ABOVE / len(rows))
        solution = fit_logistic(task, Curvature(None, projection.variances), start=begin, above=above)
    return FastHead(solution, len(y))


def penalty_of(num_labels: int) -> float:
    """Return the ridge penalty for a number of labels."""
    return MIDDLING * min(1.0, FEW / max(1, num_labels))


def bounded(y: np.ndarray) -> np.ndarray:
    """Choose the labels `(n,)` that are learned from: all, or of each class as many as the bound allows, spread evenly.

    Returns:
        Indices, in ascending order.
    """
    if len(y) <= MOST_ROWS:
        return np.arange(len(y))
    counts = np.bincount(y)
    quota = _quota(counts, MOST_ROWS)
    parts = [
        np.flatnonzero(y == label)[(np.arange(quota) * count // quota) if count > quota else slice(None)]
        for label, count in enumerate(counts)
        if count
    ]
    return np.sort(np.concatenate(parts))


def _quota(counts: np.ndarray, total: int) -> int:
    """How many photos each class may give so that they are no more than `total` in all."""
    low, high = 1, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= total else (low, middle - 1)
    return low


def _widened(solution: Solution, num_classes: int) -> Solution:
    """Add classes, of which nothing is known, to a fit."""
    more = num_classes - solution.bias.shape[1]
    weight = np.pad(solution.weight, ((0, 0), (0, more), (0, 0)))
    bias = np.where(solution.bias < -50, 0.0, solution.bias)  # of classes that had no photo
    return Solution(weight, np.pad(bias, ((0, 0), (0, more))))
