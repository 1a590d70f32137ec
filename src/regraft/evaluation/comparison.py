"""Two models on the same photos: whether one is better, or the difference is within what chance does."""

from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from regraft.core.statistics import difference_interval, holm

DIFFERS = 0.05  # largest two-sided p-value that is called a difference
DRAWS, BLOCK = 9999, 2**20  # choices of signs for a permutation test, and signs that are drawn at a time
ROUNDING = 1e-9  # share by which sums that are equal may differ
BETTER = 0.1  # largest one for which auto prefers the model that took longer: one-sided 0.05


@dataclass(frozen=True)
class Pair:
    """Models a and b compared on the same photos.

    Attributes:
        a: Name of the one model.
        b: Name of the other.
        a_only: Number of photos that a alone has right.
        b_only: Number of photos that b alone has right.
        n: Number of photos.
        p_value: Exact and two-sided.
        corrected: That p-value where the pair is one of several (Holm's correction); the same where it is alone.

    References:
        Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12
        (1947).
    """

    a: str
    b: str
    a_only: int
    b_only: int
    n: int
    p_value: float
    corrected: float

    @property
    def differs(self) -> bool:
        """Whether chance alone would hardly make such a difference: the corrected p-value is at most 0.05."""
        return self.corrected <= DIFFERS

    @property
    def verdict(self) -> str:
        """Which model is better and by how much, or that they do not differ, in one sentence."""
        if not self.differs:
            return f"{self.a} and {self.b} do not differ on these {self.n} photos"
        (fewer, worse), (more, better) = sorted([(self.a_only, self.a), (self.b_only, self.b)])
        low, high = (_points(end) for end in difference_interval(fewer, more, self.n))
        by = f"{low} to {high} points"
        return f"{better} is better than {worse} by {by}: right on {more - fewer} more of {self.n} photos"

    @property
    def b_wins(self) -> bool:
        """Whether b, which costs more, is to be preferred."""
        return self.b_only > self.a_only and self.p_value <= BETTER

    @property
    def is_open(self) -> bool:
        """Whether b is ahead, but not by enough: more photos would tell."""
        return self.b_only > self.a_only and self.p_value > BETTER

    @property
    def b_is_no_worse(self) -> bool:
        """Whether b is to be preferred where it is expected to be better, whatever these photos leave open."""
        return self.b_only >= self.a_only

    def decision(self, how: str, *, is_b_expected: bool = False, losses: tuple[float, float] | None = None) -> str:
        """Say in one sentence which model is chosen and why.

        Args:
            how: Which photos were compared, a word that stands before "photos".
            is_b_expected: Whether b is preferred unless it is worse.
            losses: Mean losses of a and b, where that of b is clearly less; None where that is not so.
        """
        chosen, why = (self.b, "") if self.b_wins else (self.a, "; without a clear gain the simpler one stays")
        if losses is not None and self.b_is_no_worse and not self.b_wins:
            chosen, why = self.b, f"; its log loss is clearly less, {losses[1]:.3f} instead of {losses[0]:.3f}"
        if is_b_expected:
            chosen = self.b if self.b_is_no_worse else self.a
            why = "; on photos from elsewhere, layers that learned are preferred unless they are worse"
        return (
            f"{chosen}: of {self.n} {how} photos {self.b} alone is right on {self.b_only}, {self.a} alone on "
            f"{self.a_only} (p = {self.p_value:.2g}){why}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the verdict, as printed and stored."""
        return {**asdict(self), "verdict": self.verdict}


def _points(share: float) -> str:
    """Write a share in hundredths, with one decimal, or one digit where that would be nothing."""
    return f"{round(100 * share, 1) or float(f'{100 * share:.1g}'):g}"


def permutation_p(differences: np.ndarray) -> float:
    """Return the two-sided probability that paired differences of no meaning have a mean so far from 0.

    Each difference is as likely to have the other sign: of `DRAWS` such choices, drawn with a fixed seed, those are
    counted whose mean is as far from 0.

    Args:
        differences: `(N,)`, of two models' losses on the same photos.

    References:
        R. A. Fisher, "The Design of Experiments" (1935), section 21.
    """
    rng, far, num_far = np.random.default_rng(0), abs(differences.sum()) * (1 - ROUNDING), 0
    at_once = max(1, BLOCK // max(1, len(differences)))
    for start in range(0, DRAWS, at_once):
        signs = rng.choice(np.array([-1.0, 1.0]), (min(at_once, DRAWS - start), len(differences)))
        num_far += int((np.abs(signs @ differences) >= far).sum())
    return (1 + num_far) / (1 + DRAWS)


def pair(a: str, correct_a: np.ndarray, b: str, correct_b: np.ndarray) -> Pair:
    """Compare two models on the same photos.

    Args:
        a: Name of the one model.
        correct_a: `(N,)` bool, which photos it has right.
        b: Name of the other.
        correct_b: `(N,)` bool, the same photos in the same order.
    """
    a_only, b_only = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p_value = exact_p(min(a_only, b_only), a_only + b_only)
    return Pair(a, b, a_only, b_only, len(correct_a), p_value, p_value)


def exact_p(fewer: int, n: int) -> float:
    """Return the two-sided probability that of n fair throws so few, or so many, come out one way, rounded once.

    scipy.stats has it too, and takes 0.8 s to import.
    """
    binomial, total = 1, 0
    for k in range(fewer + 1):
        total += binomial
        binomial = binomial * (n - k) // (k + 1)
    return min(1.0, 2 * total / (1 << n))


def pairs(correct: dict[str, np.ndarray]) -> tuple[Pair, ...]:
    """Compare every two of several models, with p-values corrected for their number.

    Args:
        correct: By name, `(N,)` bool, which photos a model has right; the same photos in the same order.
    """
    tested = [pair(a, correct[a], b, correct[b]) for a, b in combinations(correct, 2)]
    corrected = holm([one.p_value for one in tested])
    return tuple(replace(one, corrected=p) for one, p in zip(tested, corrected, strict=True))


def no_room(num_right: int, n: int) -> bool:
    """Return whether a model leaves so few photos wrong that no other could be shown to be better on them."""
    return 2 * 0.5 ** (n - num_right) > BETTER
