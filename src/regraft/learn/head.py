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
        tried = _try_all(problem, num_classes, folds) if (folds >= 0).any() else {}
        curve = tuple(score(log_p, problem.y, penalty) for penalty, log_p in tried.items())
        penalty = min(curve, key=lambda one: one.log_loss).penalty if curve else MIDDLING
        weight, bias = _fit(problem.z, problem.y, penalty, num_classes)
    weight, bias = _unfold(problem, weight, bias)
    held_out = np.full((len(folds), num_classes), np.nan)
    if tried:
        held_out[order] = tried[penalty]
    return Head(weight, bias, penalty, curve, held_out)


def out_of_fold(features: Features, num_classes: int, folds: np.ndarray, penalty: float = MIDDLING) -> np.ndarray:
    """`(N, C)` float64: logarithms of each photo's probabilities from a head which has not seen it.

    NaN where `folds` is -1.
    """
    with threadpool_limits(1):
        return _held_out(_standardise(features), num_classes, folds, penalty)


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


def _try_all(problem: _Problem, num_classes: int, folds: np.ndarray) -> dict[float, np.ndarray]:
    """What each penalty gives for photos not seen."""
    with ThreadPoolExecutor(num_cores()) as pool:
        found = pool.map(partial(_held_out, problem, num_classes, folds), PENALTIES)
        return dict(zip(PENALTIES, found, strict=True))


def _held_out(problem: _Problem, num_classes: int, folds: np.ndarray, penalty: float) -> np.ndarray:
    log_p = np.full((len(folds), num_classes), np.nan)
    for fold in np.unique(folds[folds >= 0]):
        inside = folds == fold
        weight, bias = _fit(problem.z[~inside], problem.y[~inside], penalty, num_classes)
        log_p[inside] = _log_softmax(problem.z[inside] @ weight.T + bias)
    return log_p


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _fit(z: np.ndarray, y: np.ndarray, penalty: float, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(C, R)` and bias `(C,)` of softmax regression; a class absent from `y` is never predicted."""
    weight, bias = np.zeros((num_classes, z.shape[1])), np.full(num_classes, -100.0)
    present, y = np.unique(y, return_inverse=True)
    if len(present) == 2:
        penalty *= 2  # it is meant for the difference of the two, whose halves these are
    start = np.zeros(len(present) * (z.shape[1] + 1))
    loss = partial(_loss_and_gradient, z, y, penalty)
    solution = minimize(loss, start, tolerance=TOLERANCE, max_iterations=MAX_ITERATIONS)
    weight[present], bias[present] = _unpacked(solution, z.shape[1])
    return weight, bias


def _loss_and_gradient(z: np.ndarray, y: np.ndarray, penalty: float, packed: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean log loss with a ridge penalty on the weights, not on the biases."""
    weight, bias = _unpacked(packed, z.shape[1])
    rows, log_p = np.arange(len(y)), _log_softmax(z @ weight.T + bias)
    loss = penalty / 2 * float((weight * weight).sum()) - float(log_p[rows, y].mean())
    error = np.exp(log_p)
    error[rows, y] -= 1
    error /= len(y)
    return loss, np.concatenate([(error.T @ z + penalty * weight).ravel(), error.sum(axis=0)])


def _unpacked(packed: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights `(C, R)` and biases `(C,)` out of one vector."""
    num_classes = len(packed) // (size + 1)
    return packed[:-num_classes].reshape(num_classes, size), packed[-num_classes:]


def _unfold(problem: _Problem, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fold rotation and standardisation into weight and bias, so that the head takes raw features."""
    if problem.basis is not None:
        weight = weight @ problem.basis
    weight = weight / problem.scale
    bias = bias - weight @ problem.mean
    return weight.astype(np.float32), bias.astype(np.float32)
