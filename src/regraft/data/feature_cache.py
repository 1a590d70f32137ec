"""Rows of numbers cached by the content of the photo they belong to: features, and how photos look.

    <kind>/<key>/<hash>.safetensors    hashes (n, 32) uint8, rows (n, D) float32, checks (n,) uint32

The key stands for all that a row depends on besides the photo's bytes; within it a photo is known by their SHA-256. So
nothing stale can be served. Shards are written whole and named by what they hold: several processes may write at
once, and a kill loses at most the photos since the last shard. Each row carries a checksum: a damaged one is
computed again.
"""

import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from regraft.core.files import sha256_bytes, writable_cache, write_atomic
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import cache_folder
from regraft.data.scan import Dataset

Compute = Callable[[list[int], Callable[[int], None]], Iterator[tuple[str, np.ndarray | str]]]
FLUSH_SECONDS = 5.0  # how much work a kill can cost
LARGE_BYTES = 2**28  # from which on rows lie on disk instead of in memory


class CachedRows(Mapping[str, np.ndarray]):
    """Rows `(D,)` float32 by content hash: of those wanted, the ones that are known.

    Args:
        wanted: Content hashes; repeated ones count once.

    Attributes:
        table: `(M, D)` float32, a row for each different hash wanted; rows that are not known hold anything. A large
            table lies in a file without a name, which goes when the process ends.
    """

    def __init__(self, wanted: Iterable[str]) -> None:
        self.table = np.empty((0, 0), np.float32)
        self._place = {content: i for i, content in enumerate(dict.fromkeys(wanted))}
        self._known = np.zeros(len(self._place), bool)

    def put(self, hashes: Sequence[str], rows: np.ndarray) -> None:
        """Make rows known.

        Args:
            hashes: n content hashes, all of them wanted.
            rows: `(n, D)`.
        """
        if self.table.size == 0:
            self.table = empty_table(len(self._place), rows.shape[1])
        places = self.places(hashes)
        self.table[places], self._known[places] = rows, True

    def places(self, hashes: Iterable[str]) -> np.ndarray:
        """Return where hashes have their rows in `table`, `(n,)` int64."""
        return np.array([self._place[content] for content in hashes], np.int64)

    def unknown(self) -> set[str]:
        """Return the wanted hashes whose rows are not known."""
        return {content for content, i in self._place.items() if not self._known[i]}

    def __getitem__(self, content: str) -> np.ndarray:
        if content not in self:
            raise KeyError(content)
        return np.asarray(self.table[self._place[content]])

    def __contains__(self, content: object) -> bool:
        return content in self._place and bool(self._known[self._place[content]])

    def __iter__(self) -> Iterator[str]:
        return (content for content, i in self._place.items() if self._known[i])

    def __len__(self) -> int:
        return int(self._known.sum())


@dataclass(frozen=True)
class FeatureCache:
    """The shards of one kind and key.

    Attributes:
        kind: What the rows are; names the outer folder in the cache.
        key: Hash of all that a row depends on besides the photo's bytes; names the inner folder.
    """

    kind: str
    key: str

    def read(self, wanted: Iterable[str]) -> CachedRows:
        """Return the rows that are there and intact, of those wanted.

        Args:
            wanted: Content hashes.
        """
        cached = CachedRows(wanted)
        missing = cached.unknown()
        for path in self._shards():
            if not missing:
                break
            hashes, rows = _read_shard(path, missing)
            if hashes:
                cached.put(hashes, rows)
                missing.difference_update(hashes)
        return cached

    def missing(self, wanted: Iterable[str]) -> set[str]:
        """Return the wanted hashes that no shard has, as far as can be told without reading rows."""
        return set(wanted).difference(*map(_hashes, self._shards()))

    def _shards(self) -> list[Path]:
        return sorted((cache_folder() / self.kind / self.key).glob("*.safetensors"))

    @contextmanager
    def writer(self, progress: Progress) -> Iterator[Callable[[str, np.ndarray], None]]:
        """Provide a function that adds rows.

        They reach the disk every few seconds, and also when the block ends in an error.

        Args:
            progress: Says once if the cache cannot be written.

        Yields:
            `write(content hash, row)`.
        """
        shard = _Shard(writable_cache(self.kind, progress) / self.key)
        try:
            yield shard.add
        finally:
            shard.flush()


