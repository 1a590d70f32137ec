"""Multinomial logistic regression with a ridge penalty, of features in memory or streamed from a table.

Its curvature is guessed from the principal axes of the features, so that it takes a few dozen passes over the photos
whatever their number. Fits to different choices of the same photos, such as folds, go in step: one pass serves all.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from regraft.core.pca import principal_axes
from regraft.core.runtime import num_cores
from regraft.models.lbfgs import minimize

MAX_ITERATIONS = 2000
NEVER = -100.0  # logit of a class that no photo shows
BLOCK = 1024  # photos at a time
NUM_PARTS = 16  # whose sums are added in order: the same bits on any number of cores
ROUNDING = {4: (1e-7, 1e-5), 8: (1e-14, 1e-12)}  # of a loss, of a gradient's length; by the bytes of a number
SAMPLE, FEW_SAMPLE = 8192, 2048  # photos that tell the principal axes; the latter where features are wider than that


class Rows(Protocol):
    """Standardised features of N photos, `(N, R)`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number N of photos and R of features."""
        ...

    @property
    def dtype(self) -> "np.dtype[np.floating]":
        """Type of the numbers."""
        ...

    def of(self, chosen: np.ndarray) -> "Rows":
        """Return only some of the photos, by index `(n,)` int64."""
        ...

    def block(self, part: slice) -> np.ndarray:
        """Return the features of consecutive photos, `(n, R)`."""
        ...

    def parts(self) -> list[list[slice]]:
        """Return slices that cover all photos, in lists that can be worked on side by side."""
        ...


@dataclass(frozen=True)
class RowsInMemory:
    """Standardised features held in memory.

    Attributes:
        z: `(N, R)` float64 or float32.
    """

    z: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Number N of photos and R of features."""
        return self.z.shape[0], self.z.shape[1]

    @property
    def dtype(self) -> "np.dtype[np.floating]":
        """Type of the numbers."""
        return self.z.dtype

    def of(self, chosen: np.ndarray) -> "RowsInMemory":
        """Return only some of the photos, by index `(n,)` int64."""
        return RowsInMemory(self.z[chosen])

    def block(self, part: slice) -> np.ndarray:
        """Return the features of consecutive photos, `(n, R)`."""
        return self.z[part]

    def parts(self) -> list[list[slice]]:
        """Return one list of one slice: all photos."""
        return [[slice(None)]]


