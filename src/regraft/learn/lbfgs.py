"""Minimising a smooth convex function with numpy alone: SciPy's own takes longer to import than this takes to run."""

from collections import deque
from collections.abc import Callable

import numpy as np

MEMORY = 10  # steps that the curvature is guessed from
SUFFICIENT = 1e-4  # share of the decrease that the slope promises
HALVINGS = 40  # of one step, before rounding is taken for the end
ROUNDING = 1e-14  # of a loss


def minimize(
    function: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    *,
    tolerance: float,
    max_iterations: int,
) -> np.ndarray:
    """Where no entry of the gradient is larger than `tolerance`, or rounding stops the descent. `(P,)` float64.

    function: of `(P,)` float64; gives the loss and its gradient.  L-BFGS with backtracking: J. Nocedal and S. Wright,
    "Numerical Optimization", algorithms 7.4 and 3.1.
    """
    x, (loss, gradient) = start, function(start)
    pairs: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=MEMORY)
    best, idle = loss, 0
    for _ in range(max_iterations):
        if np.abs(gradient).max(initial=0.0) <= tolerance or idle == MEMORY:
            break
        step = -_newton_like(gradient, pairs)
        slope = float(gradient @ step)
        for _ in range(HALVINGS):
            new_loss, new_gradient = function(x + step)
            if new_loss <= loss + SUFFICIENT * slope + ROUNDING * abs(loss):
                break
            step, slope = step / 2, slope / 2
        else:
            break
        if (change := new_gradient - gradient) @ step > 0:
            pairs.append((step, change))
        x, loss, gradient = x + step, new_loss, new_gradient
        best, idle = (loss, 0) if loss < best else (best, idle + 1)
    return x


def _newton_like(gradient: np.ndarray, pairs: deque[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The gradient times the inverse Hessian as far as the last steps tell it; before the first, of length one."""
    if not pairs:
        return np.asarray(gradient / max(1.0, float(np.abs(gradient).sum())))
    direction, shares = gradient, []
    for step, change in reversed(pairs):
        share = (step @ direction) / (step @ change)
        direction = direction - share * change
        shares.append(share)
    step, change = pairs[-1]
    direction = direction * ((step @ change) / (change @ change))
    for (step, change), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + (share - (change @ direction) / (step @ change)) * step
    return np.asarray(direction)
