"""Probabilities that mean what they say: a temperature, and from which probability on an answer can be relied on.

All of it is found on photos that the head in question has not seen, and no photo is scored with values that it helped
to set.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from regraft.core.statistics import upper_bound
from regraft.models.logistic import log_softmax

WORTH = 1.92  # nats in all by which a temperature has to be likelier than 1: a likelihood-ratio test at 5 %
COLDEST, HOTTEST = 0.05, 20.0
COVERAGES = (0.8, 0.9, 0.95, 0.99)
SHARES = 10  # shares of photos answered, from a tenth to all, among which one is chosen by its error
CERTAINTY = 0.9  # that all of them have no more errors than is said
SOFT = 0.5  # share of the loss of guessing that a softened head has on the photos that it was solved on
HALVINGS = 30
GOLDEN = (5**0.5 - 1) / 2


def temperature(log_p: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Find what to divide logits by so that probabilities fit labels best; 1 where that is hardly likelier.

    Below 1, one answer in n + 1 is taken to be wrong beside those that are: that all were right is no reason to be
    certain.

    Args:
        log_p: `(N, C)` float64, logarithms of probabilities of photos not seen; rows of NaN are left out.
        y: `(N,)` int64, the labels.
        weights: `(N,)` float64, how often each photo counts; None for once.

    Returns:
        The temperature; 1 without photos.

    References:
        C. Guo et al., "On calibration of modern neural networks", ICML 2017.

        J. Platt, "Probabilistic outputs for support vector machines", 1999.
    """
    known = np.isfinite(log_p).all(axis=1)
    log_p, y, weights = log_p[known], y[known], None if weights is None else weights[known]
    if len(y) == 0:
        return 1.0

    likeliest = _likeliest(log_p, y, weights, doubt=0.0)
    total = len(y) if weights is None else float(weights.sum())
    return likeliest if likeliest >= 1 else min(1.0, _likeliest(log_p, y, weights, doubt=1 / (total + 1)))


def calibrated_losses(log_p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return `(N,)` float64: log losses in nats at the temperature that fits best; NaN for rows of NaN.

    So models can be compared of which one is more modest than it need be.

    Args:
        log_p: `(N, C)`, logarithms of probabilities, or logits, of photos not seen.
        y: `(N,)` int64, the labels.
    """
    log_p = log_softmax(log_p.astype(np.float64))
    return np.asarray(-log_softmax(log_p / temperature(log_p, y))[np.arange(len(y)), y])


def _likeliest(log_p: np.ndarray, y: np.ndarray, weights: np.ndarray | None, doubt: float) -> float:
    """Return the temperature of the lowest loss; 1 where that is hardly lower.

    Args:
        log_p: `(N, C)` float64, without rows of NaN.
        y: `(N,)` int64, the labels.
        weights: `(N,)` float64, how often each photo counts; None for once.
        doubt: Share of answers that are taken to be wrong.
    """
    n, num_classes = log_p.shape

    def loss(log_t: float) -> float:
        calibrated_log_p = log_softmax(log_p / np.exp(log_t))
        if weights is not None:
            calibrated_log_p = calibrated_log_p * weights[:, np.newaxis]
        of_labels = calibrated_log_p[np.arange(n), y].sum()
        others = (calibrated_log_p.sum() - of_labels) / (num_classes - 1)
        return -float((1 - doubt) * of_labels + doubt * others)

    best = _lowest(loss, float(np.log(COLDEST)), float(np.log(HOTTEST)))
    return float(np.exp(best)) if loss(0.0) - loss(best) > WORTH else 1.0


def softening(logits: np.ndarray, y: np.ndarray) -> float:
    """Find by what to multiply logits so that their mean loss is `SOFT` of the loss of guessing.

    A head that was solved on photos has hardly a loss on them, and a network that begins to learn from it has hardly a
    gradient.

    Args:
        logits: `(N, C)`, of photos that were learned from.
        y: `(N,)` int64, the labels.

    Returns:
        Above 0 and at most 1; 1 where the loss is larger already.
    """
    logits, aim = logits.astype(np.float64), SOFT * np.log(logits.shape[1])

    def loss(factor: float) -> float:
        return -float(log_softmax(factor * logits)[np.arange(len(y)), y].mean())

    low, high = 0.0, 1.0  # factors between which the loss comes to the aim
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) > aim else (low, middle)
    return high


def calibrated(logits: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, Any]]:
    """Return the temperature, and the thresholds with it applied, of photos not seen.

    Args:
        logits: `(N, C)`.
        y: `(N,)` int64, the labels.
    """
    logits = logits.astype(np.float64)
    calibrated_log_p = temperature(logits, y)
    return calibrated_log_p, thresholds(log_softmax(logits / calibrated_log_p), y)


def thresholds(log_p: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Find from which probability on a model's answers are to be relied on, as manifests keep it.

    Args:
        log_p: `(N, C)` float64 with the temperature applied, of photos not seen; rows of NaN are left out.
        y: `(N,)` int64, the labels.

    Returns:
        Empty without photos, else

        - "n": how many photos there are.
        - "max_error": lists of `[error, probability, share]`. Of the answers that are at least so probable, which are
          that share of all, no more than that error is wrong. With 90 % certainty that holds for all shares at once, so
          the best one may be chosen. The bounds are exact binomial ones.
        - "coverage": lists of `[coverage, probability]`. The classes that are at least so probable hold the right one
          with that frequency (split conformal prediction).

    References:
        Y. Geifman, R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017.

        M. Sadinle et al., "Least ambiguous set-valued classifiers", JASA 2019.
    """
    log_p, y = _known(log_p, y)
    if len(y) == 0:
        return {}
    p = np.exp(log_p)
    of_labels = np.sort(p[np.arange(len(y)), y])[::-1]
    ranks = {coverage: int(np.ceil((len(y) + 1) * coverage)) for coverage in COVERAGES}
    return {
        "n": len(y),
        "max_error": _risk_coverage(p.max(axis=1), p.argmax(axis=1) != y),
        "coverage": [[coverage, float(of_labels[rank - 1])] for coverage, rank in ranks.items() if rank <= len(y)],
    }


def _risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> list[list[float]]:
    """Return `[error, probability, share answered]` from answering all to answering only the surest."""
    order = np.argsort(-confidence, kind="stable")
    confidence, num_wrong, n = confidence[order], np.cumsum(wrong[order]), len(confidence)
    places = np.unique(np.arange(1, SHARES + 1) * n // SHARES)[::-1]
    each = 1 - (1 - CERTAINTY) / SHARES
    steps = []
    for place in places[places > 0]:
        least = confidence[place - 1]
        answered = int((confidence >= least).sum())  # answers equally sure are given together
        steps.append([upper_bound(int(num_wrong[answered - 1]), answered, each), float(least), answered / n])
    return steps


def _known(log_p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that are not of NaN."""
    known = np.isfinite(log_p).all(axis=1)
    return log_p[known], y[known]


def _lowest(function: Callable[[float], float], low: float, high: float, steps: int = 30) -> float:
    """Find where a function that falls and then rises is lowest, by golden sections."""
    a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_a, at_b = function(a), function(b)
    for _ in range(steps):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - GOLDEN * (high - low)
            at_a = function(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + GOLDEN * (high - low)
            at_b = function(b)
    return (low + high) / 2
