"""What may be wrong with a set of photos: hashes, image statistics, features and probabilities to issues.

Nothing is changed here. An issue names photos, says in a sentence what it is about, and which of the photos to leave
out if its kind is dropped.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from regraft.data.image_stats import ImageStats
from regraft.data.scan import Dataset
from regraft.data.units import connected

Kind = Literal[
    "leaks",
    "conflicts",
    "duplicates",
    "suspects",
    "outliers",
    "blurred",
    "dark",
    "blank",
    "tiny",
    "odd shapes",
    "format leak",
    "split shift",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
BY_FEATURES: tuple[Kind, ...] = ("suspects", "outliers")
CERTAIN: tuple[Kind, ...] = ("leaks", "conflicts", "duplicates")  # what a cleaned copy leaves out by default

ALIKE = 0.97  # correlation of two thumbnails below which they are of different photos
SAME = 0.025  # mean difference of their pixels, 0..1, above which they are
BLOCK = 2048  # photos whose thumbnails are compared with all others at once
CONFIDENT = 0.8  # probability of another class at which a label is suspected
OUTLYING, BLURRED = 4.0, 6.0  # times the usual spread at which a photo is an outlier, or blurred
LEAST_SPREAD = 0.15  # of logarithms: sets more uniform than this have no outliers closer than that
LEAKING = 0.25  # share of photos above chance from which files give a class away
SIZE_STEPS = 3  # of sizes, for each doubling
DARK, FLAT, TINY, LONG = 0.08, 0.01, 32, 5.0  # brightness and contrast, 0..1; pixels; aspect ratio


@dataclass(frozen=True)
class Issue:
    """Something that may be wrong with some photos.

    Attributes:
        kind: Which of `KINDS` it is.
        photos: Indices into the data set; () for what concerns all of it.
        text: What it is about, in a sentence.
        drop: Indices of the photos to leave out if the kind is dropped.
    """

    kind: Kind
    photos: tuple[int, ...]
    text: str
    drop: tuple[int, ...] = ()

    def to_json(self, dataset: Dataset) -> dict[str, Any]:
        """Return what `regraft scan --json` prints of the issue, under "findings"."""
        paths = [dataset.paths[i] for i in self.photos]
        return {"kind": self.kind, "paths": paths, "text": self.text, "drop": [dataset.paths[i] for i in self.drop]}


@dataclass(frozen=True)
class LabelIssue:
    """A photo whose label is doubted by a model that has not seen it.

    Attributes:
        photo: Index into the data set.
        suggested: The class that the model predicts, an index into the classes.
        probability: Of that class, 0..1.
    """

    photo: int
    suggested: int
    probability: float


def groups_of_copies(dataset: Dataset, pairs: Iterable[tuple[int, int]] = ()) -> list[list[int]]:
    """Group photos that are the same: equal files, and pairs that were found to be alike.

    Args:
        dataset: The photos.
        pairs: Indices of photos that are alike, two and two, as `alike` finds them.

    Returns:
        Groups of two or more indices, each in the set's order.
    """
    by_content: dict[str, list[int]] = defaultdict(list)
    for i, content in enumerate(dataset.hashes):
        by_content[content].append(i)
    links = [(members[0], other) for members in by_content.values() for other in members[1:]] + list(pairs)
    return connected(links)


def copies(dataset: Dataset, groups: list[list[int]]) -> list[Issue]:
    """Say what each group of copies is: a leak across splits, a conflict of labels, or mere duplicates.

    Args:
        dataset: The photos.
        groups: As `groups_of_copies` returns them.

    Returns:
        An issue for each group.
    """
    return [_of_group(dataset, group) for group in groups]


def _of_group(dataset: Dataset, group: list[int]) -> Issue:
    labels = list(dict.fromkeys(dataset.classes[dataset.labels[i]] for i in group))
    splits = list(dict.fromkeys(dataset.splits[i] for i in group))
    equal = "the same file" if len({dataset.hashes[i] for i in group}) == 1 else "the same picture"
    photos = tuple(group)
    if len(labels) > 1:
        return Issue("conflicts", photos, f"{equal} under {' and '.join(map(repr, labels))}", photos)
    if len(splits) > 1:
        learned = tuple(i for i in group if dataset.splits[i] == "train")
        evaluated = tuple(i for i in group if dataset.splits[i] != "train")
        return Issue("leaks", photos, f"{equal} in {' and '.join(splits)}", learned or evaluated[1:])
    return Issue("duplicates", photos, f"{equal} {len(group)} times", photos[1:])


def alike(stats: ImageStats) -> Iterator[tuple[int, int]]:
    """Find photos whose pixels are the same up to compression and size.

    Yields:
        Pairs of indices, the smaller one first.
    """
    rows = stats.thumbnails.reshape(len(stats.thumbnails), -1)
    centred = rows - rows.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.maximum(norm, 1e-6)
    aspect = stats.width / np.maximum(stats.height, 1)
    with_detail = norm[:, 0] > FLAT * np.sqrt(rows.shape[1])  # of plain surfaces, too many look the same
    for start in range(0, len(rows), BLOCK):
        similar = unit[start : start + BLOCK] @ unit[start:].T > ALIKE
        for i, j in zip(*(axis + start for axis in np.nonzero(np.triu(similar, 1))), strict=True):
            close = float(np.abs(rows[i] - rows[j]).mean()) < SAME
            if close and with_detail[i] and abs(np.log(aspect[i] / aspect[j])) < 0.03:
                yield int(i), int(j)


def label_issues(labels: np.ndarray, probabilities: np.ndarray) -> list[LabelIssue]:
    """Find photos that a model which has not seen them assigns to another class.

    Args:
        labels: `(N,)` int64.
        probabilities: `(N, C)`, predicted while the photo was held out; rows of NaN for photos that were never held
            out.

    Returns:
        The photos, in the order of the margin between the two classes, the surest first.

    References:
        C. Northcutt et al., "Confident Learning", JAIR 2021.
    """
    held_out = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    given, p = labels[held_out], probabilities[held_out]
    suggested, best = p.argmax(axis=1), p.max(axis=1)
    order = np.argsort(p[np.arange(len(p)), given] - best, kind="stable")
    return [LabelIssue(int(held_out[k]), int(suggested[k]), float(best[k])) for k in order if suggested[k] != given[k]]


def confident_label_issues(dataset: Dataset, ranked: Sequence[LabelIssue]) -> list[Issue]:
    """Select the label issues of which the model is sure.

    Args:
        dataset: The photos.
        ranked: As `label_issues` returns them.

    Returns:
        An issue for each one whose suggested class has a probability of at least 80 %.
    """
    return [
        Issue(
            "suspects",
            (s.photo,),
            f"{dataset.classes[dataset.labels[s.photo]]!r}, looks like {dataset.classes[s.suggested]!r} "
            f"({100 * s.probability:.0f} %)",
            (s.photo,),
        )
        for s in ranked
        if s.probability >= CONFIDENT
    ]


def outliers(x: np.ndarray) -> list[Issue]:
    """Find photos that are like no others, by their mean distance to the three nearest.

    Args:
        x: `(N, D)`, features.

    Returns:
        An issue for each, the furthest first; none where there are fewer than eight photos.
    """
    if len(x) < 8:
        return []
    unit = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    distance = np.empty(len(x), np.float32)
    for start in range(0, len(x), BLOCK):
        similar = unit[start : start + BLOCK] @ unit.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -1
        nearest = np.partition(similar, -3, axis=1)[:, -3:]
        distance[start : start + BLOCK] = 1 - nearest.mean(axis=1)
    return [
        Issue("outliers", (i,), "like no other photo here", (i,))
        for i in _far(np.log(np.maximum(distance, 1e-6)), OUTLYING)
    ]


def odd_looks(stats: ImageStats) -> list[Issue]:
    """Find photos that are blank, dark, blurred, tiny or very long."""
    issues = []
    shorter, longer = np.minimum(stats.width, stats.height), np.maximum(stats.width, stats.height)
    blank = stats.contrast < FLAT
    dark = ~blank & (stats.brightness < DARK)
    tiny, long = shorter < TINY, longer > LONG * np.maximum(shorter, 1)
    issues += [Issue("blank", (i,), "one plain surface", (i,)) for i in _where(blank)]
    issues += [Issue("dark", (i,), f"brightness {100 * stats.brightness[i]:.0f} %", (i,)) for i in _where(dark)]
    sizes = [f"{w}x{h} pixels" for w, h in zip(stats.width, stats.height, strict=True)]
    issues += [Issue("tiny", (i,), sizes[i], (i,)) for i in _where(tiny)]
    issues += [Issue("odd shapes", (i,), sizes[i], (i,)) for i in _where(long)]
    usual = np.flatnonzero(~blank & ~dark & ~tiny)
    blurred = usual[_far(-np.log(np.maximum(stats.sharpness[usual], 1e-4)), BLURRED)]
    return issues + [Issue("blurred", (int(i),), "less fine detail than the others", (int(i),)) for i in blurred]


def format_leak(dataset: Dataset, stats: ImageStats) -> list[Issue]:
    """Find out whether file format, size or camera alone predict the class better than chance: a model may learn those.

    Each photo is given the most frequent class of the others with the same value, sizes in steps of a third of a
    doubling.

    Args:
        dataset: The photos.
        stats: How they look.

    Returns:
        An issue, without photos, for each of the three that does; none where there are fewer than 20 photos, one class
        only, or fewer than 5 photos of some class.
    """
    y = dataset.labels
    counts = np.bincount(y)
    if len(y) < 20 or np.count_nonzero(counts) < 2 or counts[counts > 0].min() < 5:
        return []
    sizes = np.round(SIZE_STEPS * np.log2(np.stack([stats.width, stats.height], axis=1)))
    columns = {
        "the file format": stats.format,
        "the size in pixels": np.unique(sizes, axis=0, return_inverse=True)[1],
        "the camera": stats.camera,
    }
    issues = []
    for what, values in columns.items():
        accuracy, chance = float((_predicted_by_others(values, y) == y).mean()), counts.max() / len(y)
        if accuracy > chance + LEAKING and _is_no_chance(accuracy, len(y), chance):
            text = f"{what} alone tells the class of {100 * accuracy:.0f} % (chance {100 * chance:.0f} %)"
            issues.append(Issue("format leak", (), text))
    return issues


def _predicted_by_others(values: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each photo, the most frequent class among the others with its value, or of all where there is no other."""
    _, rows = np.unique(values, return_inverse=True)
    table = np.zeros((rows.max() + 1, y.max() + 1))
    np.add.at(table, (rows, y), 1)
    others = table[rows]
    others[np.arange(len(y)), y] -= 1
    others += np.bincount(y) / (2 * len(y))  # decides nothing but ties
    return np.asarray(others.argmax(axis=1))


