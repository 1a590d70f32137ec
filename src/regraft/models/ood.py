"""Where the features of the training photos lie, so that a model can tell photos that are unlike all of them."""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.core.pca import principal_axes

NUM_AXES = 16
PHOTOS_PER_AXIS = 4  # at least
MANY = 1024  # photos that tell the axes where there are more; six eigendecompositions of as many
SEEN_AS_NEW = 0.01  # share of photos like the training photos that may be taken for unlike ones
LEAST = 1e-12  # length


@dataclass(frozen=True)
class OodDetector:
    """A subspace of features that are scaled to length 1, near which the features of the training photos lie.

    Attributes:
        mean: `(D,)` float32.
        axes: `(A, D)` float32, orthonormal rows.
        limit: The distance from the subspace that all but 1 % of photos of the same kind keep.
    """

    mean: np.ndarray
    axes: np.ndarray
    limit: float

    def novelty(self, x: np.ndarray) -> np.ndarray:
        """Return how unlike the training photos others are.

        Args:
            x: `(N, D)` float32, their features.

        Returns:
            `(N,)` float32: distance from the subspace divided by the limit; above 1 for what is unlike the training
            photos.
        """
        return _distance(x, self.mean, self.axes) / np.float32(self.limit)


def fit_ood_detector(features: Features, unseen: Features | None = None) -> OodDetector | None:
    """Find the subspace of some photos' features.

    Args:
        features: Of the photos.
        unseen: Of photos of the same kind that the network has not learned from, to set the limit by. None for a
            network that has learned from neither: its limit comes from photos left out of the subspace that they are
            measured from.

    Returns:
        The subspace and its limit; None for photos too few, or too much alike, to span one.

    References:
        The residual of H. Wang et al., "ViM: Out-of-distribution with virtual-logit matching", CVPR 2022.
    """
    x = _by_content(features)
    if len(x) < 5 * PHOTOS_PER_AXIS:
        return None
    fold = np.arange(len(x)) % 5
    with threadpool_limits(1):  # the same bytes on any number of cores
        mean, axes = _subspace(x)
        if unseen is None:
            far = np.concatenate([_distance(x[fold == k], *_subspace(x[fold != k])) for k in range(5)])
        else:
            far = _distance(_by_content(unseen), mean, axes)
    n = len(far)
    limit = np.sort(far)[min(n, int(np.ceil((1 - SEEN_AS_NEW) * (n + 1)))) - 1]
    return OodDetector(mean, axes, float(limit)) if limit > 1e-6 else None


def _by_content(features: Features) -> np.ndarray:
    """Return `(n, D)`: features in an order that does not depend on names, of some photos where there are many."""
    order = np.argsort(np.array(features.hashes), kind="stable")
    order = order[:: -(-len(order) // MANY)]
    return np.asarray(features.table[order if features.rows is None else features.rows[order]])


def _distance(x: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> np.ndarray:
    centred = _unit(x) - mean
    return np.asarray(np.linalg.norm(centred - (centred @ axes.T) @ axes, axis=1))


def _subspace(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and the axes along which features spread most."""
    unit = _unit(x).astype(np.float64)
    mean = unit.mean(axis=0)
    axes, _ = principal_axes(unit - mean, min(NUM_AXES, len(x) // PHOTOS_PER_AXIS))
    return mean.astype(np.float32), np.ascontiguousarray(axes.T, np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), LEAST))