@dataclass(frozen=True)
class StreamedRows:
    """Rows of a table of raw features, standardised when they are asked for.

    Attributes:
        table: `(M, D)` float32.
        rows: `(N,)` int64, which rows of the table.
        mean: `(D,)` float32, which is subtracted.
        scale: `(D,)` float32, by which the rest is divided.
    """

    table: np.ndarray
    rows: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Number N of photos and D of features."""
        return len(self.rows), self.table.shape[1]

    @property
    def dtype(self) -> "np.dtype[np.floating]":
        """Type of the numbers: float32."""
        return self.mean.dtype

    def of(self, chosen: np.ndarray) -> "StreamedRows":
        """Return only some of the photos, by index `(n,)` int64; nothing is copied."""
        return replace(self, rows=self.rows[chosen])

    def block(self, part: slice) -> np.ndarray:
        """Return the features of consecutive photos, `(n, D)` float32."""
        z = np.take(self.table, self.rows[part], axis=0)
        z -= self.mean
        z /= self.scale
        return z

    def parts(self) -> list[list[slice]]:
        """Return slices that cover all photos, in a number of lists that does not depend on the machine."""
        starts = np.arange(0, len(self.rows), BLOCK)
        return [[slice(i, i + BLOCK) for i in some] for some in np.array_split(starts, NUM_PARTS) if len(some)]


@dataclass(frozen=True)
class Curvature:
    """How features spread.

    Attributes:
        axes: `(R, A)` with orthonormal columns; None for the axes of the coordinates.
        variances: `(A,)`, along the axes; in all other directions there is none.
    """

    axes: np.ndarray | None
    variances: np.ndarray


@dataclass(frozen=True)
class Solution:
    """K fits.

    Attributes:
        weight: `(K, C, R)` float64.
        bias: `(K, C)` float64.
    """

    weight: np.ndarray
    bias: np.ndarray

    @property
    def mean(self) -> "Solution":
        """The average of the fits, where a fit to all photos may begin."""
        return Solution(self.weight.mean(axis=0, keepdims=True), self.bias.mean(axis=0, keepdims=True))


class Task:
    """What K fits are made from.

    Attributes:
        rows: Features of N photos.
        y: `(N,)` int64, their labels.
        chosen: `(N, K)` bool, the photos of each fit; or float64, what each counts in it.
        counts: `(K,)`, how many those are, or how much in all.
        present: `(K, C)` bool, the classes that they show.
        ridge: `(K,)`, the penalty of each fit; of two classes, the penalty is meant for the difference of their
            weights.
        bend: `(K,)`, the curvature along an axis of variance 1 where all classes are equally likely.
    """

    def __init__(self, rows: Rows, y: np.ndarray, chosen: np.ndarray, num_classes: int, penalty: float) -> None:
        self.rows, self.y, self.chosen = rows, y, chosen
        self.counts = chosen.sum(axis=0)
        self.present = np.stack([np.bincount(y[one > 0], minlength=num_classes) > 0 for one in chosen.T])
        shown = self.present.sum(axis=1)
        self.ridge = penalty * np.where(shown == 2, 2.0, 1.0)
        self.bend = np.where(shown > 1, (1 - 1 / shown) / shown, 1.0)


def fit_logistic(task: Task, curvature: Curvature, *, start: Solution | None = None, above: float) -> Solution:
    """Make K fits of least loss. A class that none of a fit's photos show is never its answer.

    Args:
        task: What they are made from.
        curvature: How the features spread, to guess the curvature of the loss from.
        start: Where to begin; None for zero.
        above: Nats that a loss, penalty included, may lie above its minimum. Since the penalty bends the loss
            everywhere, the gradient's length tells how far that is.
    """
    rows, present = task.rows, task.present
    rounding, noise = ROUNDING[rows.dtype.itemsize]
    start = start or Solution(np.zeros((*present.shape, rows.shape[1])), np.zeros(present.shape))
    with ThreadPoolExecutor(num_cores()) as pool:
        packed = minimize(
            partial(_losses_and_gradients, task, pool.map if len(rows.parts()) > 1 else map),
            _packed(start.weight * present[..., np.newaxis], np.where(present, start.bias, NEVER)),
            precondition=partial(_newton_steps, task, curvature),
            enough=np.maximum(2 * task.ridge * above, noise * noise),
            rounding=rounding,
            max_iterations=MAX_ITERATIONS,
        )
    weight, bias = _unpacked(packed, task)
    share = present / present.sum(axis=1, keepdims=True)
    weight = weight - np.einsum("kcr,kc->kr", weight, share)[:, np.newaxis] * present[..., np.newaxis]
    bias = bias - (bias * share).sum(axis=1, keepdims=True) * present  # what all have in common is rounding
    return Solution(weight, bias)


def log_probabilities(rows: Rows, fits: Solution, which: np.ndarray) -> np.ndarray:
    """Return `(N, C)` float64, logarithms of probabilities by one of the fits for each photo.

    Args:
        rows: Features of N photos.
        fits: K fits.
        which: `(N,)` int64, the number of the fit to use for each photo.
    """
    k, num_classes, size = fits.weight.shape
    flat, log_p = fits.weight.reshape(k * num_classes, size).T.astype(rows.dtype), np.empty((len(which), num_classes))
    for part in (part for blocks in rows.parts() for part in blocks):
        numbers = which[part]
        logits = (rows.block(part) @ flat).reshape(len(numbers), k, num_classes) + fits.bias
        log_p[part] = log_softmax(logits[np.arange(len(numbers)), numbers])
    return log_p


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities, along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def moments(table: np.ndarray, rows: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of features.

    Args:
        table: `(M, D)` float32.
        rows: `(N,)` int64, which of its rows.
        weights: `(N,)` float64, what each of them counts; None for all the same.

    Returns:
        Both `(D,)` float64.
    """
    total = len(rows) if weights is None else weights.sum()

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray | float]]:
        for part in (slice(i, i + BLOCK) for i in range(0, len(rows), BLOCK)):
            yield table[rows[part]], 1.0 if weights is None else weights[part, np.newaxis]

    mean = np.sum([(block * counts).sum(axis=0, dtype=np.float64) for block, counts in blocks()], axis=0) / total
    squares = np.sum([(np.square(block - mean) * counts).sum(axis=0) for block, counts in blocks()], axis=0)
    return mean, np.sqrt(squares / total)


