"""The last linear layer, solved: multinomial logistic regression on features of a frozen network.

The problem is convex, so there is no learning rate, no epoch and no luck: the same features give the same head. The
penalty is chosen by stratified cross-validation, by log loss, which a few photos decide less coarsely than accuracy.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.core.runtime import num_cores
from regraft.models.logistic import Rows, Solution, StreamedRows, log_probabilities
from regraft.models.standardised import Problem, problem_of

Result = TypeVar("Result")
ALL_PENALTIES = tuple(map(float, 10.0 ** np.arange(-6.0, 1.6, 0.5)))  # per photo, on standardised features
PENALTIES = ALL_PENALTIES[6:]  # from 0.001 on, unless there are many photos
MIDDLING = PENALTIES[4]  # 0.1, where nothing chooses
FEW = 1000  # photos for which that is a good place to begin; for more, it is less in proportion
ENOUGH = 20_000  # photos that choose the penalty where there are more
MAX_WORK = 2**28  # photos times classes times features from which on a single fold is evaluated


@dataclass(frozen=True)
class Score:
    """Cross-validated quality at one penalty.

    Attributes:
        penalty: Ridge penalty per photo, on standardised features.
        log_loss: Nats a photo.
        num_right: How many of the n photos are classified right; with weights, rounded sums of these.
        n: How many photos were evaluated.
    """

    penalty: float
    log_loss: float
    num_right: int
    n: int


@dataclass(frozen=True)
class Head:
    """A linear layer on raw features: logits = x @ weight.T + bias.

    Attributes:
        weight: `(C, D)` float32.
        bias: `(C,)` float32.
        penalty: The chosen one.
        curve: A Score for each penalty tried, the smallest first.
        held_out: `(N, C)` float64, for the photos that it was solved on: logarithms of probabilities by fits to other
            folds, at the penalty that those folds choose; NaN for photos that were not evaluated.
        cross_validated: How good those are; None where there are none.
    """

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    curve: tuple[Score, ...]
    held_out: np.ndarray
    cross_validated: Score | None

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return `(N, C)` float32 of features `x (N, D)` float32."""
        return np.asarray(x @ self.weight.T + self.bias)


@dataclass(frozen=True)
class _Fold:
    """One fold of a cross-validation.

    Attributes:
        problem: The photos of the other folds.
        evaluated: `(n,)` int64, the photos of this fold, which are evaluated.
        rows: `(n, R)`, their features, in the problem's frame.
        y: `(n,)` int64, their labels.
        weights: `(n,)` float64, how often each of them counts; None for once.
    """

    problem: Problem
    evaluated: np.ndarray
    rows: Rows
    y: np.ndarray
    weights: np.ndarray | None

    def try_at(self, penalty: float, start: Solution | None, above: float) -> "_Answers":
        """Classify its photos by a fit to the others."""
        solution = self.problem.fit(penalty, start, above)
        return _Answers(solution, log_probabilities(self.rows, solution, np.zeros(len(self.evaluated), np.int64)))

    def loss(self, answers: "_Answers") -> float:
        """Return the nats of its photos, added up."""
        log_p = answers.log_p[np.arange(len(self.y)), self.y]
        return float(-(log_p if self.weights is None else log_p * self.weights).sum())


@dataclass(frozen=True)
class _Answers:
    """What a fit answers for the photos of a fold that it has not seen: `log_p` is `(n, C)` float64."""

    solution: Solution
    log_p: np.ndarray


@dataclass(frozen=True)
class _Try:
    """A penalty on every fold: `losses (K,)` are the nats of each."""

    penalty: float
    answers: list[_Answers]
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Nats of all photos."""
        return float(self.losses.sum())


def solve(features: Features, num_classes: int, folds: np.ndarray) -> Head:
    """Solve the head and choose its penalty.

    Of more than `ENOUGH` photos, only that many choose the penalty, and by a single fold where photos times classes
    times features exceed `MAX_WORK`.

    Args:
        features: x `(N, D)` float32, y `(N,)` int64 with every class present. Photos are taken by content: their names
            and order change no bit. Of weights, a whole number is that many copies.
        num_classes: Number C of classes.
        folds: `(N,)` int64, the fold that evaluates a photo; -1 for photos that are never evaluated.

    Returns:
        The head, its curve, and the answers for photos not seen. All that such an answer rests on was found without the
        photos of its fold: mean and spread of the features, the fit, and where there are several folds its penalty.

    Raises:
        ValueError: The folds are of other photos than the features.
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
        tries = _try_penalties(cross, len(order)) if cross else []
        whole = problem_of(features, num_classes, order)
        penalty, start = MIDDLING, None
        if best := min(tries, key=lambda one: one.loss, default=None):
            penalty, start = best.penalty, whole.frame.from_raw(_average(best, cross))
        raw = whole.frame.to_raw(whole.fit(penalty, start, whole.tolerance.exact))
        for fold, answers in zip(cross, _unseen(tries, cross), strict=True):
            held_out[order[fold.evaluated]] = answers.log_p
    curve = tuple(sorted((_point(one, cross) for one in tries), key=lambda point: point.penalty))
    cross_validated = score(held_out[order], y, penalty, weights) if tries else None
    weight, bias = raw.weight[0].astype(np.float32), raw.bias[0].astype(np.float32)
    return Head(weight, bias, penalty, curve, held_out, cross_validated)


