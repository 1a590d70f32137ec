"""A place in the plane for each of some photos, so that photos whose features are alike lie close together."""

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.core.pca import principal_axes

NUM_AXES = 30  # features are reduced to their principal components first
PERPLEXITY = 20.0  # neighbours that count, about
EXAGGERATED, STEPS = 100, 400  # steps with neighbours drawn together, and all steps
EXAGGERATION = 12.0
LEAST = 1e-12


def layout(x: np.ndarray) -> np.ndarray:
    """Lay photos out by t-SNE, exactly, from their two principal components on: the same photos give the same map.

    Args:
        x: `(N, D)` features, of some hundred photos at most: time and memory grow with N squared.

    Returns:
        `(N, 2)` float64 that fill -1..1 along both axes, the longer extent along the first; by principal components
        alone for fewer than 8 photos.

    References:
        L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", JMLR 2008; the start and the step size are those
        of D. Kobak, P. Berens, "The art of using t-SNE for single-cell transcriptomics", Nature Communications 2019.
    """
    with threadpool_limits(1):
        z = _components(x)
        y = z[:, :2]
        if len(z) >= 8:
            y = _tsne(z, y)
            axes, _ = principal_axes(y - y.mean(axis=0))
            y = (y - y.mean(axis=0)) @ axes[:, ::-1] if axes.shape[1] == 2 else y
    low, high = y.min(axis=0), y.max(axis=0)
    return np.asarray((2 * y - low - high) / np.maximum(high - low, LEAST))


def _components(x: np.ndarray) -> np.ndarray:
    """Return `(N, 2 or more)` principal components of features scaled to length 1, the largest first."""
    unit = x.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), LEAST)
    unit -= unit.mean(axis=0)
    axes, _ = principal_axes(unit, NUM_AXES)
    axes = axes[:, ::-1]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # which way an axis points is chance
    z = unit @ (axes * signs)
    return np.pad(z, ((0, 0), (0, max(0, 2 - z.shape[1]))))


def _tsne(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Move points `(N, 2)` until their neighbours are those that they have among the components `(N, A)`."""
    n = len(z)
    p = _affinities(_squares(z), min(PERPLEXITY, (n - 1) / 3))
    y = 1e-4 * y / max(float(y[:, 0].std()), LEAST)
    rate = max(n / EXAGGERATION, 50.0)
    speed, gains = np.zeros_like(y), np.ones_like(y)
    for step in range(STEPS):
        is_early = step < EXAGGERATED
        closeness = 1.0 / (1.0 + _squares(y))
        np.fill_diagonal(closeness, 0.0)
        pull = ((EXAGGERATION if is_early else 1.0) * p - closeness / closeness.sum()) * closeness
        gradient = 4.0 * (pull.sum(axis=1)[:, np.newaxis] * y - pull @ y)
        gains = np.maximum(np.where((gradient > 0) == (speed > 0), 0.8 * gains, gains + 0.2), 0.01)
        speed = (0.5 if is_early else 0.8) * speed - rate * gains * gradient
        y = y + speed
        y -= y.mean(axis=0)
    return y


def _squares(z: np.ndarray) -> np.ndarray:
    """Return `(N, N)`, the squared distances of all points."""
    lengths = (z**2).sum(axis=1)
    return np.asarray(np.maximum(lengths[:, np.newaxis] + lengths - 2.0 * z @ z.T, 0.0))


def _affinities(squares: np.ndarray, perplexity: float) -> np.ndarray:
    """Return `(N, N)`, how much of a neighbour each point is of each other; they sum to 1.

    How far a point looks is found by bisection, for all points at once, so that it has as many neighbours as wanted.
    """
    n, wanted = len(squares), np.log(perplexity)
    far = squares / max(float(np.median(squares)), LEAST)
    np.fill_diagonal(far, np.inf)
    near = far - far.min(axis=1, keepdims=True)
    low, high = np.full((n, 1), 1e-6), np.full((n, 1), 1e6)
    for _ in range(60):
        beta = np.sqrt(low * high)
        weights = np.exp(-beta * near)
        total = weights.sum(axis=1, keepdims=True)
        shares = weights / total
        entropy = np.log(total) + beta * (np.where(shares > 0, near, 0.0) * shares).sum(axis=1, keepdims=True)
        low, high = np.where(entropy > wanted, beta, low), np.where(entropy > wanted, high, beta)
    both = shares + shares.T
    return np.asarray(both / both.sum())


def spread(y: np.ndarray, gap: tuple[float, float], steps: int = 60) -> np.ndarray:
    """Push points apart that would cover each other, as little as that takes.

    Args:
        y: `(N, 2)`, within -1..1.
        gap: Width and height that each takes, in the same units.
        steps: Times that all pairs are looked at; where there is no room for all, some still overlap.

    Returns:
        `(N, 2)`, within -1..1.
    """
    size = np.asarray(gap, np.float64)
    y = y / size
    edge = 1.0 / size
    tie = np.arange(len(y)) % 2 * 1e-6  # of points at one place
    y[:, 0] += tie + np.arange(len(y)) * 1e-9
    for _ in range(steps):
        away = y[:, np.newaxis] - y
        distance = np.abs(away).max(axis=2)
        np.fill_diagonal(distance, np.inf)
        overlap = np.maximum(1.0 - distance, 0.0)
        if not overlap.any():
            break
        length = np.maximum(np.linalg.norm(away, axis=2), LEAST)
        y = y + 0.35 * (away * (overlap / length)[:, :, np.newaxis]).sum(axis=1)
        y = np.clip(y, -edge, edge)
    return np.asarray(y * size)
