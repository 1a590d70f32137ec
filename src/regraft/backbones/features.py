"""Photos to features `(N, D)`, each photo once in its life: rows are kept by content (`data.feature_cache`).

The cache's key stands for graph, preprocessing, decoder and engine.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from regraft.backbones.backbone import Backbone
from regraft.backbones.engine import AnyEngine
from regraft.core.files import sha256_json
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import num_cores
from regraft.core.signals import is_stopping
from regraft.data.decode import Unreadable
from regraft.data.decoders import decoder_identity
from regraft.data.feature_cache import CachedRows, FeatureCache, empty_table, look_up_or_compute
from regraft.data.scan import Dataset, map_photos, without_empty_classes
from regraft.data.transforms import Preprocessing, photo_to_input

BLOCK = 1024  # rows that are changed at a time
LEAST_SUM = 1e-12  # of features, by which they are divided
FEWEST = 4  # batches for each core, so that all have work until the end


@dataclass(frozen=True)
class FeatureTable:
    """Features of photos, found by the content of a photo alone: it has neither labels nor an order of its own.

    Attributes:
        table: `(M, D)` float32; of many photos it lies on disk.
        places: For each content hash, the row of the table.
    """

    table: np.ndarray
    places: Mapping[str, int] = field(repr=False)

    def of(self, dataset: Dataset) -> "Features":
        """Find the features of a data set's photos, with its labels. Nothing is copied.

        Args:
            dataset: N photos, all of which must be in the table.

        Returns:
            A row and a label for each photo, in the data set's order.
        """
        rows = np.array([self.places[content] for content in dataset.hashes], np.int64)
        is_all = np.array_equal(rows, np.arange(len(self.table)))
        return Features(self.table, dataset.labels, dataset.hashes, None if is_all else rows)

    def last(self, num_features: int) -> "FeatureTable":
        """Keep only the last `num_features` columns."""
        return replace(self, table=self.table[:, -num_features:])

    def roots(self) -> "FeatureTable":
        """Return signed square roots of the features, of unit length, as the graph of `derived.with_roots` does."""
        table = empty_table(*self.table.shape)
        for start in range(0, len(table), BLOCK):
            table[start : start + BLOCK] = roots(self.table[start : start + BLOCK])
        return replace(self, table=table)


@dataclass(frozen=True)
class Features:
    """Features of N photos with their labels: row, label and hash of a photo stand at the same place.

    Attributes:
        table: `(M, D)` float32; of many photos it lies on disk.
        y: `(N,)` int64, class indices.
        hashes: Of the photos' contents.
        rows: `(N,)` int64, each photo's row of the table; None where the photos are all of it, in order.
        weights: `(N,)` float64 above 0, how often each photo counts; None for once.
    """

    table: np.ndarray
    y: np.ndarray
    hashes: tuple[str, ...]
    rows: np.ndarray | None = None
    weights: np.ndarray | None = None

    @property
    def x(self) -> np.ndarray:
        """`(N, D)` float32, a row for each photo, in memory."""
        return self.table if self.rows is None else self.table[self.rows]

    @property
    def num_features(self) -> int:
        """Number D of the features."""
        return int(self.table.shape[1])

    @property
    def by_content(self) -> FeatureTable:
        """The same features, to be found by content for any data set of these photos."""
        rows = range(len(self.hashes)) if self.rows is None else map(int, self.rows)
        return FeatureTable(self.table, dict(zip(self.hashes, rows, strict=True)))

    def of(self, dataset: Dataset) -> "Features":
        """Find the features of another data set's photos by content; all must be among these. Nothing is copied."""
        return self.by_content.of(dataset)


def roots(x: np.ndarray) -> np.ndarray:
    """Return signed square roots of features `(N, D)` float32, each photo's divided by their length."""
    sizes = np.abs(x)
    shares = sizes / np.maximum(sizes.sum(axis=1, keepdims=True), np.float32(LEAST_SUM))
    return np.asarray(np.sign(x) * np.sqrt(shares))


