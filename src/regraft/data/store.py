"""Rows of numbers kept by the content of the photo they belong to: features, and how photos look.

    <kind>/<key>/<hash>.safetensors    hashes (n, 32) uint8, rows (n, D) float32, checks (n,) uint32

The key stands for all that a row depends on besides the photo's bytes; within it a photo is known by their SHA-256. So
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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from regraft.data.scan import Dataset
from regraft.ground.files import sha256_bytes, writable_cache, write_atomic
from regraft.ground.progress import QUIET, Progress
from regraft.ground.runtime import cache_folder

Compute = Callable[[list[int], Callable[[int], None]], Iterator[tuple[str, np.ndarray | str]]]
FLUSH_SECONDS = 5.0  # how much work a kill can cost


@dataclass(frozen=True)
class RowStore:
    """Shards of one kind and key, which name their folder in the cache."""

    kind: str
    key: str

    def read(self, wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """Rows `(D,)` float32 by content hash, of those wanted that are there and intact."""
        missing, rows = set(wanted), {}
        for path in sorted((cache_folder() / self.kind / self.key).glob("*.safetensors")):
            if not missing:
                break
            found = _read_shard(path, missing)
            missing -= found.keys()
            rows.update(found)
        return rows

    @contextmanager
    def writer(self, progress: Progress) -> Iterator[Callable[[str, np.ndarray], None]]:
        """Yields `write(content hash, row)`. Rows reach the disk every few seconds, and at a bad end too."""
        shard = _Shard(writable_cache(self.kind, progress) / self.key)
        try:
            yield shard.add
        finally:
            shard.flush()


def look_up_or_compute(
    store: RowStore, dataset: Dataset, step: str, compute: Compute, progress: Progress = QUIET
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Rows by content hash, from the store or computed, and photos for which there is none: index -> reason.

    step: its name for the user.  compute: of indices and `advance(count)`; yields content hash, and row or reason.
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
                rows[content] = outcome
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


def _read_shard(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    """The wanted rows of one file; nothing from a file that has none of them, is damaged, or has just gone."""
    try:
        with safe_open(path, framework="np") as shard:
            hashes = shard.get_tensor("hashes")
            chosen = [row for row, content in enumerate(map(bytes.hex, map(bytes, hashes))) if content in wanted]
            if not chosen:
                return {}
            rows, checks = shard.get_tensor("rows")[chosen], shard.get_tensor("checks")[chosen]
    except (OSError, SafetensorError, KeyError, IndexError):
        return {}
    intact = checks == _checks(hashes[chosen], rows)
    return {bytes(hashes[i]).hex(): row for i, row, good in zip(chosen, rows, intact, strict=True) if good}


def _checks(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row with its key, `(n,)` uint32."""
    pairs = zip(hashes, rows, strict=True)
    return np.array([zlib.crc32(x.tobytes(), zlib.crc32(content.tobytes())) for content, x in pairs], np.uint32)
