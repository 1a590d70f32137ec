"""Features of a heap's photos, part by part in random order, so that labelling can begin after the first ones."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache

import numpy as np

from regraft.backbones.backbone import Backbone
from regraft.backbones.features import feature_rows, store_of
from regraft.core.errors import DataError
from regraft.core.files import sha256_bytes
from regraft.core.progress import QUIET
from regraft.data.decode import Unreadable
from regraft.data.scan import Dataset, map_photos
from regraft.data.sources import read_bytes
from regraft.labelling.heap import Contents, Heap

FIRST_PART, LARGEST_PART = 32, 256  # photos
MOST_TRIES = 3  # for a part whose photos change while they are read


def stream_features(
    heap: Heap, contents: Contents, backbone: Backbone, on_arrival: Callable[[], None], stop: threading.Event
) -> None:
    """Compute the features of all photos, or find them in the cache, and make them known part by part.

    Args:
        heap: The photos.
        contents: Where they are made known.
        backbone: What computes features.
        on_arrival: Called after each part.
        stop: Ends it after the part that is being computed.
    """
    start_engine = cache(backbone.engine)
    store = store_of(backbone)

    def compute(part: Sequence[int]) -> None:
        dataset, chosen, unreadable = _read(heap, part)
        rows, failures = feature_rows(store, dataset, backbone.preprocessing, start_engine, QUIET)
        unreadable |= {chosen[i]: reason for i, reason in failures.items()}
        kept = [i for i, content in enumerate(dataset.hashes) if content in rows]  # not all when a signal has come
        hashes = [dataset.hashes[i] for i in kept]
        table = np.stack([rows[content] for content in hashes]) if hashes else np.empty((0, 0), np.float32)
        contents.put([chosen[i] for i in kept], hashes, table, unreadable)
        on_arrival()

    for part in _parts(heap.order):
        if stop.is_set():
            return
        _again_if_changed(compute, part)


def _again_if_changed(compute: Callable[[Sequence[int]], None], part: Sequence[int]) -> None:
    """Compute a part; begin it anew where a photo changed between being hashed and being decoded."""
    for _ in range(MOST_TRIES - 1):
        with suppress(DataError):
            compute(part)
            return
    compute(part)


def _parts(order: np.ndarray) -> Iterator[list[int]]:
    """Divide photos into parts, small ones first."""
    start, size = 0, FIRST_PART
    while start < len(order):
        yield order[start : start + size].tolist()
        start, size = start + size, min(2 * size, LARGEST_PART)


def _read(heap: Heap, part: Sequence[int]) -> tuple[Dataset, list[int], dict[int, str]]:
    """Hash some photos; return those that can be read as a data set with their indices, and why others cannot."""
    results = list(map_photos(lambda i: _hash_or_reason(heap, part[i]), len(part), lambda _: None))
    chosen = [index for index, (content, _) in zip(part, results, strict=True) if content]
    unreadable = {index: reason for index, (content, reason) in zip(part, results, strict=True) if not content}
    hashes = tuple(content for content, _ in results if content)
    paths = tuple(heap.paths[index] for index in chosen)
    labels, splits = np.zeros(len(chosen), np.int64), ("",) * len(chosen)
    return Dataset(heap.root, paths, labels, ("",), splits, hashes), chosen, unreadable


def _hash_or_reason(heap: Heap, index: int) -> tuple[str, str]:
    try:
        return sha256_bytes(read_bytes(heap.root / heap.paths[index])), ""
    except Unreadable as error:
        return "", str(error)