def feature_store(graph_sha256: str, preprocessing: Preprocessing, engine: str) -> FeatureCache:
    """Return where features are kept.

    Args:
        graph_sha256: Hash of the ONNX file.
        preprocessing: What photos go through before the graph.
        engine: What values depend on besides the graph, as given by `engine_identity`.
    """
    what = [graph_sha256, preprocessing.to_json(), decoder_identity(), engine]
    return FeatureCache("features", sha256_json(what)[:32])


def store_of(backbone: Backbone) -> FeatureCache:
    """Return where a backbone's features are kept."""
    return feature_store(backbone.graph_sha256, backbone.preprocessing, backbone.engine_identity)


def num_new(backbone: Backbone, dataset: Dataset) -> int:
    """Count the photos, copies once, that the cache has no features of."""
    return len(store_of(backbone).missing(dataset.hashes))


def extract(backbone: Backbone, dataset: Dataset, *, progress: Progress = QUIET) -> tuple[Dataset, Features]:
    """Compute the features of every photo, or find them in the cache.

    Args:
        backbone: What computes them.
        dataset: The photos.
        progress: Is told what is done.

    Returns:
        The data set with the photos that cannot be decoded moved to its quarantine, and the features of the others.
        Classes that lose all photos by that are left out; of a part of a data set that has none of some class, the
        classes stay as they are.

    Raises:
        DataError: A photo changed since it was scanned, or too few can be decoded.
    """
    rows, failures = fill(backbone, dataset, progress=progress)
    dataset = without_empty_classes(dataset.without(failures)) if failures else dataset
    places = rows.places(dataset.hashes)
    is_all = np.array_equal(places, np.arange(len(rows.table)))
    return dataset, Features(rows.table, dataset.labels, dataset.hashes, None if is_all else places)


def fill(backbone: Backbone, dataset: Dataset, *, progress: Progress = QUIET) -> tuple[CachedRows, dict[int, str]]:
    """Put into the cache what it lacks, and return what `feature_rows` does."""
    return feature_rows(store_of(backbone), dataset, backbone.preprocessing, backbone.engine, progress)


def feature_rows(
    store: FeatureCache,
    dataset: Dataset,
    preprocessing: Preprocessing,
    start_engine: Callable[[], AnyEngine],
    progress: Progress = QUIET,
) -> tuple[CachedRows, dict[int, str]]:
    """Find feature rows in the store, or compute those that it lacks.

    Args:
        store: Where features are kept.
        dataset: The photos.
        preprocessing: What they go through before the engine.
        start_engine: Starts the engine; it is called only where the store lacks rows.
        progress: Is told what is done.

    Returns:
        The rows by content hash, and for the index of each photo that could not be decoded the reason.
    """

    def compute(new: list[int], advance: Callable[[int], None]) -> Iterator[tuple[str, np.ndarray | str]]:
        return _compute(dataset, new, preprocessing, start_engine(), advance)

    return look_up_or_compute(store, dataset, "extract features", compute, progress)


def _compute(
    dataset: Dataset, new: list[int], preprocessing: Preprocessing, engine: AnyEngine, advance: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yield `(content hash, feature row or reason)`. Worker threads decode a batch and run it: the two overlap."""
    size = min(engine.batch_size, max(1, len(new) // (FEWEST * num_cores())))
    batches = [new[start : start + size] for start in range(0, len(new), size)]

    def run(number: int) -> list[tuple[str, np.ndarray | str]]:
        outcomes = {i: _decoded(dataset, i, preprocessing) for i in batches[number] if not is_stopping()}
        photos = {i: photo for i, photo in outcomes.items() if not isinstance(photo, str)}
        if photos:
            outcomes.update(zip(photos, engine(np.stack(list(photos.values())))["features"], strict=True))
        return [(dataset.hashes[i], outcome) for i, outcome in outcomes.items()]

    for outcomes in map_photos(run, len(batches), lambda _: None):
        advance(len(outcomes))
        yield from outcomes


def _decoded(dataset: Dataset, index: int, preprocessing: Preprocessing) -> np.ndarray | str:
    try:
        return photo_to_input(dataset.read(index), preprocessing)
    except Unreadable as error:
        return str(error)
