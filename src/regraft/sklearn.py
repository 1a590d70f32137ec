"""A scikit-learn classifier of photos: `fit`, `predict`, `score`, and all that scikit-learn does with estimators.

A thin shell. Features come from the same cache as everywhere, so that cross-validation and grid search run the backbone
once over each photo; `fit` solves the head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from regraft.backbones.backbone import Backbone, load_backbone, with_all_levels
from regraft.backbones.features import Features, fill
from regraft.core.errors import DataError, MissingExtra
from regraft.core.files import sha256_bytes
from regraft.core.statistics import softmax
from regraft.data.grey_range import grey_bits
from regraft.data.inputs import content_of
from regraft.data.scan import Dataset, map_photos
from regraft.data.splits import folds_of
from regraft.models.calibration import temperature
from regraft.models.linear_head import Head, solve

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise MissingExtra("scikit-learn", "sklearn") from error

Photos = Sequence[Any]


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A pretrained network with a head that is solved for your classes.

    backbone, weights: as in `load_backbone`.  size: height of the input in pixels, None for the network's own.
    all_levels: whether what earlier layers see counts too.  num_folds: of the cross-validation that chooses the penalty
    on the head's weights.  seed: of folds and of random weights.  offline: never download.

    X is a sequence of photos of any kind that `Bundle.predict` takes, or an array `(N, H, W, 3)`.
    After `fit`: classes_ `(C,)`, backbone_, head_, temperature_.
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        *,
        weights: str | None = None,
        size: int | None = None,
        all_levels: bool = False,
        num_folds: int = 5,
        seed: int = 0,
        offline: bool = False,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.size = size
        self.all_levels = all_levels
        self.num_folds = num_folds
        self.seed = seed
        self.offline = offline

    def fit(self, X: Photos, y: Sequence[Any]) -> Self:  # noqa: N803  # scikit-learn's name
        """Solve the head. y: N labels of any kind that sorts.  Raises RegraftError."""
        self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2 or len(labels) != len(X):
            raise DataError(
                f"Expected as many labels as photos and two classes or more; got {len(labels)} labels of "
                f"{len(self.classes_)} classes for {len(X)} photos."
            )
        dataset = held(X, labels.astype(np.int64), tuple(map(str, self.classes_)))
        self.backbone_ = self._backbone().with_grey_bits(grey_bits(dataset))
        features = _features(self.backbone_, dataset)
        folds = folds_of(dataset, self.num_folds, self.seed)
        self.head_: Head = solve(features, len(self.classes_), folds)
        self.temperature_ = temperature(self.head_.held_out, features.y)
        return self

    def predict(self, X: Photos) -> np.ndarray:  # noqa: N803
        """`(N,)` labels, of those that were given to `fit`."""
        best = self.decision_function(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: Photos) -> np.ndarray:  # noqa: N803
        """`(N, C)` float64 in 0..1, classes in the order of `classes_`."""
        logits = self.decision_function(X).astype(np.float64)
        return softmax(logits / self.temperature_)

    def decision_function(self, X: Photos) -> np.ndarray:  # noqa: N803
        """`(N, C)` float32 logits. Raises DataError for a photo that cannot be read, or one that changed."""
        check_is_fitted(self)
        unknown = np.zeros(len(X), np.int64)
        return self.head_.logits(_features(self.backbone_, held(X, unknown, ("photo",))).x)

    def _backbone(self) -> Backbone:
        backbone = load_backbone(self.backbone, self.weights, offline=self.offline, seed=self.seed, size=self.size)
        return with_all_levels(backbone) if self.all_levels else backbone

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.non_deterministic = False
        return tags


@dataclass(frozen=True)
class Held(Dataset):
    """Photos in memory, as files' contents. contents: N."""

    contents: tuple[bytes, ...] = ()

    def read(self, index: int) -> bytes:
        """Content of a photo."""
        return self.contents[index]

    def head(self, index: int, size: int) -> bytes:
        """The first `size` bytes of a photo."""
        return self.contents[index][:size]


def held(photos: Photos, labels: np.ndarray, classes: tuple[str, ...]) -> Held:
    """Photos of any kind as a data set. labels: `(N,)` int64.  Raises DataError, naming the photo."""
    contents = tuple(map_photos(lambda i: content_of(photos[i], f"photo {i}"), len(photos), lambda _: None))
    names = tuple(str(p) if isinstance(p, str | Path) else f"photo {i}" for i, p in enumerate(photos))
    hashes = tuple(map(sha256_bytes, contents))
    return Held(Path(), names, labels, classes, ("",) * len(contents), hashes, contents=contents)


def _features(backbone: Backbone, dataset: Dataset) -> Features:
    """Features of all photos, none left out. Raises DataError where one cannot be decoded."""
    rows, failures = fill(backbone, dataset)
    for index, reason in failures.items():
        raise DataError(f"{dataset.paths[index]} cannot be used: {reason}. Leave it out of X and of y.")
    return Features(rows.table, dataset.labels, dataset.hashes, rows.places(dataset.hashes))
