"""Features of a heap's photos, part by part in random order, so that labelling can begin after the first ones.

When all are there, photos are looked at again, larger: what labels are doubted is found in that.
"""

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
from regraft.data.feature_cache import empty_table
from regraft.data.scan import Dataset, map_photos
from regraft.data.sources import read_bytes
from regraft.labelling.head import project_roots
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.solver import FEWEST_PHOTOS

FIRST_PART, LARGEST_PART = 32, 256  # photos
CLOSER_PART = 64  # photos that are looked at again at a time
MOST_CLOSER = 20_000  # photos of a heap that is looked at again
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


def look_closer(
    heap: Heap, contents: Contents, backbone: Backbone, on_arrival: Callable[[], None], stop: threading.Event
) -> None:
    """Compute other features of all photos that are ready, from which doubts are found, unless there are too many.

    Args:
        heap: The photos.
        contents: Where they are made known, all at once.
        backbone: What computes them, of larger photos than `stream_features` does.
        on_arrival: Called at the end.
        stop: Ends it after the part that is being computed.
    """
    ready = np.flatnonzero(contents.is_ready)
    if not FEWEST_PHOTOS <= len(ready) <= MOST_CLOSER:
        return
    start_engine, store = cache(backbone.engine), store_of(backbone)
    table = empty_table(len(ready), backbone.num_features)
    for start in range(0, len(ready), CLOSER_PART):
        part = ready[start : start + CLOSER_PART].tolist()
        dataset = _dataset(heap, part, [contents.hashes[index] for index in part])
        rows, _ = feature_rows(store, dataset, backbone.preprocessing, start_engine, QUIET)
        if stop.is_set() or not all(content in rows for content in dataset.hashes):
            return  # a photo is gone: doubts stay what they are
        table[start : start + CLOSER_PART] = [rows[content] for content in dataset.hashes]
    contents.put_closer(ready, project_roots(table))
    on_arrival()


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
    return _dataset(heap, chosen, [content for content, _ in results if content]), chosen, unreadable


def _dataset(heap: Heap, photos: Sequence[int], hashes: Sequence[str]) -> Dataset:
    """Photos of a heap with their contents' hashes, as what computes features takes them."""
    paths = tuple(heap.paths[index] for index in photos)
    return Dataset(heap.root, paths, np.zeros(len(paths), np.int64), ("",), ("",) * len(paths), tuple(hashes))


def _hash_or_reason(heap: Heap, index: int) -> tuple[str, str]:
    try:
        return sha256_bytes(read_bytes(heap.root / heap.paths[index])), ""
    except Unreadable as error:
        return "", str(error)
