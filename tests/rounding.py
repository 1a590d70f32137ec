"""Bounds on rounding, from the arithmetic: how many numbers are added up, how large they are, how exact they are."""

import numpy as np

EPS = float(np.finfo(np.float32).eps)  # 2 ** -23, twice the unit roundoff


def rounding(num_terms: int, magnitude: float = 1.0, *, num_sums: int = 1) -> float:
    """How far two ways of one computation in float32 may lie apart that only differ in what they add up first.

    A sum of n terms, in whatever order, is off by at most `n * EPS / 2` times the sum of the absolute values (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd edition, section 4.2), so two orders differ by at most
    `n * EPS * magnitude`. The factor 2 before it is for the products that are added up, whose own rounding depends on
    whether a processor fuses them. Sums that follow each other (the steps of a training) add up what each is off by;
    that a step neither enlarges nor shrinks what comes in is an assumption, fair for trainings as short as these.

    Args:
        num_terms: What is added up in another order: photos of a batch, rows of a matrix, ghost batches.
        magnitude: The sum of the absolute values of the terms, or a bound on it; 1 gives a relative bound.
        num_sums: How many such sums follow each other, each fed by the one before.

    Returns:
        A bound on the absolute difference.
    """
    return 2.0 * num_terms * EPS * magnitude * num_sums
