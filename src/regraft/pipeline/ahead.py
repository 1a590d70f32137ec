"""Features of photos while others are still on their way from an address.

Copying waits for a network most of the time, and leaves the cores idle.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue

from regraft.backbones.backbone import Backbone
from regraft.backbones.features import feature_rows, store_of
from regraft.core.errors import RegraftError
from regraft.data.scan import unlabelled
from regraft.data.sources import is_source

PART = 128  # photos that are computed at a time, at most


@contextmanager
def features_ahead(backbone: Backbone) -> Iterator[Callable[[Path], None]]:
    """Compute features of files as they arrive, into the cache, until the block ends.

    What is not computed by then, and what fails, is left to the extraction that comes after.

    Args:
        backbone: What computes them.

    Yields:
        A function that is to be called with each file that has arrived.
    """
    arrived: SimpleQueue[Path | None] = SimpleQueue()
    ended = threading.Event()
    worker = threading.Thread(target=_work, args=(backbone, arrived, ended), name="features ahead", daemon=True)
    worker.start()
    try:
        yield arrived.put
    finally:
        ended.set()
        arrived.put(None)
        worker.join()


def _work(backbone: Backbone, arrived: "SimpleQueue[Path | None]", ended: threading.Event) -> None:
    store, start_engine = store_of(backbone), cache(backbone.engine)
    while not ended.is_set():
        part = [arrived.get()]
        while len(part) < PART and not arrived.empty():
            part.append(arrived.get())
        try:
            photos = [path for path in part if path is not None and not is_source(path)]
            feature_rows(store, unlabelled(photos), backbone.preprocessing, start_engine)
        except (RegraftError, OSError):
            return
