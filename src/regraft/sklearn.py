"""A scikit-learn classifier of photos: `fit`, `predict`, `score`, and all that scikit-learn does with estimators.

A thin shell. Features come from the same cache as everywhere, so that cross-validation and grid search run the backbone
once over each photo; `fit` solves the head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from regraft.backbones.backbone import Backbone, in_memory, load_backbone
from regraft.backbones.derived import with_all_levels, with_roots
from regraft.backbones.features import Features, fill
from regraft.core.config import Fit
from regraft.core.errors import DataError, InputError, MissingExtra
from regraft.core.files import sha256_bytes
from regraft.core.statistics import softmax
from regraft.data.grey_range import grey_bits
from regraft.data.inputs import content_of, photos_in_order
from regraft.data.scan import Dataset, map_photos
from regraft.data.splits import folds_of
from regraft.models.calibration import temperature
from regraft.models.linear_head import Head, solve

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise MissingExtra("scikit-learn", "sklearn") from error


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A pretrained network with a head that is solved for your classes.

    X holds N photos of any kind that `Bundle.predict` takes, in a list, tuple, array, pandas Series or table of one
    column, or is an array `(N, H, W, 3)`. It is read by position: the labels of an index mean nothing.

    Args:
        backbone: As in `load_backbone`.
        weights: As in `load_backbone`.
        size: Height of the input in pixels, None for the network's own.
        photo_fit: How photos that are not square become the input: "crop" cuts out the middle, "pad" and "squash" show
            all of it. None for the network's own way.
        all_levels: Whether what earlier layers see counts too.
        roots: Whether the features become signed square roots, of unit length.
        num_folds: Of the cross-validation that chooses the penalty on the head's weights.
        seed: Of folds and of random weights.
        offline: Never download.
        class_weight: How much a photo of each class counts: None for once, "balanced" for as much as makes all classes
            equal, or `{label: weight}`, 1 where a label is not named.

    Attributes:
        classes_: `(C,)` labels, sorted.
        backbone_: The network, which needs no file: a pickled estimator holds it, and works on any machine.
        head_: The solved head.
        temperature_: What logits are divided by for probabilities.
        n_features_in_: 1: the photo.
        feature_names_in_: `(1,)`, name of the column, where `fit` was given a table.
    """

    def __init__(  # noqa: PLR0913  # scikit-learn's settings are parameters
        self,
        backbone: str = "tf_efficientnet_lite0",
        *,
        weights: str | None = None,
        size: int | None = None,
        photo_fit: Fit | None = None,
        all_levels: bool = False,
        roots: bool = False,
        num_folds: int = 5,
        seed: int = 0,
        offline: bool = False,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.size = size
        self.photo_fit = photo_fit
        self.all_levels = all_levels
        self.roots = roots
        self.num_folds = num_folds
        self.seed = seed
        self.offline = offline
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # noqa: N803  # scikit-learn's name
        """Solve the head.

        Args:
            X: N photos.
            y: N labels: texts, whole numbers or truth values, none missing.
            sample_weight: N numbers, how often each photo counts: 2 is the same as having it twice, 0 as leaving it
                out. None for once.

        Returns:
            The estimator itself.

        Raises:
            InputError: Photos, labels or weights are not so, or a photo cannot be read. It is a ValueError, too.
            RegraftError: The backbone cannot be had.
        """
        photos, targets = checked_photos(X), checked_labels(y)
        if len(targets) != len(photos):
            raise InputError(f"Expected as many labels as photos; got {len(targets)} labels for {len(photos)} photos.")
        given = weights_of(sample_weight, len(photos))
        kept = np.arange(len(photos)) if given is None else np.flatnonzero(given)
        self.classes_, labels = np.unique(targets[kept], return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"Expected photos of two classes or more; got {len(kept)} photos of one class.")
        dataset = held([photos[i] for i in kept], labels.astype(np.int64), tuple(map(str, self.classes_)), kept)
        counts = _class_weighted(self.class_weight, self.classes_, labels, None if given is None else given[kept])
        self.backbone_ = in_memory(self._backbone()).with_grey_bits(grey_bits(dataset))
        features = _features(self.backbone_, dataset, counts)
        self.head_: Head = solve(features, len(self.classes_), folds_of(dataset, self.num_folds, self.seed))
        self.temperature_ = temperature(self.head_.held_out, features.y, counts)
        validate_data(self, X, skip_check_array=True, ensure_2d=False)  # the name of a table's column
        self.n_features_in_ = 1
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """The most probable class of each photo.

        Args:
            X: N photos.

        Returns:
            `(N,)` labels, of those that were given to `fit`.

        Raises:
            InputError: A photo cannot be read.
        """
        best = self._logits(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """How probable each class is.

        Args:
            X: N photos.

        Returns:
            `(N, C)` float64 in 0..1, classes in the order of `classes_`.

        Raises:
            InputError: A photo cannot be read.
        """
        return softmax(self._logits(X) / self.temperature_)

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Logits, from which classes and probabilities follow.

        Args:
            X: N photos.

        Returns:
            `(N, C)` float64; of two classes `(N,)`, by how much the second is ahead: above 0 it is the answer.

        Raises:
            InputError: A photo cannot be read.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def _logits(self, photos: Any) -> np.ndarray:
        """`(N, C)` float64."""
        check_is_fitted(self)
        if hasattr(photos, "columns"):
            validate_data(self, photos, reset=False, skip_check_array=True, ensure_2d=False)
        several = checked_photos(photos)
        dataset = held(several, np.zeros(len(several), np.int64), ("photo",), np.arange(len(several)))
        x = _features(self.backbone_, dataset, None).x
        return np.asarray(x.astype(np.float64) @ self.head_.weight.T + self.head_.bias)  # whatever photos are beside it

    def _backbone(self) -> Backbone:
        backbone = load_backbone(self.backbone, self.weights, offline=self.offline, seed=self.seed, size=self.size)
        if self.photo_fit not in (None, *get_args(Fit)):
            raise InputError(f'photo_fit is {self.photo_fit!r}. Expected None, "crop", "pad" or "squash".')
        backbone = backbone.with_fit(self.photo_fit)
        backbone = with_all_levels(backbone) if self.all_levels else backbone
        return with_roots(backbone) if self.roots else backbone

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


def checked_photos(several: Any) -> list[Any]:
    """N photos in order, N > 0. Raises InputError."""
    try:
        photos = photos_in_order(several)
    except DataError as error:
        raise InputError(str(error)) from error
    if not photos:
        raise InputError("X holds no photos: 0 sample(s). Expected one or more.")
    return photos


def checked_labels(y: Any) -> np.ndarray:
    """`(N,)` labels by position, whatever holds them.

    Raises:
        InputError: One is missing, or they are no classes.
    """
    if y is None:
        raise InputError("ImageClassifier requires y to be passed, but the target y is None.")
    try:
        labels = column_or_1d(np.asarray(y, dtype=object), warn=True).tolist()
    except ValueError as error:
        raise InputError(f"Expected one label a photo: {error}") from error
    if missing := [i for i, label in enumerate(labels) if _is_missing(label)]:
        raise InputError(
            f"{len(missing)} of {len(labels)} labels are missing (Input y contains NaN, None or infinity), the first "
            f"for photo {missing[0]}. Leave those photos out of X and of y."
        )
    if 0 < sum(isinstance(label, str) for label in labels) < len(labels):
        raise InputError("Some labels are texts and some are not. Expected all of one kind; map(str, y) makes texts.")
    try:
        names = np.array(labels)
        check_classification_targets(names)
    except (ValueError, TypeError) as error:
        raise InputError(f"The labels are no classes: {error}") from error
    return names


def _is_missing(label: Any) -> bool:
    """Whether it is None, not a number, not a time, pandas' NA, or infinite."""
    try:
        return label is None or bool(label != label) or (isinstance(label, float) and math.isinf(label))
    except (TypeError, ValueError):  # NA: neither equal to itself nor unequal
        return True


def weights_of(sample_weight: Any, count: int) -> np.ndarray | None:
    """`(count,)` float64 by position; None for None.

    Raises:
        InputError: They are not one finite number a photo, one is below 0, or all are 0.
    """
    if sample_weight is None:
        return None
    try:
        weights = np.asarray(sample_weight, np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"sample_weight is not made of numbers: {error}.") from error
    weights = np.full(count, weights) if weights.ndim == 0 else weights
    if weights.shape != (count,):
        raise InputError(f"sample_weight has shape {weights.shape}. Expected one number a photo: ({count},).")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError("sample_weight has numbers that are negative, infinite or none. Expected 0 or more.")
    if not weights.any():
        raise InputError("sample_weight is zero for all photos: expected a weight above 0 for some.")
    return weights


def _class_weighted(
    class_weight: Mapping[Any, float] | str | None, classes: np.ndarray, labels: np.ndarray, given: np.ndarray | None
) -> np.ndarray | None:
    """What each photo counts, `(N,)` float64 above 0, or None for all the same. labels: `(N,)` index into classes.

    Raises InputError for weights that cannot be.
    """
    if class_weight is None:
        return given
    if isinstance(class_weight, Mapping):
        each = _named_weights(class_weight, classes.tolist())
    elif class_weight == "balanced":
        totals = np.bincount(labels, given)
        each = totals.sum() / (len(classes) * totals)
    else:
        raise InputError(f'class_weight is {class_weight!r}. Expected None, "balanced" or {{label: weight}}.')
    return np.asarray(each[labels] if given is None else each[labels] * given)


def _named_weights(class_weight: Mapping[Any, float], classes: list[Any]) -> np.ndarray:
    """`(C,)` float64, 1 where a class is not named. Raises InputError."""
    if unknown := [label for label in class_weight if label not in classes]:
        raise InputError(f"class_weight names {unknown[0]!r}, which is no label. Expected some of {classes}.")
    try:
        each = np.array([class_weight.get(name, 1.0) for name in classes], np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(f"class_weight is not made of numbers: {error}.") from error
    if not (np.isfinite(each).all() and (each > 0).all()):
        raise InputError(f"class_weight is {dict(class_weight)}. Expected numbers above 0.")
    return each


def held(photos: list[Any], labels: np.ndarray, classes: tuple[str, ...], places: np.ndarray) -> Held:
    """Photos of any kind as a data set.

    Args:
        photos: N.
        labels: `(N,)` int64.
        classes: Their names.
        places: `(N,)` where each stands in X, by which an error calls it.

    Raises:
        InputError: One cannot be read; it is named.
    """
    names = tuple(str(p) if isinstance(p, str | Path) else f"photo {i}" for p, i in zip(photos, places, strict=True))
    try:
        contents = tuple(map_photos(lambda i: content_of(photos[i], f"photo {places[i]}"), len(photos), lambda _: None))
    except DataError as error:
        raise InputError(str(error)) from error
    hashes = tuple(map(sha256_bytes, contents))
    return Held(Path(), names, labels, classes, ("",) * len(contents), hashes, contents=contents)


def _features(backbone: Backbone, dataset: Dataset, weights: np.ndarray | None) -> Features:
    """Features of all photos, none left out. Raises InputError where one cannot be decoded."""
    rows, failures = fill(backbone, dataset)
    for index, reason in failures.items():
        raise InputError(f"{dataset.paths[index]} cannot be used: {reason}. Leave it out of X and of y.")
    return Features(rows.table, dataset.labels, dataset.hashes, rows.places(dataset.hashes), weights)
