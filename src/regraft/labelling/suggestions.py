"""Which photos to show next: pure functions of what the model says, and of what is labelled."""

from dataclasses import dataclass

import numpy as np

from regraft.labelling.clusters import Clusters, unit_rows

MOST_COMPARED = 4096  # labelled photos that groups are compared with
MOST_MIXED = 0.5  # of a page that one class fills, up to which others follow
CANDIDATES = 8  # pages of uncertain photos, of which one is chosen


@dataclass(frozen=True)
class Chosen:
    """Photos for a page.

    Attributes:
        photos: Indices, in the order in which they are shown.
        label: The class that all are thought to be; -1 where there is none.
        left: How many photos could still come on such pages, these included.
    """

    photos: np.ndarray
    label: int
    left: int


NOTHING = Chosen(np.empty(0, np.int64), -1, 0)


def guesses(log_p: np.ndarray, open_photos: np.ndarray, size: int, label: int | None = None) -> Chosen:
    """Choose photos that the model takes for one class, the surest first.

    Where that class fills no more than half of a page, photos of the next ones follow, class by class: short pages cost
    a key each, and of few photos of many classes that is more than all that is wrong on them.

    Args:
        log_p: `(N, C)` float32, logarithms of probabilities.
        open_photos: `(n,)` int64, photos without a label.
        size: How many to show at most.
        label: The class, which then is alone on the page; None for the one on whose page most photos are expected to be
            right. A page that ended where more would be wrong than right took more keys in all on four sets of five.
    """
    if not len(open_photos):
        return NOTHING
    open_log_p = log_p[open_photos]
    guess, p = open_log_p.argmax(axis=1), np.exp(open_log_p.max(axis=1))
    labels = np.unique(guess) if label is None else [label]
    pages = [(one, *_surest(open_photos[guess == one], p[guess == one], size)) for one in labels]
    pages.sort(key=lambda page: (-float(page[2].sum()), page[0]))
    best, photos, _ = pages[0]
    if label is not None:
        return Chosen(photos, int(best), int((guess == label).sum()))
    if len(pages) == 1 or len(photos) > size * MOST_MIXED:
        return Chosen(photos, int(best), len(open_photos))
    return Chosen(np.concatenate([page[1] for page in pages])[:size], -1, len(open_photos))


def groups(clusters: Clusters, z: np.ndarray, open_photos: np.ndarray, labelled: np.ndarray, size: int) -> Chosen:
    """Choose photos without a label that look alike: many, close together, and unlike what is labelled.

    Args:
        clusters: Of photos.
        z: `(N, R)` float32, projected features of all photos.
        open_photos: `(n,)` int64, photos without a label.
        labelled: `(m,)` int64, photos with one.
        size: How many to show at most.
    """
    is_open = np.zeros(len(z), bool)
    is_open[open_photos] = True
    left = is_open[clusters.rows]
    if not left.any():
        return NOTHING
    count = len(clusters.centres)
    sizes = np.minimum(np.bincount(clusters.member_of[left], minlength=count), size)
    worth = sizes * _mean_of(clusters.closeness[left], clusters.member_of[left], count)
    if len(labelled):
        some = labelled[:: -(-len(labelled) // MOST_COMPARED)]
        worth = worth * (1 - (clusters.centres @ unit_rows(z[some]).T).max(axis=1).clip(0, 0.999))
    best = int(np.where(sizes > 0, worth, -1).argmax())
    members = np.flatnonzero(left & (clusters.member_of == best))
    closest = members[np.argsort(-clusters.closeness[members], kind="stable")][:size]
    return Chosen(clusters.rows[closest], -1, int(left.sum()))


def questions(log_p: np.ndarray, z: np.ndarray, open_photos: np.ndarray, size: int) -> Chosen:
    """Choose photos that the model is unsure about, and that are unlike each other.

    Args:
        log_p: `(N, C)` float32, logarithms of probabilities.
        z: `(N, R)` float32, projected features.
        open_photos: `(n,)` int64, photos without a label.
        size: How many to show at most.

    References:
        Uncertainty as the margin between the two likeliest classes: T. Scheffer et al., "Active hidden Markov models
        for information extraction", IDA 2001. Diversity as the farthest photo next: O. Sener, S. Savarese, "Active
        learning for convolutional neural networks: a core-set approach", ICLR 2018.
    """
    if not len(open_photos):
        return NOTHING
    p = np.sort(np.exp(log_p[open_photos]), axis=1)
    doubt = 1 - (p[:, -1] - (p[:, -2] if p.shape[1] > 1 else 0))
    unsure = np.argsort(-doubt, kind="stable")[: CANDIDATES * size]
    unit, doubt = unit_rows(z[open_photos[unsure]]), doubt[unsure]
    chosen, distance = [0], 1 - unit @ unit[0]
    while len(chosen) < min(size, len(unsure)):
        worth = doubt * np.maximum(distance, 1e-6)
        worth[chosen] = -1
        chosen.append(int(worth.argmax()))
        distance = np.minimum(distance, 1 - unit @ unit[chosen[-1]])
    return Chosen(open_photos[unsure[chosen]], -1, len(open_photos))


def doubts(held_out: np.ndarray, y: np.ndarray, photos: np.ndarray, size: int) -> Chosen:
    """Choose labelled photos whose label the model, which has not learned from them, believes least.

    Args:
        held_out: `(n, C)` float32, logarithms of probabilities of a model that has not learned from the photo.
        y: `(n,)` int64, the labels.
        photos: `(n,)` int64, the photos.
        size: How many to show at most.

    References:
        C. G. Northcutt et al., "Confident learning", JAIR 70 (2021).
    """
    of_label = held_out[np.arange(len(y)), y]
    doubted = np.flatnonzero(held_out.max(axis=1) > of_label)
    order = doubted[np.argsort(of_label[doubted], kind="stable")]
    return Chosen(photos[order[:size]], -1, len(order))


def _surest(photos: np.ndarray, p: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the surest photos and their probabilities."""
    order = np.argsort(-p, kind="stable")[:size]
    return photos[order], p[order]


def _mean_of(values: np.ndarray, member_of: np.ndarray, count: int) -> np.ndarray:
    """Mean of values of each of `count` clusters; 0 where it has none."""
    sums = np.bincount(member_of, weights=values, minlength=count)
    return np.asarray(sums / np.maximum(np.bincount(member_of, minlength=count), 1))
