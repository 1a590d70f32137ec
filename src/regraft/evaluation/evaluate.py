"""How good a bundle is on labelled photos. Every figure goes through the bundle as it lies on disk."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backbones.engine import engine_identity
from regraft.backbones.features import feature_rows, feature_store
from regraft.bundle.bundle import Bundle
from regraft.core.config import ClassLevel, FolderOptions
from regraft.core.errors import BundleError, DataError, nearest
from regraft.core.progress import QUIET, Progress
from regraft.core.statistics import Accuracy, accuracy, macro_f1, macro_f1_interval, mean_interval
from regraft.data.feature_cache import CachedRows
from regraft.data.scan import Dataset, list_photos
from regraft.data.transforms import photo_to_input

NUM_PROBES = 8
BLOCK = 4096  # photos whose features are in memory at a time
MAX_DIFFERENCE = 1e-3  # of logits, relative to the largest


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on N photos of C classes.

    Attributes:
        accuracy: Share of right answers, with its interval.
        macro_f1: Mean F1 of the classes that occur, 0..1.
        balanced_accuracy: Mean recall of the classes that occur, 0..1.
        log_loss: In nats per photo.
        ece: Expected calibration error, 0..1.
        confusion: `(C, C)` int64, a row for each true class, a column for each predicted one.
        per_class: For each class a dict of class, n, precision, recall and f1.
        dataset: The photos that the model was evaluated on.
        probabilities: `(N, C)`, 0..1.
        uncalibrated: log_loss and ece without the temperature.
        least_sure: Probability below which an answer is "unsure"; 0 where there is no such limit.
    """

    accuracy: Accuracy
    macro_f1: float
    balanced_accuracy: float
    log_loss: float
    ece: float
    confusion: np.ndarray = field(repr=False)
    per_class: list[dict[str, Any]] = field(repr=False)
    dataset: Dataset = field(repr=False)
    probabilities: np.ndarray = field(repr=False)
    uncalibrated: dict[str, float] = field(repr=False)
    least_sure: float = 0.0

    @property
    def answered(self) -> np.ndarray:
        """`(N,)` bool: which photos got an answer, not "unsure"."""
        return np.asarray(self.probabilities.max(axis=1) >= self.least_sure)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of macro F1 and log loss, by bootstrap over the photos."""
        lost = photo_losses(self.probabilities, self.dataset.labels)
        return {"macro_f1": macro_f1_interval(self.confusion), "log_loss": mean_interval(lost)}

    @property
    def selective(self) -> dict[str, Any] | None:
        """What comes of answering only where the model is sure; None where it always answers.

        A dict of least_probability, answered and wrong (numbers of photos) and error, the share of wrong ones with its
        interval, None where no photo is answered.
        """
        if self.least_sure == 0.0:
            return None
        answered = int(self.answered.sum())
        wrong = answered - int(self.correct[self.answered].sum())
        error = accuracy(wrong, answered, "answered").to_json() if answered else None
        return {"least_probability": self.least_sure, "answered": answered, "wrong": wrong, "error": error}

    @property
    def correct(self) -> np.ndarray:
        """`(N,)` bool: which photos got their own label."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.dataset.labels)

    @property
    def mistaken(self) -> list[tuple[int, int, int]]:
        """Count, true class and predicted class (as numbers) of each confusion, the most frequent first."""
        confusions = [(int(self.confusion[i, j]), int(i), int(j)) for i, j in np.argwhere(self.confusion > 0) if i != j]
        return sorted(confusions, key=lambda one: (-one[0], one[1], one[2]))

    def _repr_html_(self) -> str:
        """Show accuracy and a row for each class in a notebook."""
        rows = "".join(
            f"<tr><td>{escape(row['class'])}</td><td>{row['n']}</td><td>{row['precision']:.3f}</td>"
            f"<td>{row['recall']:.3f}</td><td>{row['f1']:.3f}</td></tr>"
            for row in self.per_class
        )
        header = "<tr><th>class</th><th>photos</th><th>precision</th><th>recall</th><th>F1</th></tr>"
        return f"<table><caption>{escape(str(self.accuracy))}</caption>{header}{rows}</table>"

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft evaluate --json` prints."""
        return {
            "accuracy": self.accuracy.to_json(),
            **{name: getattr(self, name) for name in ("macro_f1", "balanced_accuracy", "log_loss", "ece")},
            "intervals": {name: list(ends) for name, ends in self.intervals.items()},
            "uncalibrated": self.uncalibrated,
            **({"selective": self.selective} if self.selective else {}),
            "classes": list(self.dataset.classes),
            "confusion": self.confusion.tolist(),
            "per_class": self.per_class,
            "quarantined": [{"path": q.path, "reason": q.reason} for q in self.dataset.quarantine],
        }


def evaluate(
    bundle: Bundle,
    folder: str | Path,
    *,
    class_level: ClassLevel | None = None,
    follow_links: bool = False,
    progress: Progress = QUIET,
    **reading: Any,
) -> Evaluation:
    """Evaluate a bundle on `folder/<class>/<image>`; of a split folder, on `test`, else on `val`.

    Args:
        bundle: The model.
        folder: Photos in a folder for each class, or a list of them.
        class_level: Which folder names the class where class folders hold folders; None for what it was trained with.
        follow_links: Whether links to photos and folders are followed, wherever they lead.
        progress: Is told what is done.
        reading: How lists and names of photos are read: `path_column`, `label_column`, `label_by`, `margin`, `every_s`.

    Returns:
        How good the model is on these photos.

    Raises:
        DataError: There is a class that the bundle does not know, the folder cannot be read in one way only, or no
            photo is readable.
        BundleError: The bundle's graph and its weights contradict each other.
    """
    known = FolderOptions.recorded(bundle.manifest["provenance"].get("config", {}))
    options = FolderOptions(class_level or known.class_level, follow_links, bundle.classes, **reading)
    dataset = list_photos(folder, min_classes=1, options=options, progress=progress)
    split = next((name for name in ("test", "val") if name in dataset.splits), "")
    if split:
        dataset = dataset.subset(i for i, name in enumerate(dataset.splits) if name == split)
        progress.say(f"judged on the {split} folder: {len(dataset)} photos")
    return evaluate_dataset(bundle, in_order_of(bundle, dataset), split or "new", progress=progress)


def evaluate_dataset(bundle: Bundle, dataset: Dataset, split: str, *, progress: Progress = QUIET) -> Evaluation:
    """Evaluate a bundle on photos whose labels are numbers of the bundle's classes.

    Args:
        bundle: The model.
        dataset: The photos; `in_order_of` matches their classes to the bundle's.
        split: What the photos are called in the result, such as "test".
        progress: Is told what is done.

    Raises:
        DataError: No photo is readable.
        BundleError: The bundle's graph and its weights contradict each other.
    """
    dataset, logits = bundle_logits(bundle, dataset, progress)
    evaluation = evaluate_probabilities(dataset, bundle.probabilities(logits), split)
    before = bundle.probabilities(logits * np.float32(bundle.manifest["temperature"]))
    uncalibrated = {
        "log_loss": log_loss(before, dataset.labels),
        "ece": expected_calibration_error(before, dataset.labels),
    }
    return replace(evaluation, uncalibrated=uncalibrated, least_sure=bundle.least_sure)


def evaluate_probabilities(dataset: Dataset, p: np.ndarray, split: str) -> Evaluation:
    """Compute how good probabilities are for the photos of a data set.

    Args:
        dataset: N photos of C classes.
        p: `(N, C)` probabilities.
        split: What the photos are called.
    """
    y, num_classes = dataset.labels, len(dataset.classes)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (y, p.argmax(axis=1)), 1)
    correct, n, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = _share(correct, predicted), _share(correct, n), _share(2 * correct, n + predicted)
    rows = zip(dataset.classes, n, precision, recall, f1, strict=True)
    loss, ece = log_loss(p, y), expected_calibration_error(p, y)
    return Evaluation(
        accuracy=accuracy(int(correct.sum()), len(y), split),
        macro_f1=float(macro_f1(confusion)),
        balanced_accuracy=float(recall[n > 0].mean()),
        log_loss=loss,
        ece=ece,
        confusion=confusion,
        per_class=[
            {"class": c, "n": int(n), "precision": float(p), "recall": float(r), "f1": float(f)}
            for c, n, p, r, f in rows
        ],
        dataset=dataset,
        probabilities=p,
        uncalibrated={"log_loss": loss, "ece": ece},
    )


def bundle_logits(bundle: Bundle, dataset: Dataset, progress: Progress = QUIET) -> tuple[Dataset, np.ndarray]:
    """Compute the logits of a data set's photos.

    The bundle's graph is its backbone and one linear layer, and the backbone's answer to a photo never changes. So
    features that the cache holds of the same backbone stand for running it again, and the saved head is applied to
    them. That this is what the graph itself says is checked on a few photos each time.

    Args:
        bundle: The model, of C classes.
        dataset: The photos.
        progress: Is told what is done.

    Returns:
        The data set without the photos that cannot be decoded, and logits `(N, C)` float32 of the others.

    Raises:
        DataError: No photo is readable.
        BundleError: The bundle's graph and its weights contradict each other.
    """
    rows, failures = bundle_features(bundle, dataset, progress)
    dataset = dataset.without(failures)
    if len(dataset) == 0:
        raise DataError(f"{dataset.root} has no readable photos to judge on. Found {dataset.num_found} files.")
    weight, bias = bundle.head
    places = rows.places(dataset.hashes)
    logits = np.concatenate([rows.table[places[i : i + BLOCK]] @ weight.T for i in range(0, len(places), BLOCK)]) + bias
    _check_graph(bundle, dataset, logits)
    return dataset, logits


def bundle_features(bundle: Bundle, dataset: Dataset, progress: Progress = QUIET) -> tuple[CachedRows, dict[int, str]]:
    """Find the features of photos, as the head of a bundle takes them, in the cache, or compute those that it lacks.

    Args:
        bundle: The model.
        dataset: The photos.
        progress: Is told what is done.

    Returns:
        The rows by content hash, and for the index of each photo that could not be decoded the reason.
    """
    graph = bundle.manifest["backbone"]["graph_sha256"]
    store = feature_store(graph, bundle.preprocessing, engine_identity(bundle.precision))
    return feature_rows(store, dataset, bundle.preprocessing, lambda: bundle.engine, progress)


def in_order_of(bundle: Bundle, dataset: Dataset) -> Dataset:
    """Return the data set with its classes matched to the bundle's by name.

    Raises:
        DataError: It has photos of a class that the bundle does not know.
    """
    for name in dataset.classes:
        if name not in bundle.classes and dataset.counts[name]:
            hint = nearest(name, bundle.classes) or f" It knows {', '.join(bundle.classes)}."
            raise DataError(
                f"{dataset.root} has {dataset.counts[name]} photos of class {name!r}, which the model does not know."
                f"{hint} Rename the folder or leave it out."
            )
    order = np.array([bundle.classes.index(name) if name in bundle.classes else -1 for name in dataset.classes])
    return replace(dataset, classes=bundle.classes, labels=order[dataset.labels])


def photo_losses(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the nats lost on each photo.

    Args:
        p: `(N, C)` probabilities.
        y: `(N,)` int64 labels.

    Returns:
        `(N,)`, of the type of `p`.
    """
    return np.asarray(-np.log(np.maximum(p[np.arange(len(y)), y], np.finfo(p.dtype).eps)))


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    """Compute the mean of `photo_losses`, in nats."""
    return float(photo_losses(p, y).mean())


def expected_calibration_error(p: np.ndarray, y: np.ndarray, num_bins: int = 15) -> float:
    """Compute the mean distance between confidence and accuracy in bins of equal width, 0..1.

    Args:
        p: `(N, C)` probabilities.
        y: `(N,)` int64 labels.
        num_bins: Number of bins.

    References:
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.abs(np.bincount(bins, correct - confidence, num_bins))
    return float(gaps.sum() / len(y))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide elementwise; nothing by nothing is 0."""
    return np.asarray(part / np.maximum(whole, 1))


def _check_graph(bundle: Bundle, dataset: Dataset, logits: np.ndarray) -> None:
    probes = np.unique(np.linspace(0, len(dataset) - 1, NUM_PROBES).astype(int))
    photos = np.stack([photo_to_input(dataset.read(int(i)), bundle.preprocessing) for i in probes])
    direct = bundle.engine(photos)["logits"]
    difference = float(np.abs(direct - logits[probes]).max() / max(1.0, float(np.abs(direct).max())))
    if not difference <= MAX_DIFFERENCE:
        raise BundleError(
            f"{bundle.folder} contradicts itself: its graph and its weights differ by {difference:.1e} (expected at "
            f"most {MAX_DIFFERENCE:.0e}). Train again or restore a copy."
        )
