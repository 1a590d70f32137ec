"""Ctrl-C and SIGTERM: stop at the next whole step, leave something to continue from; a second one stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_pending: list[int] = []
_holders: list[bool] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to stop.

    Attributes:
        signum: The signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def install() -> None:
    """Turn SIGINT and SIGTERM into `Interrupted`. For programs; a library leaves signals alone.

    The first signal raises `Interrupted`, at once or where `held_back` ends; a second one ends the process. Does
    nothing outside the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _handle)
        signal.signal(signal.SIGTERM, _handle)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold signals back: within the block they raise nothing.

    Yields:
        A function that tells whether a signal came.

    Raises:
        Interrupted: At the end of the block, if a signal came and no block around this one holds it back. It takes the
            place of an error of the block.
    """
    _holders.append(True)
    try:
        yield is_stopping
    finally:
        _holders.pop()
        if _pending and not _holders:
            raise Interrupted(_pending[0])  # also in place of an error: helpers that the same signal stopped cause some


def is_stopping() -> bool:
    """Return whether a signal has come: for threads that have several things to do, to ask before each."""
    return bool(_pending)


def _handle(signum: int, _: FrameType | None) -> None:
    if _pending:
        os._exit(128 + signum)
    _pending.append(signum)
    if not _holders:
        raise Interrupted(signum)
