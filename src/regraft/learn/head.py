"""The last linear layer, solved: multinomial logistic regression on frozen features.

The problem is convex, so there is no learning rate, no epoch and no luck: the same features give the same head. The
penalty is chosen by stratified cross-validation, by log loss, which a few photos decide less coarsely than accuracy.
"""

from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.ground.axes import principal_axes
from regraft.learn.logistic import (
    Curvature,
    Fit,
    Held,
    Rows,
    Streamed,
    Task,
    fit,
    log_probabilities,
    moments,
    sampled_curvature,
)

ALL_PENALTIES = tuple(map(float, 10.0 ** np.arange(-6.0, 1.6, 0.5)))  # per photo, on standardised features
PENALTIES = ALL_PENALTIES[6:]  # from 0.001 on, unless there are many photos
MIDDLING = PENALTIES[4]  # 0.1, where nothing chooses
FEW = 1000  # photos for which that is a good place to begin; for more, it is less in proportion
MAX_HELD = 2**22  # numbers that features held in memory have at most; more are streamed
ENOUGH = 20_000  # photos that choose the penalty where there are more
MAX_WORK = 2**28  # photos times classes times features from which on a single fold is judged


@dataclass(frozen=True)
class Tolerance:
    """Nats above the least loss that do: for trying a penalty, for what is said of photos not seen, for the head."""

    loose: float
    firm: float
    exact: float


HELD = Tolerance(1e-6, 1e-9, 1e-12)  # probabilities of photos not seen within 1e-3, as logits of the head
STREAMED = Tolerance(1e-3, 1e-4, 1e-6)


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

    penalty: the chosen one.  curve: a Score for each penalty tried, the smallest first.  held_out: `(N, C)` float64, of
    the photos it was solved on, what `out_of_fold` gives at the chosen penalty; NaN for photos without a part in that.
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
    """What heads are fitted to. Rows are photos by content.

    rows: standardised features `(N, R)`.  y: `(N,)` int64.  mean, scale: `(D,)` of the raw ones.  basis: `(R, D)`, or
    None when R is D.  A ridge penalty does not see rotations, so features in memory are turned to their principal
    axes, of which N photos have at most N: with fewer photos than features that makes the problem smaller, exactly.
    """

    rows: Rows
    y: np.ndarray
    num_classes: int
    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray | None
    curvature: Curvature

    @property
    def tolerance(self) -> Tolerance:
        """How exactly it is worth solving."""
        return HELD if isinstance(self.rows, Held) else STREAMED

    @property
    def coarse(self) -> "_Problem":
        """In single precision, which takes half the time."""
        return replace(self, rows=Held(self.rows.z.astype(np.float32))) if isinstance(self.rows, Held) else self

    def fit(self, chosen: np.ndarray, penalty: float, start: Fit | None, above: float) -> Fit:
        """Fits to the photos chosen `(N, K)`."""
        task = Task(self.rows, self.y, chosen, self.num_classes, penalty)
        return fit(task, self.curvature, start=start, above=above)


@dataclass(frozen=True)
class _Try:
    """A penalty, what it says of the photos judged `(n, C)`, which ones those are, and a fit for each fold."""

    score: Score
    log_p: np.ndarray
    judged: np.ndarray
    fits: Fit


def solve(features: Features, num_classes: int, folds: np.ndarray) -> Head:
    """Solve the head and choose its penalty.

    features: x `(N, D)` float32, y `(N,)` int64 with every class present.  folds: `(N,)` int64, -1 for photos that
    are never judged.  Photos are taken by content: their names and order change no bit.  Of very many photos, some
    choose the penalty, by one fold.
    """
    _refuse_others(features, folds)
    order = np.lexsort((features.y, np.array(features.hashes)))
    with threadpool_limits(1):  # the same bytes on any number of cores
        problem = _standardise(features, num_classes, order)
        is_huge = len(order) * num_classes * features.num_features > MAX_WORK
        tries = _tried(problem, folds[order], 1 if is_huge else None) if (folds >= 0).any() else []
        best = min(tries, key=lambda one: one.score.log_loss, default=None)
        penalty, start = (best.score.penalty, best.fits.mean) if best else (MIDDLING, None)
        whole = problem.fit(np.ones((len(order), 1), bool), penalty, start, problem.tolerance.exact)
    weight, bias = _unfold(problem, whole)
    held_out = np.full((len(order), num_classes), np.nan)
    if best:
        held_out[order[best.judged]] = best.log_p
    curve = tuple(sorted((one.score for one in tries), key=lambda point: point.penalty))
    return Head(weight, bias, penalty, curve, held_out)


