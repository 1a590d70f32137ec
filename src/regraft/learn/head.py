"""The last linear layer, solved: multinomial logistic regression on frozen features.

The problem is convex, so there is no learning rate, no epoch and no luck: the same features give the same head. The
penalty is chosen by stratified cross-validation, by log loss, which a few photos decide less coarsely than accuracy.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.ground.runtime import num_cores
from regraft.learn.lbfgs import minimize

PENALTIES = tuple(map(float, 10.0 ** np.arange(-3.0, 1.6, 0.5)))  # per photo, on standardised features
MIDDLING = 0.1  # among them: where nothing chooses
MAX_ITERATIONS = 2000
TOLERANCE = 1e-7  # logits within 1e-3 of the exact solution, also at the smallest penalty
LOOSE = 1e-6  # log losses within 2e-3, for choosing a penalty
MAX_NUMBERS = 2**24  # probabilities that are held at once


@dataclass(frozen=True)
class Score:
    """Cross-validated quality at one penalty. log_loss: nats a photo.  num_right of n photos."""

    penalty: float
    log_loss: float
    num_right: int
    n: int


@dataclass(frozen=True)
class Head:
    """weight: `(C, D)` float32 and bias: `(C,)` float32, on raw features: logits = x @ weight.T + bias.

    penalty: the chosen one.  curve: a Score for each penalty tried.  held_out: of the photos it was solved on, what
    `out_of_fold` gives at the chosen penalty.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    curve: tuple[Score, ...]
    held_out: np.ndarray

    @property
    def best(self) -> Score | None:
        """The point of the curve that was chosen; None where there is no curve."""
        return min(self.curve, key=lambda point: point.log_loss, default=None)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """`(N, C)` float32 of features `x (N, D)` float32."""
        return np.asarray(x @ self.weight.T + self.bias)


@dataclass(frozen=True)
class _Problem:
    """Standardised features in the coordinates of their own span.

    z: `(N, R)` float64.  basis: `(R, D)`, or None when z has D columns.  A ridge penalty does not see rotations, so
    with fewer photos than features the solution lies in the span of the photos and R = N replaces D exactly.
    """

    z: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray | None


def solve(features: Features, num_classes: int, folds: np.ndarray) -> Head:
    """Solve the head and choose its penalty.

    features: x `(N, D)` float32, y `(N,)` int64 with every class present.  folds: `(N,)` int64, -1 for photos that
    are never judged.  Photos are taken by content: their names and order change no bit.
    """
    order = np.lexsort((features.y, np.array(features.hashes)))
    features, folds = Features(features.x[order], features.y[order], ()), folds[order]
    with threadpool_limits(1):  # the same bytes on any number of cores; folds run side by side instead
        problem = _standardise(features)
        tried = _held_out(problem, num_classes, folds, PENALTIES)
        points = (score(log_p, problem.y, p) for log_p, p in zip(tried, PENALTIES, strict=True))
        curve = tuple(points) if (folds >= 0).any() else ()
        penalty = min(curve, key=lambda one: one.log_loss).penalty if curve else MIDDLING
        (weight,), (bias,) = _fit(problem.z, problem.y, (penalty,), num_classes)
    weight, bias = _unfold(problem, weight, bias)
    held_out = np.empty((len(folds), num_classes))
    held_out[order] = tried[PENALTIES.index(penalty)]
    return Head(weight, bias, penalty, curve, held_out)


def out_of_fold(features: Features, num_classes: int, folds: np.ndarray, penalty: float = MIDDLING) -> np.ndarray:
    """`(N, C)` float64: logarithms of each photo's probabilities from a head which has not seen it.

    NaN where `folds` is -1.
    """
    with threadpool_limits(1):
        return np.asarray(_held_out(_standardise(features), num_classes, folds, (penalty,))[0])


def score(log_p: np.ndarray, y: np.ndarray, penalty: float) -> Score:
    """Quality of what `out_of_fold` gives. y: `(N,)` int64."""
    log_p, y = log_p[judged := np.isfinite(log_p).all(axis=1)], y[judged]
    loss = -log_p[np.arange(len(y)), y].mean()
    return Score(float(penalty), float(loss), int((log_p.argmax(axis=1) == y).sum()), len(y))


