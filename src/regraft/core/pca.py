"""Principal axes of a cloud of points."""

import numpy as np

KEPT = 1e-10  # of the largest square; less is rounding


def principal_axes(z: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Axes `(R, A)` along which centred points `z (n, R)` spread, A <= min(n, R), and their variances `(A,)`.

    count: no more than so many, the largest.  They ascend; they are the eigenvectors of the smaller of two products.
    """
    z = z.astype(np.float64, copy=False)
    n, r = z.shape
    squares, vectors = np.linalg.eigh(z @ z.T if n < r else z.T @ z)
    kept = np.flatnonzero(squares > KEPT * squares.max(initial=0.0))
    kept = kept if count is None else kept[-count:]
    squares, vectors = squares[kept], vectors[:, kept]
    return (z.T @ (vectors / np.sqrt(squares)) if n < r else vectors), squares / n
