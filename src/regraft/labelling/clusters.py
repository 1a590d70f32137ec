"""Photos that look alike, as clusters of their projected features: what can be named before there is a model."""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

SAMPLE = 4096  # photos that tell the centres where there are more
MAX_STEPS = 20
MOST_CLUSTERS = 128
PER_CLASS_PAGE, LEAST_SIZE, MOST_SIZE = 24, 6, 24  # a cluster is to have a 24th of the photos, from 6 to 24


@dataclass(frozen=True)
class Clusters:
    """Clusters of photos.

    Attributes:
        rows: `(n,)` int64, the photos.
        member_of: `(n,)` int64, the cluster of each.
        closeness: `(n,)` float32, cosine of the angle between a photo and its cluster's centre.
        centres: `(K, R)` float32, of length 1.
    """

    rows: np.ndarray
    member_of: np.ndarray
    closeness: np.ndarray
    centres: np.ndarray


def find_clusters(z: np.ndarray, rows: np.ndarray) -> Clusters:
    """Cluster photos by the directions of their features.

    Args:
        z: `(n, R)` float32, projected features.
        rows: `(n,)` int64, which photos they are of.

    References:
        I. S. Dhillon, D. S. Modha, "Concept decompositions for large sparse text data using clustering", Machine
        Learning 42 (2001); seeds as in D. Arthur, S. Vassilvitskii, "k-means++", SODA 2007.
    """
    with threadpool_limits(1):
        unit = unit_rows(z)
        sample = unit[:: -(-len(unit) // SAMPLE)]
        size = min(max(len(unit) // PER_CLASS_PAGE, LEAST_SIZE), MOST_SIZE)
        centres = _refined(sample, _seeds(sample, min(-(-len(unit) // size), len(sample), MOST_CLUSTERS)))
    return assigned(z, rows, centres)


def extended(clusters: Clusters, z: np.ndarray, rows: np.ndarray) -> Clusters:
    """Add more photos, each to the nearest centre.

    Args:
        clusters: Of other photos.
        z: `(n, R)` float32, projected features.
        rows: `(n,)` int64, which photos they are of.
    """
    more = assigned(z, rows, clusters.centres)
    return Clusters(
        np.concatenate([clusters.rows, more.rows]),
        np.concatenate([clusters.member_of, more.member_of]),
        np.concatenate([clusters.closeness, more.closeness]),
        clusters.centres,
    )


def assigned(z: np.ndarray, rows: np.ndarray, centres: np.ndarray) -> Clusters:
    """Assign photos to the nearest of some centres.

    Args:
        z: `(n, R)` float32, projected features.
        rows: `(n,)` int64, which photos they are of.
        centres: `(K, R)` float32, of length 1.
    """
    unit = unit_rows(z)
    with threadpool_limits(1):
        likeness = unit @ centres.T
    member_of = likeness.argmax(axis=1)
    return Clusters(rows, member_of, likeness[np.arange(len(unit)), member_of], centres)


def unit_rows(z: np.ndarray) -> np.ndarray:
    """Scale rows `(n, R)` to length 1."""
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12))


def _seeds(unit: np.ndarray, count: int) -> np.ndarray:
    """Choose `count` rows, each with a probability that grows with its distance from those chosen before."""
    rng = np.random.default_rng(0)
    chosen = [int(rng.integers(len(unit)))]
    distance = 1 - unit @ unit[chosen[0]]
    while len(chosen) < count:
        weights = np.maximum(distance, 0).astype(np.float64)
        if weights.sum() <= 0:
            break
        chosen.append(int(rng.choice(len(unit), p=weights / weights.sum())))
        distance = np.minimum(distance, 1 - unit @ unit[chosen[-1]])
    return unit[chosen]


def _refined(unit: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Move centres to the mean direction of their members, until nothing moves."""
    before = None
    for _ in range(MAX_STEPS):
        member_of = (unit @ centres.T).argmax(axis=1)
        if before is not None and np.array_equal(member_of, before):
            break
        sums = np.zeros_like(centres)
        np.add.at(sums, member_of, unit)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres, before = np.where(lengths > 1e-12, sums / np.maximum(lengths, 1e-12), centres), member_of
    return centres
