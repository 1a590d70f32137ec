"""What a model would say of each labelled photo that it had not learned from, without solving it again for each.

Classes are Gaussian clouds with one covariance, which is drawn half way towards a round one. Taking one photo out
changes a mean and, by a matrix of rank one, the covariance, so that the answer without it follows from the one with
it. The round covariance, and the temperature at which probabilities fit the labels best, are those of all photos.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from regraft.models.logistic import log_softmax

ROUNDNESS = 0.5  # share of a round covariance; 0.3 to 0.6 find slips equally well
NEVER = -100.0  # logarithm of the probability of a class that no other photo shows
BLOCK = 4096  # photos at a time
LEAST_LEFT = 1e-3  # of what is divided by, where a photo alone spans a direction
TEMPERATURES = np.geomspace(0.01, 2.0, 40)  # of which the best makes probabilities of likelihoods
MOST_COMPARED = 4096  # photos that choose it


@dataclass(frozen=True)
class _Clouds:
    """C Gaussian classes in R dimensions.

    Attributes:
        counts: `(C,)` float64, photos of each.
        means: `(C, R)` float64.
        inverse: `(R, R)` float64, of the summed squares about the means, regularised.
        total: Number of photos, as float.
    """

    counts: np.ndarray
    means: np.ndarray
    inverse: np.ndarray
    total: float


def log_probabilities_without(
    z: np.ndarray, y: np.ndarray, others: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Say of each labelled photo what a model says that has learned from all the others.

    Args:
        z: `(n, R)` float32, projected features of the labelled photos.
        y: `(n,)` int64, their labels; two classes or more.
        others: `(m, R)` float32, of photos that are not learned from.
        num_classes: Number C of classes.

    Returns:
        Logarithms of probabilities of the labelled photos `(n, C)` and of the others `(m, C)`, both float32.

    References:
        J. H. Friedman, "Regularized discriminant analysis", Journal of the American Statistical Association 84 (1989);
        leaving one out by an update of rank one: K. Fukunaga, "Introduction to Statistical Pattern Recognition" (1990).
    """
    with threadpool_limits(1):
        clouds = _clouds(z, y, num_classes)
        parts = [slice(i, i + BLOCK) for i in range(0, len(z), BLOCK)]
        held_out = np.concatenate([_scores_without(clouds, z[part], y[part]) for part in parts])
        rest = _scores(clouds, others)
        step = -(-len(held_out) // MOST_COMPARED)
        temperature = _best_temperature(held_out[::step], y[::step])
        held_out, rest = (np.maximum(log_softmax(scores * temperature), NEVER) for scores in (held_out, rest))
        return held_out.astype(np.float32), rest.astype(np.float32)


def _clouds(z: np.ndarray, y: np.ndarray, num_classes: int) -> _Clouds:
    counts = np.bincount(y, minlength=num_classes).astype(np.float64)
    size = z.shape[1]
    sums, squares = np.zeros((num_classes, size)), np.zeros((size, size))
    for start in range(0, len(z), BLOCK):
        part = z[start : start + BLOCK].astype(np.float64)
        np.add.at(sums, y[start : start + BLOCK], part)
        squares += part.T @ part
    means = sums / np.maximum(counts, 1)[:, np.newaxis]
    scatter = squares - (means * counts[:, np.newaxis]).T @ means
    spread = max(np.trace(scatter) / size, 1e-12)
    regular = (1 - ROUNDNESS) * scatter + ROUNDNESS * spread * np.eye(size)
    return _Clouds(counts, means, np.linalg.inv(regular), float(len(z)))


def _scores(clouds: _Clouds, z: np.ndarray) -> np.ndarray:
    """Logarithms of likelihood times share `(m, C)`, but for what all classes have in common."""
    turned = z.astype(np.float64) @ clouds.inverse
    return _with_shares(-0.5 * clouds.total * _squares(clouds, z, turned), clouds.counts)


def _scores_without(clouds: _Clouds, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same of photos that the classes hold `(n, C)`, each as it is without that photo."""
    rows, counts = np.arange(len(z)), clouds.counts[y]
    enlarged = counts / np.maximum(counts - 1, 1)  # a photo's distance from its class's mean, once it is not in it
    apart = z.astype(np.float64) - clouds.means[y]
    turned = apart @ clouds.inverse
    distance = np.einsum("nr,nr->n", turned, apart)
    weight = (1 - ROUNDNESS) * enlarged  # of the matrix that is taken away
    left = np.maximum(1 - weight * distance, LEAST_LEFT)
    squares = _squares(clouds, z, z.astype(np.float64) @ clouds.inverse)
    along = np.einsum("nr,nr->n", turned, z)[:, np.newaxis] - turned @ clouds.means.T
    squares[rows, y], along[rows, y] = distance * enlarged**2, distance * enlarged
    squares += weight[:, np.newaxis] * along**2 / left[:, np.newaxis]
    remaining = np.tile(clouds.counts, (len(z), 1))
    remaining[rows, y] -= 1
    return _with_shares(-0.5 * (clouds.total - 1) * squares, remaining)


def _squares(clouds: _Clouds, z: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Squared distances `(n, C)` from the classes' means, as the inverse measures them."""
    means = clouds.means @ clouds.inverse
    of_means = np.einsum("cr,cr->c", means, clouds.means)
    of_photos = np.einsum("nr,nr->n", turned, z)
    return np.asarray(of_photos[:, np.newaxis] - 2 * turned @ clouds.means.T + of_means)


def _with_shares(likelihoods: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Add the logarithms of the classes' shares; a class without photos is never an answer."""
    scores = likelihoods + np.log(np.maximum(counts, 0.5))
    best = scores.max(axis=1, where=counts >= 1, initial=-np.inf)[:, np.newaxis]
    return np.asarray(np.where(counts >= 1, scores, best - 1e6))


def _best_temperature(scores: np.ndarray, y: np.ndarray) -> float:
    """The temperature at which the labels are likeliest."""
    of_labels = scores[np.arange(len(y)), y]
    kept = scores.max(axis=1) - of_labels < 1e5  # not the only photo of its class
    if not kept.any():
        return 1.0
    scores, y = scores[kept], y[kept]
    likelihoods = [log_softmax(scores * one)[np.arange(len(y)), y].sum() for one in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmax(likelihoods))])
