"""How far a number can be trusted."""

from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval.

    value, low, high: 0..1.  n: number of photos scored.  split: which photos, e.g. "val".
    """

    value: float
    low: float
    high: float
    n: int
    split: str

    def to_json(self) -> dict[str, Any]:
        """As printed and stored."""
        return asdict(self)

    def __str__(self) -> str:
        interval = f"{100 * self.low:.1f} to {100 * self.high:.1f} %"
        return f"{100 * self.value:.1f} % of {self.n} {self.split} photos (95 % interval {interval})"


def wilson_interval(num_right: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval `(low, high)` in 0..1 for a proportion.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    Raises ValueError unless `0 <= num_right <= n` and `n > 0`.
    """
    if not 0 <= num_right <= n or n == 0:
        raise ValueError(f"Expected 0 <= num_right <= n and n > 0, got num_right={num_right}, n={n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = num_right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # p is inside, also after rounding


def accuracy(num_right: int, n: int, split: str) -> Accuracy:
    """Accuracy with its Wilson interval."""
    low, high = wilson_interval(num_right, n)
    return Accuracy(num_right / n, low, high, n, split)