def _is_no_chance(accuracy: float, n: int, chance: float) -> bool:
    """Whether `accuracy`, a share of n photos above `chance`, is too large for mere chance.

    By H. Chernoff's bound on the tail of a binomial distribution, 1952.
    """
    divergence = accuracy * np.log(accuracy / chance)
    if accuracy < 1:
        divergence += (1 - accuracy) * np.log((1 - accuracy) / (1 - chance))
    return bool(np.exp(-n * divergence) < 1e-6)


def left_out(issues: Iterable[Issue], kinds: Iterable[str]) -> dict[int, str]:
    """Select the photos that are left out when some kinds of issues are dropped.

    Args:
        issues: The issues.
        kinds: Some of `KINDS`.

    Returns:
        The reason for each of these photos, by index.
    """
    chosen = set(kinds)
    return {i: f"{f.kind}: {f.text}" for f in issues if f.kind in chosen for i in f.drop}


def _far(values: np.ndarray, times: float) -> list[int]:
    """Return the indices of values that lie far above the others, the furthest first; the values are logarithms.

    "Far" is measured from the median, in median absolute deviations.
    """
    if len(values) == 0:
        return []
    median = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - median))
    score = (values - median) / max(float(spread), LEAST_SPREAD)
    return [int(i) for i in np.argsort(-score, kind="stable") if score[i] > times]


def _where(chosen: np.ndarray) -> list[int]:
    return [int(i) for i in np.flatnonzero(chosen)]
