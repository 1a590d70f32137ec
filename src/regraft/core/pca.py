"""Principal axes of a cloud of points."""

import numpy as np

KEPT = 1e-10  # of the largest square; less is rounding


def principal_axes(z: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the axes along which centred points spread, from the eigenvectors of the smaller of two products.

    Args:
        z: `(n, R)`, points whose mean is 0.
        count: How many axes at most, those with the largest variances; None for all.

    Returns:
        Axes `(R, A)` and their variances `(A,)`, both float64, in ascending order of variance; A <= min(n, R).
    """
    z = z.astype(np.float64, copy=False)
    n, r = z.shape
    squares, vectors = np.linalg.eigh(z @ z.T if n < r else z.T @ z)
    kept = np.flatnonzero(squares > KEPT * squares.max(initial=0.0))
    kept = kept if count is None else kept[-count:]
    squares, vectors = squares[kept], vectors[:, kept]
    return (z.T @ (vectors / np.sqrt(squares)) if n < r else vectors), squares / n
