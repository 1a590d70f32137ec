"""Photos to features `(N, D)`, each photo once in its life: results are kept by content.

    features/<key>/<hash>.safetensors    hashes (n, 32) uint8, features (n, D) float32, checks (n,) uint32

The key stands for graph, preprocessing, decoder and engine; a photo's key within it is the SHA-256 of its bytes. So
nothing stale can be served. Shards are written whole and named by what they hold: several processes may write at
once, and a kill loses at most the photos since the last shard. Each row carries a checksum: a damaged one is
computed again.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from regraft.backbones.engine import AnyEngine
from regraft.backbones.graph import Backbone
from regraft.data import decode
from regraft.data.decode import Unreadable
from regraft.data.scan import Dataset, checked, map_photos
from regraft.data.transforms import Preprocessing, photo_to_input
from regraft.ground.files import sha256_bytes, sha256_json, writable_cache, write_atomic
from regraft.ground.progress import QUIET, Progress
from regraft.ground.runtime import cache_folder

FLUSH_SECONDS = 5.0  # how much work a kill can cost


@dataclass(frozen=True)
class Features:
    """x: `(N, D)` float32, a row for each photo.  y: `(N,)` int64 class indices.  hashes: of the photos' contents."""

    x: np.ndarray
    y: np.ndarray
    hashes: tuple[str, ...]

    def of(self, dataset: Dataset) -> "Features":
        """Rows for the photos of another data set, found by content; all must be among these."""
        row = {content: i for i, content in enumerate(self.hashes)}
        return Features(self.x[[row[content] for content in dataset.hashes]], dataset.labels, dataset.hashes)


@dataclass(frozen=True)
class FeatureStore:
    """Shards of one graph, one preprocessing and one engine. key: names their folder in the cache."""

    key: str

    @classmethod
    def of(cls, graph_sha256: str, preprocessing: Preprocessing, engine: str) -> "FeatureStore":
        """engine: what values depend on besides the graph, as given by `engine_identity`."""
        decoder = [decode.VERSION, PIL.__version__]
        return cls(sha256_json([graph_sha256, preprocessing.to_json(), decoder, engine])[:32])

    def read(self, wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """Rows `(D,)` float32 by content hash, of those wanted that are there and intact."""
        missing, rows = set(wanted), {}
        for path in sorted((cache_folder() / "features" / self.key).glob("*.safetensors")):
            if not missing:
                break
            found = _read_shard(path, missing)
            missing -= found.keys()
            rows.update(found)
        return rows

    @contextmanager
    def writer(self, progress: Progress) -> Iterator[Callable[[str, np.ndarray], None]]:
        """Yields `write(content hash, row)`. Rows reach the disk every few seconds, and at a bad end too."""
        shard = _Shard(writable_cache("features", progress) / self.key)
        try:
            yield shard.add
        finally:
            shard.flush()


@dataclass
class _Shard:
    folder: Path
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def add(self, content: str, row: np.ndarray) -> None:
        self.rows[content] = row
        if time.monotonic() - self.since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.folder.mkdir(parents=True, exist_ok=True)
            hashes = np.frombuffer(bytes.fromhex("".join(self.rows)), np.uint8).reshape(-1, 32)
            features = np.stack(list(self.rows.values()))
            data = save({"hashes": hashes.copy(), "features": features, "checks": _checks(hashes, features)})
            write_atomic(self.folder / f"{sha256_bytes(data)}.safetensors", data)
        self.rows, self.since = {}, time.monotonic()


def _read_shard(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """The wanted rows of one file; nothing from a file that has none of them, is damaged, or has just gone."""
    try:
        with safe_open(path, framework="np") as shard:
            hashes = shard.get_tensor("hashes")
            chosen = [row for row, content in enumerate(map(bytes.hex, map(bytes, hashes))) if content in wanted]
            if not chosen:
                return {}
            features, checks = shard.get_tensor("features")[chosen], shard.get_tensor("checks")[chosen]
    except (OSError, SafetensorError, KeyError, IndexError):
        return {}
    intact = checks == _checks(hashes[chosen], features)
    return {bytes(hashes[row]).hex(): x for row, x, good in zip(chosen, features, intact, strict=True) if good}


def _checks(hashes: np.ndarray, features: np.ndarray) -> np.ndarray:
    """CRC-32 of each row with its key, `(n,)` uint32."""
    pairs = zip(hashes, features, strict=True)
    return np.array([zlib.crc32(x.tobytes(), zlib.crc32(content.tobytes())) for content, x in pairs], np.uint32)


def extract(backbone: Backbone, dataset: Dataset, *, progress: Progress = QUIET) -> tuple[Dataset, Features]:
    """Features of every photo. Photos that cannot be decoded move to the quarantine of the data set returned.

    Raises DataError when a photo changed since it was scanned, or when too few can be decoded.
    """
    rows, failures = fill(backbone, dataset, progress=progress)
    dataset = checked(dataset.without(failures))
    return dataset, Features(np.stack([rows[c] for c in dataset.hashes]), dataset.labels, dataset.hashes)


def fill(
    backbone: Backbone, dataset: Dataset, *, progress: Progress = QUIET
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Put into the cache what it lacks. Returns what `look_up_or_compute` does."""
    store = FeatureStore.of(backbone.graph_sha256, backbone.preprocessing, backbone.engine_identity)
    return look_up_or_compute(store, dataset, backbone.preprocessing, backbone.engine, progress)


def look_up_or_compute(
    store: FeatureStore,
    dataset: Dataset,
    preprocessing: Preprocessing,
    start_engine: Callable[[], AnyEngine],
    progress: Progress = QUIET,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Feature rows by content hash, from the store or from the engine, which starts only when it is needed.

    Returns also the photos that could not be decoded: index -> reason.
    """
    rows = store.read(dataset.hashes)
    first = {content: i for i, content in reversed(list(enumerate(dataset.hashes)))}  # copies are computed once
    new = sorted(i for content, i in first.items() if content not in rows)
    if not new:
        return rows, {}
    engine = start_engine()
    reasons: dict[str, str] = {}
    with progress.step("extract features", total=len(new)) as advance, store.writer(progress) as write:
        for content, outcome in _compute(dataset, new, preprocessing, engine, advance):
            if isinstance(outcome, str):
                reasons[content] = outcome
            else:
                rows[content] = outcome
                write(content, outcome)
    return rows, {i: reasons[content] for i, content in enumerate(dataset.hashes) if content in reasons}


def _compute(
    dataset: Dataset, new: list[int], preprocessing: Preprocessing, engine: AnyEngine, advance: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray | str]]:
    """`(content hash, feature row or reason)`. Worker threads decode a batch and run it: the two overlap."""
    batches = [new[start : start + engine.batch_size] for start in range(0, len(new), engine.batch_size)]

    def run(number: int) -> list[tuple[str, np.ndarray | str]]:
        outcomes = {i: _decoded(dataset, i, preprocessing) for i in batches[number]}
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
