"""How far a measured number can be trusted: intervals, bounds and corrected p-values."""

from dataclasses import asdict, dataclass
from math import log, log1p, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

DIGITS = 55  # halvings, until the ends are neighbours
NUM_DRAWS = 2000  # of a bootstrap
NUM_BLOCKS = 20
AT_ONCE = 100_000  # photos drawn in one go
LARGE = 20_000  # photos whose mean needs none


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval.

    Attributes:
        value: The share, 0..1.
        low: Lower end of the interval, 0..1.
        high: Upper end of the interval, 0..1.
        n: Number of photos scored.
        split: Which photos, e.g. "val".
    """

    value: float
    low: float
    high: float
    n: int
    split: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as they are printed and stored."""
        return asdict(self)

    def __str__(self) -> str:
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f} %"
        return f"{100 * self.value:.1f} % of {self.n} {self.split} photos (95 % interval {interval})"


def wilson_interval(num_right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute an interval for a proportion.

    Args:
        num_right: How many of `n` were right.
        n: Number of trials, above 0.
        confidence: 0..1, how sure the interval is.

    Returns:
        `(low, high)` in 0..1.

    Raises:
        ValueError: Unless `0 <= num_right <= n` and `n > 0`.

    References:
        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not 0 <= num_right <= n or n == 0:
        raise ValueError(f"Expected 0 <= num_right <= n and n > 0, got num_right={num_right}, n={n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = num_right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # p is inside, also after rounding


def accuracy(num_right: int, n: int, split: str) -> Accuracy:
    """Return the accuracy of `num_right` out of `n` photos of a split, with its Wilson interval.

    Raises:
        ValueError: Unless `0 <= num_right <= n` and `n > 0`.
    """
    low, high = wilson_interval(num_right, n)
    return Accuracy(num_right / n, low, high, n, split)


def upper_bound(num_wrong: int, n: int, certainty: float) -> float:
    """Compute the largest rate at which no more than `num_wrong` of `n` still happens with probability 1 - certainty.

    Exact and one-sided. The rate is found by bisection, because scipy, which inverts the beta distribution, is half as
    large as all that regraft needs.

    Args:
        num_wrong: How often it happened, from 0 to n.
        n: How often it could have.
        certainty: 0..1.

    Returns:
        The rate, 0..1.

    References:
        C. Clopper, E. Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    if num_wrong >= n:
        return 1.0
    k = np.arange(num_wrong + 1)
    log_binomials = np.concatenate([[0.0], np.cumsum(np.log((n - k[1:] + 1) / k[1:]))])  # of choosing k out of n
    low, high = num_wrong / n, 1.0
    for _ in range(DIGITS):
        rate = (low + high) / 2
        likely = np.exp(log_binomials + k * log(rate) + (n - k) * log1p(-rate)).sum()
        low, high = (rate, high) if likely > 1 - certainty else (low, rate)
    return high


def difference_interval(a_only: int, b_only: int, n: int) -> tuple[float, float]:
    """Compute a 95 % interval of the share that b has right minus the share that a has right, on the same photos.

    Args:
        a_only: Photos that a alone has right.
        b_only: Photos that b alone has right.
        n: All photos.

    Returns:
        `(low, high)` in -1..1.

    References:
        A. Agresti, Y. Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in
        Medicine 24 (2005).
    """
    a, b, n = a_only + 0.5, b_only + 0.5, n + 2
    centre = (b - a) / n
    half = NormalDist().inv_cdf(0.975) * sqrt((a + b) - (b - a) ** 2 / n) / n
    return max(-1.0, centre - half), min(1.0, centre + half)


def holm(p_values: list[float]) -> list[float]:
    """Correct the p-values of several tests so that all of them together are wrong in as few cases as one alone.

    Returns:
        The corrected p-values, 0..1, in the given order.

    References:
        S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = so_far
    return corrected


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Compute a 95 % interval of a mean, by bootstrap percentiles, or by the normal distribution from 20,000 values on.

    Args:
        values: `(N,)`.

    Returns:
        `(low, high)`.

    References:
        B. Efron, R. Tibshirani, "An introduction to the bootstrap", 1993.
    """
    rng, n = np.random.default_rng(0), len(values)
    if n >= LARGE:  # a sum of so many is normal
        half = NormalDist().inv_cdf(0.975) * float(values.std()) / sqrt(n)
        return float(values.mean()) - half, float(values.mean()) + half
    step = max(1, AT_ONCE // n)  # draws whose photos are in memory together
    sizes = [min(step, NUM_DRAWS - begin) for begin in range(0, NUM_DRAWS, step)]
    means = np.concatenate([values[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities along the last axis: 0..1, and their sum is 1."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Compute the mean F1 over the classes that occur.

    Args:
        confusion: `(..., C, C)`, confusion matrices with a row for each true class.

    Returns:
        `(...)`, 0..1.
    """
    return _mean_f1(np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2))


def _mean_f1(correct: np.ndarray, n: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean F1 of counts `(..., C)`: photos of a class predicted right, photos of it, and how often it was predicted."""
    f1 = 2 * correct / np.maximum(n + predicted, 1)
    return np.asarray(np.where(n > 0, f1, 0).sum(axis=-1) / np.maximum((n > 0).sum(axis=-1), 1))


def macro_f1_interval(confusion: np.ndarray) -> tuple[float, float]:
    """Compute a 95 % interval of macro F1, by bootstrap over the photos behind a confusion matrix.

    Args:
        confusion: `(C, C)` int64, a row for each true class.

    Returns:
        `(low, high)` in 0..1.
    """
    cells = np.argwhere(confusion > 0)
    counts = confusion[tuple(cells.T)]
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), NUM_DRAWS)
    values = np.concatenate([_macro_f1_of(block, cells, confusion) for block in np.array_split(drawn, NUM_BLOCKS)])
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _macro_f1_of(counts: np.ndarray, cells: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Macro F1 `(K,)` of K confusion matrices, whose cells that are not empty `(n, 2)` hold `counts (K, n)`."""
    size, (rows, columns) = len(confusion), cells.T
    correct = rows == columns
    return _mean_f1(
        *(
            _added_up(counts[:, some], place[some], size)
            for some, place in ((correct, rows), (slice(None), rows), (slice(None), columns))
        )
    )


def _added_up(counts: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """Add up counts `(K, n)` by their places `(n,)` among `size`, to `(K, size)`. No matrix `(K, C, C)` is made."""
    sums = np.zeros((len(counts), size), counts.dtype)
    order = np.argsort(places, kind="stable")
    names, starts = np.unique(places[order], return_index=True)
    if len(names):
        sums[:, names] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums
