"""How much memory decoding may take, for all threads of a process together."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

TOTAL = 2**30  # bytes, for all that is being decoded at a time, and so for one picture


class MemoryBudget:
    """Bytes that threads take and give back; one that finds too few waits, in the order of coming.

    Attributes:
        total: All bytes that there are.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._reset()

    def _reset(self) -> None:
        self._free = self.total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold some bytes until the block ends, once they are free.

        Args:
            size: In bytes; at most `total` counts, so that none waits for ever.
        """
        size = min(size, self.total)
        self._wait_for(size)
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()

    def _wait_for(self, size: int) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._free >= size)
                self._free -= size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()


DECODING = MemoryBudget(TOTAL)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODING._reset)  # what other threads held, they hold in the parent
