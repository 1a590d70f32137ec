"""Minimise smooth convex functions with numpy alone: SciPy's own takes longer to import than this takes to run.

Several problems of the same size go in step, so that one product of matrices serves them all.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

MEMORY = 10  # steps that the curvature is guessed from
SUFFICIENT = 1e-4  # share of the decrease that the slope promises
HALVINGS = 40  # of one step, before rounding is taken for the end

Map = Callable[[np.ndarray], np.ndarray]
Step = tuple[np.ndarray, np.ndarray, np.ndarray]  # points' change and gradients' change `(K, P)`, 1 / their product


def minimize(
    function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    start: np.ndarray,
    *,
    enough: np.ndarray | float,
    max_iterations: int,
    precondition: Map = np.copy,
    rounding: float = 1e-14,
) -> np.ndarray:
    """Minimise K smooth convex functions of P variables at once, by L-BFGS with backtracking.

    Args:
        function: Takes K points `(K, P)` float64; gives their losses `(K,)` and gradients `(K, P)`.
        start: `(K, P)` float64, the points to begin from.
        enough: `(K,)`, or one for all: the squared length of a gradient that is small enough.
        max_iterations: Steps at most.
        precondition: A guess of the inverse Hessians times K vectors.
        rounding: Rounding error of a loss, relative to the loss or to 1, whichever is larger.

    Returns:
        `(K, P)` float64: points where the squared length of the gradient is at most `enough`, or where rounding or
        `max_iterations` stopped the descent.

    References:
        J. Nocedal and S. Wright, "Numerical Optimization", algorithms 7.4 and 3.1.
    """
    x, (loss, gradient) = start, function(start)
    best, idle, scale = loss, np.zeros(len(start), np.int64), np.ones(len(start))
    steps: deque[Step] = deque(maxlen=MEMORY)
    for _ in range(max_iterations):
        going = (_dot(gradient, gradient) > enough) & (idle < MEMORY)
        if not going.any():
            break
        step = -_newton_like(gradient, steps, precondition, scale) * going[:, np.newaxis]
        step, new_loss, new_gradient = _backtrack(function, x, loss, gradient, step, rounding)
        change = new_gradient - gradient
        curvature = _dot(step, change)
        bent = curvature > 0
        scale = np.where(bent, curvature / np.where(bent, _dot(change, precondition(change)), 1), scale)
        steps.append((step, change, np.where(bent, 1 / np.where(bent, curvature, 1), 0)))
        x, loss, gradient = x + step, new_loss, new_gradient
        idle = np.where(loss < best, 0, idle + 1)
        best = np.minimum(loss, best)
    return x


def _backtrack(
    function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    x: np.ndarray,
    loss: np.ndarray,
    gradient: np.ndarray,
    step: np.ndarray,
    rounding: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Halve each step until its loss falls enough, or make it zero where it never does; with losses and gradients."""
    slope = _dot(gradient, step)
    for _ in range(HALVINGS):
        new_loss, new_gradient = function(x + step)
        short = new_loss > loss + SUFFICIENT * slope + rounding * np.maximum(1, np.abs(loss))
        if not short.any():
            return step, new_loss, new_gradient
        factor = np.where(short, 0.5, 1.0)
        step, slope = step * factor[:, np.newaxis], slope * factor
    step = np.where(short[:, np.newaxis], 0.0, step)
    return step, np.where(short, loss, new_loss), np.where(short[:, np.newaxis], gradient, new_gradient)


def _newton_like(gradient: np.ndarray, steps: deque[Step], precondition: Map, scale: np.ndarray) -> np.ndarray:
    """Multiply the gradients by their inverse Hessians, as far as the guess and the last steps tell them."""
    direction, shares, product = gradient.copy(), [], np.empty_like(gradient)
    for step, change, inverse in reversed(steps):
        shares.append(inverse * _dot(step, direction))
        direction -= np.multiply(shares[-1][:, np.newaxis], change, out=product)
    direction = scale[:, np.newaxis] * precondition(direction)
    for (step, change, inverse), share in zip(steps, reversed(shares), strict=True):
        direction += np.multiply((share - inverse * _dot(change, direction))[:, np.newaxis], step, out=product)
    return direction


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("kp,kp->k", a, b))