def sampled_curvature(rows: StreamedRows) -> Curvature:
    """Measure the curvature on some photos out of many, which is enough for a guess."""
    n, r = rows.shape
    every = -(-n // (SAMPLE if r <= FEW_SAMPLE else FEW_SAMPLE))
    return Curvature(*principal_axes(rows.block(slice(None, None, every))))


def _losses_and_gradients(
    task: Task, spread: Callable[..., Iterator[tuple[np.ndarray, ...]]], packed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean log losses with a ridge penalty on the weights, not on the biases, and their gradients."""
    weight, bias = _unpacked(packed, task)
    sums = [np.zeros(len(weight)), np.zeros_like(weight), np.zeros_like(bias)]
    for part_sums in spread(partial(_sums, task, weight, bias), task.rows.parts()):
        sums = [a + b for a, b in zip(sums, part_sums, strict=True)]
    loss, of_weight, of_bias = (np.asarray(total.T / task.counts).T for total in sums)
    loss = loss + task.ridge / 2 * (weight * weight).sum(axis=(1, 2))
    of_weight = of_weight + task.ridge[:, np.newaxis, np.newaxis] * weight
    return loss, _packed(of_weight * task.present[..., np.newaxis], of_bias * task.present)


def _sums(task: Task, weight: np.ndarray, bias: np.ndarray, blocks: list[slice]) -> tuple[np.ndarray, ...]:
    """Return losses `(K,)` and their gradients by weight and bias, summed over the photos of some blocks."""
    k, num_classes, size = weight.shape
    flat, shift = weight.reshape(k * num_classes, size).astype(task.rows.dtype), bias.astype(task.rows.dtype)
    loss, of_weight, of_bias = np.zeros(k), np.zeros_like(weight), np.zeros_like(bias)
    for part in blocks:
        z, y, chosen = task.rows.block(part), task.y[part], task.chosen[part]
        logits = (z @ flat.T).reshape(len(y), k, num_classes)
        logits += shift
        logits -= logits.max(axis=2, keepdims=True)
        at_labels = np.arange(len(y)), slice(None), y
        label_logits = logits[at_labels]
        p = np.exp(logits, out=logits)
        total = p.sum(axis=2)
        loss += ((np.log(total) - label_logits) * chosen).sum(axis=0, dtype=np.float64)
        p *= (chosen / total).astype(p.dtype)[..., np.newaxis]
        p[at_labels] -= chosen
        of_weight += (p.reshape(len(y), k * num_classes).T @ z).reshape(weight.shape)
        of_bias += p.sum(axis=0, dtype=np.float64)
    return loss, of_weight, of_bias


def _newton_steps(task: Task, curvature: Curvature, packed: np.ndarray) -> np.ndarray:
    """Divide gradients by the curvature that losses have where all classes are equally likely."""
    weight, bias = _unpacked(packed, task)
    ridge, bend = task.ridge[:, np.newaxis, np.newaxis], task.bend[:, np.newaxis, np.newaxis]
    inverse = 1 / (bend * curvature.variances + ridge)
    if curvature.axes is None:
        weight = weight * inverse
    else:
        weight = weight / ridge + ((weight @ curvature.axes) * (inverse - 1 / ridge)) @ curvature.axes.T
    return _packed(weight, bias / bend[..., 0])


def _packed(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Join weights and biases to K vectors `(K, C * R + C)`."""
    return np.concatenate([weight.reshape(len(weight), -1), bias], axis=1)


def _unpacked(packed: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Take weights `(K, C, R)` and biases `(K, C)` out of K vectors."""
    (k, c), size = task.present.shape, task.rows.shape[1]
    return packed[:, : c * size].reshape(k, c, size), packed[:, c * size :]
