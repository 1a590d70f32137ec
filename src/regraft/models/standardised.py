"""Features as the regression sees them: standardised, turned to principal axes where they fit into memory.

None is divided by less than the median spread: a feature that hardly ever moves in the training photos would be blown
up into noise, and a photo not seen may move it by a hundred times its spread.
"""

from dataclasses import dataclass, replace

import numpy as np

from regraft.backbones.features import Features
from regraft.core.pca import principal_axes
from regraft.models.logistic import (
    Curvature,
    Rows,
    RowsInMemory,
    Solution,
    StreamedRows,
    Task,
    fit_logistic,
    moments,
    sampled_curvature,
)

MAX_HELD = 2**22  # numbers that features held in memory have at most; more are streamed


@dataclass(frozen=True)
class SolverTolerance:
    """How far above the least loss a fit may end, in nats.

    Attributes:
        loose: For trying a penalty.
        firm: For the answers to photos not seen.
        exact: For the head itself.
    """

    loose: float
    firm: float
    exact: float


HELD = SolverTolerance(1e-6, 1e-9, 1e-12)  # probabilities of photos not seen within 1e-3, as logits of the head
STREAMED = SolverTolerance(1e-3, 1e-4, 1e-6)


@dataclass(frozen=True)
class Frame:
    """How raw features become what the regression sees, fitted to the training photos and to no others.

    Attributes:
        mean: `(D,)` float64, which is subtracted from features.
        scale: `(D,)` float64, by which they are divided then.
        axes: `(D, R)` float64, the principal axes to which they are turned then; None for features that stay as they
            are.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray | None = None

    def show(self, table: np.ndarray, rows: np.ndarray) -> Rows:
        """Return the photos `rows (n,)` of a table `(M, D)` in this frame."""
        if self.axes is None:
            return StreamedRows(table, rows, self.mean.astype(np.float32), self.scale.astype(np.float32))
        return RowsInMemory((table[rows] - self.mean) / self.scale @ self.axes)

    def to_raw(self, fit: Solution) -> Solution:
        """Convert a fit `(1, C, R)` in this frame to one for raw features, `(1, C, D)`."""
        weight = (fit.weight if self.axes is None else fit.weight @ self.axes.T) / self.scale
        return Solution(weight, fit.bias - weight @ self.mean)

    def from_raw(self, fit: Solution) -> Solution:
        """Convert a fit for raw features to this frame, as far as its axes show them."""
        weight = fit.weight * self.scale
        return Solution(weight if self.axes is None else weight @ self.axes, fit.bias + fit.weight @ self.mean)


@dataclass(frozen=True)
class Problem:
    """Some photos that a head is fitted to.

    A ridge penalty does not see rotations, so features in memory are turned to their principal axes, of which n photos
    have at most n: with fewer photos than features that makes the problem smaller, exactly.

    Attributes:
        rows: `(n, R)`, the photos in their own frame.
        y: `(n,)` int64, the labels.
        weights: `(n,)` float64, how often each photo counts; None for once.
        num_classes: Number C of classes.
        frame: How `rows` came from raw features.
        curvature: How `rows` spread.
    """

    rows: Rows
    y: np.ndarray
    weights: np.ndarray | None
    num_classes: int
    frame: Frame
    curvature: Curvature

    @property
    def tolerance(self) -> SolverTolerance:
        """How exactly it is worth solving."""
        return HELD if isinstance(self.rows, RowsInMemory) else STREAMED

    def fit(self, penalty: float, start: Solution | None, above: float) -> Solution:
        """Make one fit to all its photos, in single precision where that is exact enough: it takes half the time."""
        is_coarse = isinstance(self.rows, RowsInMemory) and above >= HELD.loose
        rows = RowsInMemory(self.rows.block(slice(None)).astype(np.float32)) if is_coarse else self.rows
        chosen = np.ones(len(self.y), bool) if self.weights is None else self.weights / self.weights.mean()
        task = Task(rows, self.y, chosen[:, np.newaxis], self.num_classes, penalty)
        return fit_logistic(task, self.curvature, start=start, above=above)


def problem_of(features: Features, num_classes: int, chosen: np.ndarray) -> Problem:
    """Build the problem of the photos chosen `(n,)`, in that order."""
    table, y = features.table, features.y[chosen]
    rows = chosen if features.rows is None else features.rows[chosen]
    weights = None if features.weights is None else features.weights[chosen]
    mean, spread = moments(table, rows, weights)
    frame = Frame(mean, floored(mean, spread))
    if len(rows) * table.shape[1] > MAX_HELD:
        streamed = StreamedRows(table, rows, mean.astype(np.float32), frame.scale.astype(np.float32))
        return Problem(streamed, y, weights, num_classes, frame, sampled_curvature(streamed))
    z = (table[rows] - mean) / frame.scale
    axes, variances = principal_axes(z)
    curvature = Curvature(None, variances)
    return Problem(RowsInMemory(z @ axes), y, weights, num_classes, replace(frame, axes=axes), curvature)


def floored(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return what features are divided by: their spread, but not less than the median spread.

    Over seven data sets the floor took the log loss of photos not seen from 0.33 to 0.27 (bench/heads.py).

    Args:
        mean: `(D,)` float64.
        spread: `(D,)` float64, standard deviations. What is no more than rounding counts as nothing.
    """
    noise = np.maximum(1e-8 * max(float(spread.max()), 1e-300), 1e-6 * np.abs(mean))
    moving = spread[spread > noise]
    return np.maximum(spread, np.median(moving)) if len(moving) else np.ones_like(spread)