def out_of_fold(features: Features, num_classes: int, folds: np.ndarray, penalty: float = MIDDLING) -> np.ndarray:
    """Return what heads answer for photos that they have not seen.

    Args:
        features: x `(N, D)` float32, y `(N,)` int64.
        num_classes: Number C of classes.
        folds: `(N,)` int64, the fold that evaluates a photo; -1 for none.
        penalty: Of all the heads.

    Returns:
        `(N, C)` float64, logarithms of each photo's probabilities; NaN where `folds` is -1.

    Raises:
        ValueError: The folds are of other photos than the features.
    """
    _refuse_others(features, folds)
    log_p = np.full((len(folds), num_classes), np.nan)
    with threadpool_limits(1):
        cross = _cross_validation(features, num_classes, np.arange(len(folds)), folds, _names(folds))
        if cross:
            fitted = _try(cross, penalty, None, cross[0].problem.tolerance.firm)
            for fold, answers in zip(cross, fitted.answers, strict=True):
                log_p[fold.evaluated] = answers.log_p
    return log_p


def score(log_p: np.ndarray, y: np.ndarray, penalty: float, weights: np.ndarray | None = None) -> Score:
    """Score what `out_of_fold` gives.

    Args:
        log_p: `(N, C)` float64, logarithms of probabilities; rows of NaN are left out.
        y: `(N,)` int64, the labels.
        penalty: With which they were found.
        weights: `(N,)` float64, how often each photo counts; None for once.
    """
    log_p, y = log_p[evaluated := np.isfinite(log_p).all(axis=1)], y[evaluated]
    loss, correct = -log_p[np.arange(len(y)), y], log_p.argmax(axis=1) == y
    if weights is None:
        return Score(float(penalty), float(loss.mean()), int(correct.sum()), len(y))
    counts = weights[evaluated]
    mean, sums = np.average(loss, weights=counts), (counts[correct].sum(), counts.sum())
    return Score(float(penalty), float(mean), *(round(float(one)) for one in sums))


def _refuse_others(features: Features, folds: np.ndarray) -> None:
    """Raise ValueError for folds of other photos than the features are of: pairing them by position means nothing."""
    if len(folds) != len(features.hashes):
        raise ValueError(f"{len(folds)} folds for the features of {len(features.hashes)} photos")


def _names(folds: np.ndarray) -> list[int]:
    """Return the numbers of the folds that evaluate photos."""
    return [int(name) for name in np.unique(folds[folds >= 0])]


def _cross_validation(
    features: Features, num_classes: int, order: np.ndarray, folds: np.ndarray, names: list[int]
) -> list[_Fold]:
    """Build the folds, each with the problem of the other photos.

    Args:
        features: Of N photos.
        num_classes: Number C of classes.
        order: `(n,)` int64, the photos that take part.
        folds: `(N,)` int64, of all photos.
        names: The folds wanted.
    """
    fold_of = folds[order]

    def one(name: int) -> _Fold:
        problem, evaluated = problem_of(features, num_classes, order[fold_of != name]), np.flatnonzero(fold_of == name)
        rows = order[evaluated] if features.rows is None else features.rows[order[evaluated]]
        shown, weights = problem.frame.show(features.table, rows), features.weights
        fold_weights = None if weights is None else weights[order[evaluated]]
        return _Fold(problem, evaluated, shown, features.y[order[evaluated]], fold_weights)

    return _side_by_side(one, names)


def _try_penalties(cross: list[_Fold], num_photos: int) -> list[_Try]:
    """Try penalties from the middle downwards and upwards, each begun where its neighbour ended.

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
    """Try one penalty on all folds; the fits begin where those of `start` ended."""

    def one(number: int) -> _Answers:
        return cross[number].try_at(penalty, start.answers[number].solution if start else None, above)

    answers = _side_by_side(one, range(len(cross)))
    losses = np.array([fold.loss(fold_answers) for fold, fold_answers in zip(cross, answers, strict=True)])
    return _Try(penalty, answers, losses)


def _unseen(tries: list[_Try], cross: list[_Fold]) -> list[_Answers]:
    """Return each fold's answers at the penalty that the other folds choose, more exactly than for choosing."""

    def one(number: int) -> _Answers:
        others = np.arange(len(cross)) != number if len(cross) > 1 else np.ones(1, bool)
        chosen = min(tries, key=lambda one: float(one.losses[others].sum()))
        fold_answers, fold = chosen.answers[number], cross[number]
        if isinstance(fold.problem.rows, StreamedRows):
            return fold_answers
        return fold.try_at(chosen.penalty, fold_answers.solution, fold.problem.tolerance.firm)

    return _side_by_side(one, range(len(cross) if tries else 0))


def _point(one: _Try, cross: list[_Fold]) -> Score:
    """Return a penalty's place on the curve."""
    log_p = np.concatenate([fold_answers.log_p for fold_answers in one.answers])
    y = np.concatenate([fold.y for fold in cross])
    weights = [fold.weights for fold in cross if fold.weights is not None]
    return score(log_p, y, one.penalty, np.concatenate(weights) if weights else None)


def _average(one: _Try, cross: list[_Fold]) -> Solution:
    """Average the fits of all folds for raw features: a fit to all photos may begin there."""
    pairs = zip(one.answers, cross, strict=True)
    raw = [fold.problem.frame.to_raw(fold_answers.solution) for fold_answers, fold in pairs]
    return Solution(np.mean([fit.weight for fit in raw], axis=0), np.mean([fit.bias for fit in raw], axis=0))


def _side_by_side(work: Callable[[int], Result], numbers: Iterable[int]) -> list[Result]:
    """Return results in order, computed by one thread for each core: folds do not depend on each other."""
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(work, numbers))
