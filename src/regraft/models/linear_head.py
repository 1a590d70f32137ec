"""The last linear layer, solved: multinomial logistic regression on frozen features.

The problem is convex, so there is no learning rate, no epoch and no luck: the same features give the same head. The
penalty is chosen by stratified cross-validation, by log loss, which a few photos decide less coarsely than accuracy.

Features are standardised, but none is divided by less than the median spread: what hardly ever moves in the photos that
are learned from would be blown up into noise, and a photo not seen may move it by a hundred times its spread.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.core.pca import principal_axes
from regraft.core.runtime import num_cores
from regraft.models.logistic import (
    Curvature,
    Rows,
    RowsInMemory,
    Solution,
    StreamedRows,
    Task,
    fit,
    log_probabilities,
    moments,
    sampled_curvature,
)

Result = TypeVar("Result")
ALL_PENALTIES = tuple(map(float, 10.0 ** np.arange(-6.0, 1.6, 0.5)))  # per photo, on standardised features
PENALTIES = ALL_PENALTIES[6:]  # from 0.001 on, unless there are many photos
MIDDLING = PENALTIES[4]  # 0.1, where nothing chooses
FEW = 1000  # photos for which that is a good place to begin; for more, it is less in proportion
MAX_HELD = 2**22  # numbers that features held in memory have at most; more are streamed
ENOUGH = 20_000  # photos that choose the penalty where there are more
MAX_WORK = 2**28  # photos times classes times features from which on a single fold is judged


@dataclass(frozen=True)
class SolverTolerance:
    """Nats above the least loss that do: for trying a penalty, for what is said of photos not seen, for the head."""

    loose: float
    firm: float
    exact: float


HELD = SolverTolerance(1e-6, 1e-9, 1e-12)  # probabilities of photos not seen within 1e-3, as logits of the head
STREAMED = SolverTolerance(1e-3, 1e-4, 1e-6)


@dataclass(frozen=True)
class Score:
    """Cross-validated quality at one penalty. log_loss: nats a photo.  num_right of n photos, weights counted."""

    penalty: float
    log_loss: float
    num_right: int
    n: int


@dataclass(frozen=True)
class Head:
    """weight: `(C, D)` float32 and bias: `(C,)` float32, on raw features: logits = x @ weight.T + bias.

    penalty: the chosen one.  curve: a Score for each penalty tried, the smallest first.  held_out: `(N, C)` float64, of
    the photos it was solved on, logarithms of probabilities by fits to other folds, at the penalty that those folds
    choose; NaN for photos without a part in that.  cross_validated: how good those are; None where there are none.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    curve: tuple[Score, ...]
    held_out: np.ndarray
    cross_validated: Score | None

    def logits(self, x: np.ndarray) -> np.ndarray:
        """`(N, C)` float32 of features `x (N, D)` float32."""
        return np.asarray(x @ self.weight.T + self.bias)


@dataclass(frozen=True)
class Frame:
    """How raw features become what the regression sees, fitted to the photos that are learned from and to no others.

    mean, scale: `(D,)` float64: features are shifted and divided by these.  axes: `(D, R)` float64, the principal axes
    to which they are turned then; None for features that stay as they are.
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray | None = None

    def show(self, table: np.ndarray, rows: np.ndarray) -> Rows:
        """Photos `rows (n,)` of a table `(M, D)` in this frame."""
        if self.axes is None:
            return StreamedRows(table, rows, self.mean.astype(np.float32), self.scale.astype(np.float32))
        return RowsInMemory((table[rows] - self.mean) / self.scale @ self.axes)

    def to_raw(self, found: Solution) -> Solution:
        """A fit `(1, C, R)` in this frame as one for raw features, `(1, C, D)`."""
        weight = (found.weight if self.axes is None else found.weight @ self.axes.T) / self.scale
        return Solution(weight, found.bias - weight @ self.mean)

    def from_raw(self, found: Solution) -> Solution:
        """A fit for raw features in this frame, as far as its axes show them."""
        weight = found.weight * self.scale
        return Solution(weight if self.axes is None else weight @ self.axes, found.bias + found.weight @ self.mean)


@dataclass(frozen=True)
class _Problem:
    """Some photos that a head is fitted to. rows: in their own frame, `(n, R)`.  y: `(n,)` int64.  weights: `(n,)`.

    A ridge penalty does not see rotations, so features in memory are turned to their principal axes, of which n photos
    have at most n: with fewer photos than features that makes the problem smaller, exactly.
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
        """One fit to all its photos, in single precision where that is exact enough: it takes half the time."""
        is_coarse = isinstance(self.rows, RowsInMemory) and above >= HELD.loose
        rows = RowsInMemory(self.rows.block(slice(None)).astype(np.float32)) if is_coarse else self.rows
        chosen = np.ones(len(self.y), bool) if self.weights is None else self.weights / self.weights.mean()
        task = Task(rows, self.y, chosen[:, np.newaxis], self.num_classes, penalty)
        return fit(task, self.curvature, start=start, above=above)