def _standardise(features: Features) -> _Problem:
    x = features.x.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    noise = np.maximum(1e-8 * max(float(scale.max()), 1e-300), 1e-6 * np.abs(mean))  # of rounding, not of photos
    scale = np.where(scale > noise, scale, 1.0)
    z, basis = (x - mean) / scale, None
    if z.shape[0] < z.shape[1]:
        q, r = np.linalg.qr(z.T)
        z, basis = np.ascontiguousarray(r.T), q.T
    return _Problem(z, features.y, mean, scale, basis)


def _held_out(problem: _Problem, num_classes: int, folds: np.ndarray, penalties: tuple[float, ...]) -> np.ndarray:
    """`(K, N, C)`: what `out_of_fold` gives at each of K penalties."""

    def fold_of(fold: int) -> np.ndarray:
        inside = folds == fold
        weight, bias = _fit(problem.z[~inside], problem.y[~inside], penalties, num_classes, LOOSE)
        return _log_softmax(np.einsum("nr,kcr->knc", problem.z[inside], weight, optimize=True) + bias[:, np.newaxis])

    log_p = np.full((len(penalties), len(folds), num_classes), np.nan)
    names = np.unique(folds[folds >= 0])
    with ThreadPoolExecutor(num_cores()) as pool:
        for fold, found in zip(names, pool.map(fold_of, names), strict=True):
            log_p[:, folds == fold] = found
    return log_p


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _fit(
    z: np.ndarray, y: np.ndarray, penalties: tuple[float, ...], num_classes: int, tolerance: float = TOLERANCE
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression at K penalties: weights `(K, C, R)` and biases `(K, C)`. What `y` lacks is never said."""
    present, y = np.unique(y, return_inverse=True)
    shape = (len(present), z.shape[1])
    k, once = len(penalties), max(1, MAX_NUMBERS // (len(y) * len(present)))
    weight, bias = np.zeros((k, num_classes, z.shape[1])), np.full((k, num_classes), -100.0)
    for first in range(0, k, once):
        some = slice(first, first + once)
        ridge = np.array(penalties[some]) * (2 if len(present) == 2 else 1)  # of two, it is meant for the difference
        loss = partial(_loss_and_gradient, z, y, ridge, shape)
        start = np.zeros((len(ridge), shape[0] * (shape[1] + 1)))
        solution = minimize(loss, start, tolerance=tolerance, max_iterations=MAX_ITERATIONS)
        for whole, part in zip((weight, bias), _unpacked(solution, shape), strict=True):
            whole[some, present] = part - part.mean(axis=1, keepdims=True)  # what all have in common is rounding
    return weight, bias


def _loss_and_gradient(
    z: np.ndarray, y: np.ndarray, ridge: np.ndarray, shape: tuple[int, int], packed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean log losses with a ridge penalty on the weights, not on the biases, and their gradients."""
    n, k, (num_classes, size) = len(y), len(ridge), shape
    weight, bias = _unpacked(packed, shape)
    flat = weight.reshape(k * num_classes, size)
    log_p = _log_softmax((z @ flat.T).reshape(n, k, num_classes) + bias)
    rows = np.arange(n)
    loss = ridge / 2 * (weight * weight).sum(axis=(1, 2)) - log_p[rows, :, y].mean(axis=0)
    error = np.exp(log_p)
    error[rows, :, y] -= 1
    error /= n
    of_weight = (error.reshape(n, -1).T @ z).reshape(weight.shape) + ridge[:, np.newaxis, np.newaxis] * weight
    return loss, np.concatenate([of_weight.reshape(k, -1), error.sum(axis=0)], axis=1)


def _unpacked(packed: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(K, C, R)` and biases `(K, C)` out of K vectors."""
    num_classes, size = shape
    return packed[:, : num_classes * size].reshape(-1, num_classes, size), packed[:, num_classes * size :]


def _unfold(problem: _Problem, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fold rotation and standardisation into weight and bias, so that the head takes raw features."""
    if problem.basis is not None:
        weight = weight @ problem.basis
    weight = weight / problem.scale
    bias = bias - weight @ problem.mean
    return weight.astype(np.float32), bias.astype(np.float32)
