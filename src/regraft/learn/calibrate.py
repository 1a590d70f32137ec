"""Probabilities that mean what they say: a temperature, from photos that the head in question has not seen."""

from collections.abc import Callable

import numpy as np

from regraft.learn.logistic import log_softmax

WORTH = 1.92  # nats in all by which a temperature has to be likelier than 1: a likelihood-ratio test at 5 %
COLDEST, HOTTEST = 0.05, 20.0
GOLDEN = (5**0.5 - 1) / 2


def temperature(log_p: np.ndarray, y: np.ndarray) -> float:
    """What to divide logits by so that probabilities fit labels best; 1 where that is hardly likelier.

    log_p: `(N, C)` float64, logarithms of probabilities of photos not seen; rows of NaN are left out.  y: `(N,)` int64.
    C. Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    known = np.isfinite(log_p).all(axis=1)
    log_p, y = log_p[known], y[known]
    if len(y) == 0:
        return 1.0

    def loss(log_t: float) -> float:
        return -float(log_softmax(log_p / np.exp(log_t))[np.arange(len(y)), y].sum())

    best = _lowest(loss, float(np.log(COLDEST)), float(np.log(HOTTEST)))
    return float(np.exp(best)) if loss(0.0) - loss(best) > WORTH else 1.0


def _lowest(function: Callable[[float], float], low: float, high: float, steps: int = 30) -> float:
    """Where a function that falls and then rises is lowest, by golden sections."""
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