@dataclass(frozen=True)
class _Fold:
    """One fold of a cross-validation.

    problem: of the other photos.  judged: `(n,)` int64, its own.  rows, y, weights: features, labels
    `(n,)` and weights of those.
    """

    problem: _Problem
    judged: np.ndarray
    rows: Rows
    y: np.ndarray
    weights: np.ndarray | None

    def try_at(self, penalty: float, start: Solution | None, above: float) -> "_Answers":
        """Its photos by a fit to the others."""
        found = self.problem.fit(penalty, start, above)
        return _Answers(found, log_probabilities(self.rows, found, np.zeros(len(self.judged), np.int64)))

    def loss(self, answers: "_Answers") -> float:
        """Nats, added up over its photos."""
        own = answers.log_p[np.arange(len(self.y)), self.y]
        return float(-(own if self.weights is None else own * self.weights).sum())


@dataclass(frozen=True)
class _Answers:
    """What a fit says of the photos of a fold that it has not seen. log_p: `(n, C)` float64."""

    found: Solution
    log_p: np.ndarray


@dataclass(frozen=True)
class _Try:
    """A penalty on every fold. losses: `(K,)` nats of each."""

    penalty: float
    answers: list[_Answers]
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Nats of all photos."""
        return float(self.losses.sum())


def solve(features: Features, num_classes: int, folds: np.ndarray) -> Head:
    """Solve the head and choose its penalty.

    Of very many photos, some choose the penalty, by one fold.

    Args:
        features: x `(N, D)` float32, y `(N,)` int64 with every class present. Photos are taken by content: their names
            and order change no bit. Of weights, a
            whole number is that many copies.
        folds: `(N,)` int64, which fold judges a photo; -1 for photos that are never judged.

    Returns:
        The head, its curve, and what is said of photos not seen. All that such an answer rests on was found without the
        photos of its fold: mean and spread of the features, the fit, and where there are several folds its penalty.
    """
    _refuse_others(features, folds)
    order = np.lexsort((features.y, np.array(features.hashes)))
    y, held_out = features.y[order], np.full((len(order), num_classes), np.nan)
    weights = None if features.weights is None else features.weights[order]
    with threadpool_limits(1):  # the same bytes on any number of cores
        names = _names(folds[order[:ENOUGH]])
        if len(order) * num_classes * features.num_features > MAX_WORK:
            names = names[:1]
        cross = _cross_validation(features, num_classes, order[:ENOUGH], folds, names)
        tries = _tried(cross, len(order)) if cross else []
        whole = _problem(features, num_classes, order)
        penalty, start = MIDDLING, None
        if best := min(tries, key=lambda one: one.loss, default=None):
            penalty, start = best.penalty, whole.frame.from_raw(_average(best, cross))
        raw = whole.frame.to_raw(whole.fit(penalty, start, whole.tolerance.exact))
        for fold, answers in zip(cross, _unseen(tries, cross), strict=True):
            held_out[order[fold.judged]] = answers.log_p
    curve = tuple(sorted((_point(one, cross) for one in tries), key=lambda point: point.penalty))
    cross_validated = score(held_out[order], y, penalty, weights) if tries else None
    weight, bias = raw.weight[0].astype(np.float32), raw.bias[0].astype(np.float32)
    return Head(weight, bias, penalty, curve, held_out, cross_validated)


def out_of_fold(features: Features, num_classes: int, folds: np.ndarray, penalty: float = MIDDLING) -> np.ndarray:
    """What heads say of photos that they have not seen.

    Args:
        features: x `(N, D)` float32, y `(N,)` int64.
        folds: `(N,)` int64, which fold judges a photo; -1 for none.
        penalty: of all the heads.

    Returns:
        `(N, C)` float64, logarithms of each photo's probabilities; NaN where `folds` is -1.
    """
    _refuse_others(features, folds)
    log_p = np.full((len(folds), num_classes), np.nan)
    with threadpool_limits(1):
        cross = _cross_validation(features, num_classes, np.arange(len(folds)), folds, _names(folds))
        if cross:
            found = _try(cross, penalty, None, cross[0].problem.tolerance.firm)
            for fold, answers in zip(cross, found.answers, strict=True):
                log_p[fold.judged] = answers.log_p
    return log_p


def score(log_p: np.ndarray, y: np.ndarray, penalty: float, weights: np.ndarray | None = None) -> Score:
    """Quality of what `out_of_fold` gives. y: `(N,)` int64.  weights: `(N,)` float64, None for 1 each."""
    log_p, y = log_p[judged := np.isfinite(log_p).all(axis=1)], y[judged]
    loss, right = -log_p[np.arange(len(y)), y], log_p.argmax(axis=1) == y
    if weights is None:
        return Score(float(penalty), float(loss.mean()), int(right.sum()), len(y))
    counts = weights[judged]
    mean, sums = np.average(loss, weights=counts), (counts[right].sum(), counts.sum())
    return Score(float(penalty), float(mean), *(round(float(one)) for one in sums))


def _refuse_others(features: Features, folds: np.ndarray) -> None:
    """Raise ValueError for folds of other photos than the features are of: pairing them by position means nothing."""
    if len(folds) != len(features.hashes):
        raise ValueError(f"{len(folds)} folds for the features of {len(features.hashes)} photos")


def floored(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """What features are divided by: their spread, but not less than the median spread.

    Over seven sets the floor took the log loss of photos not seen from 0.33 to 0.27 (bench/heads.py).

    Args:
        mean: `(D,)` float64.
        spread: `(D,)` float64, standard deviations. What is no more than rounding counts as nothing.
    """
    noise = np.maximum(1e-8 * max(float(spread.max()), 1e-300), 1e-6 * np.abs(mean))
    moving = spread[spread > noise]
    return np.maximum(spread, np.median(moving)) if len(moving) else np.ones_like(spread)


def _problem(features: Features, num_classes: int, chosen: np.ndarray) -> _Problem:
    """Of the photos chosen `(n,)`, in that order."""
    table, y = features.table, features.y[chosen]
    rows = chosen if features.rows is None else features.rows[chosen]
    weights = None if features.weights is None else features.weights[chosen]
    mean, spread = moments(table, rows, weights)
    frame = Frame(mean, floored(mean, spread))
    if len(rows) * table.shape[1] > MAX_HELD:
        streamed = StreamedRows(table, rows, mean.astype(np.float32), frame.scale.astype(np.float32))
        return _Problem(streamed, y, weights, num_classes, frame, sampled_curvature(streamed))
    z = (table[rows] - mean) / frame.scale
    axes, variances = principal_axes(z)
    curvature = Curvature(None, variances)
    return _Problem(RowsInMemory(z @ axes), y, weights, num_classes, replace(frame, axes=axes), curvature)


def _names(folds: np.ndarray) -> list[int]:
    """Numbers of the folds that judge."""
    return [int(name) for name in np.unique(folds[folds >= 0])]


def _cross_validation(
    features: Features, num_classes: int, order: np.ndarray, folds: np.ndarray, names: list[int]
) -> list[_Fold]:
    """Folds, each with the problem of the other photos.

    order: `(n,)` int64, the photos that take part.  folds: `(N,)` int64 of all photos.  names: the folds wanted.
    """
    own = folds[order]

    def one(name: int) -> _Fold:
        problem, judged = _problem(features, num_classes, order[own != name]), np.flatnonzero(own == name)
        rows = order[judged] if features.rows is None else features.rows[order[judged]]
        shown, weights = problem.frame.show(features.table, rows), features.weights
        own_weights = None if weights is None else weights[order[judged]]
        return _Fold(problem, judged, shown, features.y[order[judged]], own_weights)

    return _side_by_side(one, names)


def _tried(cross: list[_Fold], num_photos: int) -> list[_Try]:
    """Penalties from the middle downwards and upwards, each begun where its neighbour ended.

    Of many photos, only as far as the loss of photos not seen falls.
    """
    problem = cross[0].problem
    is_large, loose = isinstance(problem.rows, StreamedRows), problem.tolerance.loose
    penalties, guess = PENALTIES, MIDDLING
    if is_large:
        penalties, guess = ALL_PENALTIES, MIDDLING * min(1, FEW / min(num_photos, ENOUGH))
    middle = int(np.abs(np.log(penalties) - np.log(guess)).argmin())
    tries = [_try(cross, penalties[middle], None, loose)]
    for leg in (penalties[:middle][::-1], penalties[middle + 1 :]):
        last = tries[0]
        for penalty in leg:
            tries.append(_try(cross, penalty, last, loose))
            if is_large and tries[-1].loss > last.loss:
                break
            last = tries[-1]
        if is_large and last is not tries[0]:
            break
    return tries


def _try(cross: list[_Fold], penalty: float, start: _Try | None, above: float) -> _Try:
    """One penalty on all folds. start: where the fits begin."""

    def one(number: int) -> _Answers:
        return cross[number].try_at(penalty, start.answers[number].found if start else None, above)

    answers = _side_by_side(one, range(len(cross)))
    return _Try(penalty, answers, np.array([fold.loss(said) for fold, said in zip(cross, answers, strict=True)]))


def _unseen(tries: list[_Try], cross: list[_Fold]) -> list[_Answers]:
    """Each fold's answers at the penalty that the other folds choose, more exactly than for choosing."""

    def one(number: int) -> _Answers:
        others = np.arange(len(cross)) != number if len(cross) > 1 else np.ones(1, bool)
        chosen = min(tries, key=lambda one: float(one.losses[others].sum()))
        said, fold = chosen.answers[number], cross[number]
        if isinstance(fold.problem.rows, StreamedRows):
            return said
        return fold.try_at(chosen.penalty, said.found, fold.problem.tolerance.firm)

    return _side_by_side(one, range(len(cross) if tries else 0))


def _point(one: _Try, cross: list[_Fold]) -> Score:
    """A penalty's place on the curve."""
    log_p, y = np.concatenate([said.log_p for said in one.answers]), np.concatenate([fold.y for fold in cross])
    weights = [fold.weights for fold in cross if fold.weights is not None]
    return score(log_p, y, one.penalty, np.concatenate(weights) if weights else None)


def _average(one: _Try, cross: list[_Fold]) -> Solution:
    """The fits of all folds for raw features, on average: where a fit to all photos may begin."""
    pairs = zip(one.answers, cross, strict=True)
    raw = [fold.problem.frame.to_raw(said.found) for said, fold in pairs]
    return Solution(np.mean([found.weight for found in raw], axis=0), np.mean([found.bias for found in raw], axis=0))


def _side_by_side(work: Callable[[int], Result], numbers: Iterable[int]) -> list[Result]:
    """Results in order, computed by a thread a core: folds know nothing of each other."""
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(work, numbers))