def out_of_fold(features: Features, num_classes: int, folds: np.ndarray, penalty: float = MIDDLING) -> np.ndarray:
    """`(N, C)` float64: logarithms of each photo's probabilities from a head which has not seen it.

    NaN where `folds` is -1.
    """
    _refuse_others(features, folds)
    log_p = np.full((len(folds), num_classes), np.nan)
    if (folds >= 0).any():
        with threadpool_limits(1):
            problem = _standardise(features, num_classes, np.arange(len(folds)))
            one = _try(problem, _numbered(folds), penalty, None, problem.tolerance.firm)
        log_p[one.judged] = one.log_p
    return log_p


def score(log_p: np.ndarray, y: np.ndarray, penalty: float) -> Score:
    """Quality of what `out_of_fold` gives. y: `(N,)` int64."""
    log_p, y = log_p[judged := np.isfinite(log_p).all(axis=1)], y[judged]
    loss = -log_p[np.arange(len(y)), y].mean()
    return Score(float(penalty), float(loss), int((log_p.argmax(axis=1) == y).sum()), len(y))


def _refuse_others(features: Features, folds: np.ndarray) -> None:
    """Raise ValueError for folds of other photos than the features are of: pairing them by position means nothing."""
    if len(folds) != len(features.hashes):
        raise ValueError(f"{len(folds)} folds for the features of {len(features.hashes)} photos")


def _standardise(features: Features, num_classes: int, order: np.ndarray) -> _Problem:
    """Photos in the given order."""
    table, y = features.table, features.y[order]
    rows = order if features.rows is None else features.rows[order]
    mean, scale = moments(table, rows)
    noise = np.maximum(1e-8 * max(float(scale.max()), 1e-300), 1e-6 * np.abs(mean))  # of rounding, not of photos
    scale = np.where(scale > noise, scale, 1.0)
    if len(rows) * table.shape[1] > MAX_HELD:
        streamed = Streamed(table, rows, mean.astype(np.float32), scale.astype(np.float32))
        return _Problem(streamed, y, num_classes, mean, scale, None, sampled_curvature(streamed))
    z = (table[rows] - mean) / scale
    axes, variances = principal_axes(z)
    return _Problem(Held(z @ axes), y, num_classes, mean, scale, axes.T, Curvature(None, variances))


def _tried(problem: _Problem, folds: np.ndarray, num_judged: int | None) -> list[_Try]:
    """Penalties from the middle downwards and upwards, each begun where its neighbour ended.

    Of many photos, only as far as the loss of photos not seen falls.  num_judged: folds, None for all.
    """
    if len(folds) > ENOUGH:
        some = np.arange(ENOUGH)
        problem, folds = replace(problem, rows=problem.rows.of(some), y=problem.y[some]), folds[some]
    which, is_large = _numbered(folds, num_judged), isinstance(problem.rows, Streamed)
    coarse, loose = problem.coarse, problem.tolerance.loose
    penalties, guess = (ALL_PENALTIES, MIDDLING * min(1, FEW / len(folds))) if is_large else (PENALTIES, MIDDLING)
    middle = int(np.abs(np.log(penalties) - np.log(guess)).argmin())
    tries = [_try(coarse, which, penalties[middle], None, loose)]
    for leg in (penalties[:middle][::-1], penalties[middle + 1 :]):
        last = tries[0]
        for penalty in leg:
            tries.append(_try(coarse, which, penalty, last.fits, loose))
            if is_large and tries[-1].score.log_loss > last.score.log_loss:
                break
            last = tries[-1]
        if is_large and last is not tries[0]:
            break
    if is_large:
        return tries
    best = min(tries, key=lambda one: one.score.log_loss)
    firm = _try(problem, which, best.score.penalty, best.fits, problem.tolerance.firm)
    return [firm if one is best else one for one in tries]


def _numbered(folds: np.ndarray, at_most: int | None = None) -> np.ndarray:
    """`(N,)` int64: which fold judges a photo, counted from 0; -1 for none."""
    names = np.unique(folds[folds >= 0])[:at_most]
    return np.where(np.isin(folds, names), np.searchsorted(names, folds), -1)


def _try(problem: _Problem, which: np.ndarray, penalty: float, start: Fit | None, above: float) -> _Try:
    """One penalty on the folds to be judged."""
    seen = which[:, np.newaxis] != np.arange(which.max() + 1)
    fits = problem.fit(seen, penalty, start, above)
    judged = np.flatnonzero(which >= 0)
    log_p = log_probabilities(problem.rows.of(judged), fits, which[judged])
    return _Try(score(log_p, problem.y[judged], penalty), log_p, judged, fits)


def _unfold(problem: _Problem, whole: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Fold rotation and standardisation into weight and bias, so that the head takes raw features."""
    weight = whole.weight[0] if problem.basis is None else whole.weight[0] @ problem.basis
    weight = weight / problem.scale
    bias = whole.bias[0] - weight @ problem.mean
    return weight.astype(np.float32), bias.astype(np.float32)
