"""The last linear layer, solved: multinomial logistic regression on frozen features.

The problem is convex, so there is no learning rate, no epoch and no luck: the same features give the same head. The
penalty is chosen by stratified cross-validation, by log loss, which a few photos decide less coarsely than accuracy.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.ground.runtime import num_cores

PENALTIES = tuple(10.0 ** np.arange(-3.0, 1.6, 0.5))  # per photo, on standardised features
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

    penalty: the chosen one.  curve: a Score for each penalty tried.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    curve: tuple[Score, ...]

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
    are never judged.
    """
    with threadpool_limits(1):  # the same bytes on any number of cores; folds run side by side instead
        problem = _standardise(features)
        curve = _curve(problem, num_classes, folds) if (folds >= 0).any() else ()
        penalty = min(curve, key=lambda score: score.log_loss).penalty if curve else 0.1
        weight, bias = _fit(problem.z, problem.y, penalty, num_classes)
    return _unfold(problem, weight, bias, penalty, tuple(curve))


def cross_validate(features: Features, num_classes: int, folds: np.ndarray, penalty: float) -> Score:
    """Quality on photos that each fold's head has not seen, at a given penalty."""
    with threadpool_limits(1):
        return _score(_standardise(features), num_classes, folds, penalty)


def out_of_fold(features: Features, num_classes: int, folds: np.ndarray, penalty: float) -> np.ndarray:
    """`(N, C)` float64: each photo's probabilities from a head which has not seen it; NaN where `folds` is -1."""
    found = np.full((len(folds), num_classes), np.nan)
    with threadpool_limits(1):
        for held_out, logits in _fold_logits(_standardise(features), num_classes, folds, penalty):
            found[held_out] = np.exp(_log_softmax(logits))
    return found


def _standardise(features: Features) -> _Problem:
    x = features.x.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    noise = np.maximum(1e-8 * max(float(scale.max()), 1e-300), 1e-6 * np.abs(mean))  # of rounding, not of photos
    scale = np.where(scale > noise, scale, 1.0)
    z, basis = (x - mean) / scale, None
    if z.shape[0] < z.shape[1]:
        u, s, basis = np.linalg.svd(z, full_matrices=False)
        z = u * s
    return _Problem(z, features.y, mean, scale, basis)


def _curve(problem: _Problem, num_classes: int, folds: np.ndarray) -> list[Score]:
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(partial(_score, problem, num_classes, folds), PENALTIES))


def _score(problem: _Problem, num_classes: int, folds: np.ndarray, penalty: float) -> Score:
    loss, num_right, judged = 0.0, 0, folds >= 0
    for held_out, logits in _fold_logits(problem, num_classes, folds, penalty):
        y, log_p = problem.y[held_out], _log_softmax(logits)
        loss -= float(log_p[np.arange(len(y)), y].sum())
        num_right += int((logits.argmax(axis=1) == y).sum())
    n = int(judged.sum())
    return Score(float(penalty), loss / n, num_right, n)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _fold_logits(
    problem: _Problem, num_classes: int, folds: np.ndarray, penalty: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each fold, its photos, `(N,)` bool, and their logits `(n, C)` from a head fitted on the others."""
    for fold in np.unique(folds[folds >= 0]):
        held_out = folds == fold
        weight, bias = _fit(problem.z[~held_out], problem.y[~held_out], penalty, num_classes)
        yield held_out, problem.z[held_out] @ weight.T + bias


def _fit(z: np.ndarray, y: np.ndarray, penalty: float, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(C, R)` and bias `(C,)` of softmax regression; a class absent from `y` is never predicted."""
    model = LogisticRegression(C=1 / (penalty * len(y)), max_iter=MAX_ITERATIONS, tol=TOLERANCE).fit(z, y)
    weight, bias = np.zeros((num_classes, z.shape[1])), np.full(num_classes, -100.0)
    if len(model.classes_) == 2:  # scikit-learn gives the difference of the two logits
        weight[model.classes_] = np.concatenate([-model.coef_, model.coef_]) / 2
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias


def _unfold(problem: _Problem, weight: np.ndarray, bias: np.ndarray, penalty: float, curve: tuple[Score, ...]) -> Head:
    """Fold rotation and standardisation into weight and bias, so that the head takes raw features."""
    if problem.basis is not None:
        weight = weight @ problem.basis
    weight = weight / problem.scale
    bias = bias - weight @ problem.mean
    return Head(weight.astype(np.float32), bias.astype(np.float32), penalty, curve)