def look_up_or_compute(
    store: FeatureCache, dataset: Dataset, step: str, compute: Compute, progress: Progress = QUIET
) -> tuple[CachedRows, dict[int, str]]:
    """Take rows from the cache, and compute and cache those that it does not have.

    Args:
        store: The cache.
        dataset: The photos.
        step: What computing is called for the user.
        compute: Gets indices of photos and `advance(count)`; yields each one's content hash, and its row or the reason
            why there is none.
        progress: Shows how far it is.

    Returns:
        Rows by content hash, and photos for which there is none: index -> reason.
    """
    rows = store.read(dataset.hashes)
    first = {content: i for i, content in reversed(list(enumerate(dataset.hashes)))}  # copies are computed once
    new = sorted(i for content, i in first.items() if content not in rows)
    if not new:
        return rows, {}
    reasons: dict[str, str] = {}
    with progress.step(step, total=len(new)) as advance, store.writer(progress) as write:
        for content, outcome in compute(new, advance):
            if isinstance(outcome, str):
                reasons[content] = outcome
            else:
                rows.put([content], outcome[np.newaxis])
                write(content, outcome)
    return rows, {i: reasons[content] for i, content in enumerate(dataset.hashes) if content in reasons}


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
            rows = np.stack(list(self.rows.values()))
            data = save({"hashes": hashes.copy(), "rows": rows, "checks": _checks(hashes, rows)})
            write_atomic(self.folder / f"{sha256_bytes(data)}.safetensors", data)
        self.rows, self.since = {}, time.monotonic()


def _read_shard(path: Path, wanted: set[str]) -> tuple[list[str], np.ndarray]:
    """Read the wanted rows of one file; nothing from a file that has none of them, is damaged, or has just gone."""
    nothing: tuple[list[str], np.ndarray] = [], np.empty((0, 0), np.float32)
    try:
        with safe_open(path, framework="np") as shard:
            hashes = shard.get_tensor("hashes")
            chosen = [row for row, content in enumerate(_hex(hashes)) if content in wanted]
            if not chosen:
                return nothing
            rows, checks = shard.get_tensor("rows")[chosen], shard.get_tensor("checks")[chosen]
    except (OSError, SafetensorError, KeyError, IndexError):
        return nothing
    intact = checks == _checks(hashes[chosen], rows)
    return _hex(hashes[chosen][intact]), rows[intact]


def _hashes(path: Path) -> list[str]:
    """List the content hashes that one file has rows of."""
    try:
        with safe_open(path, framework="np") as shard:
            return _hex(shard.get_tensor("hashes"))
    except (OSError, SafetensorError, KeyError):
        return []


def _hex(hashes: np.ndarray) -> list[str]:
    return [one.tobytes().hex() for one in hashes]


def empty_table(num_rows: int, size: int) -> np.ndarray:
    """Return room for `(num_rows, size)` float32 in memory, or on disk where it is large and the disk has room."""
    shape, num_bytes = (num_rows, size), 4 * num_rows * size
    if num_bytes < LARGE_BYTES or not hasattr(os, "posix_fallocate"):
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile(dir=cache_folder()) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            buffer: Any = mmap.mmap(file.fileno(), num_bytes)
    except OSError:
        return np.empty(shape, np.float32)
    return np.ndarray(shape, np.float32, buffer)


def _checks(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row with its key, `(n,)` uint32."""
    pairs = zip(hashes, rows, strict=True)
    return np.array([zlib.crc32(x.tobytes(), zlib.crc32(content.tobytes())) for content, x in pairs], np.uint32)
