"""Pillow with regraft's own settings, whatever else this process sets.

Pillow keeps its switches in variables of its modules, and Python its filters of warnings in one list: a notebook, a
library or another thread may set them at any time. What is decoded, and so what is kept in the cache, must not depend
on them, and what regraft sets must not reach the user. So each switch answers by thread: one that decodes for regraft
finds regraft's value, every other the user's, even while both decode at once.
"""

import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from regraft.data import libtiff_messages

TEXT_CHUNK = 2**20  # bytes of text that one part of a PNG may unpack to: Pillow's own default
TEXT_MEMORY = 64 * TEXT_CHUNK
log = logging.getLogger("regraft.decode")
_thread = threading.local()


class _State:
    """What all threads share: the number of active decodings, and a lock for it and for Python's warning filters."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.num_active = 0


_state = _State()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_state.__init__)  # type: ignore[misc]  # other threads are the parent's


@dataclass
class Messages:
    """What decoders said of one file.

    Attributes:
        count: How many messages.
        first: The first of them; "" for none.
    """

    count: int = 0
    first: str = ""

    def add(self, text: str) -> None:
        """Count one more message, and keep it if it is the first."""
        self.first = self.first or text
        self.count += 1


@contextmanager
def private_settings(max_pixels: int) -> Iterator[Messages]:
    """Decode with regraft's own settings, in this thread.

    Args:
        max_pixels: Pictures within a file that Pillow itself refuses when they have more pixels.

    Yields:
        Messages: Warnings of Pillow and libtiff, which go nowhere else; at the end one line of the log, of level INFO,
            tells of them.
    """
    _put_in_place()
    before, messages = getattr(_thread, "current", None), Messages()
    _thread.current = (max_pixels, messages)
    try:
        yield messages
    finally:
        _thread.current = before
        _put_back()
        if messages.count:
            log.info("the decoder complained %d times, first: %.200s", messages.count, messages.first)


class Switch:
    """A variable of one of Pillow's modules: regraft's value in a thread that decodes for it, else the user's.

    It knows the operations that Pillow uses on its variables. The user's None (no limit) counts as infinity.

    Args:
        value_for: Returns regraft's value for a limit of so many pixels.
        users: The user's value.
    """

    def __init__(self, value_for: Callable[[int], Any], users: Any) -> None:
        self.value_for, self.users = value_for, users

    @property
    def value(self) -> Any:
        """The variable's value in this thread."""
        current = getattr(_thread, "current", None)
        return self.users if current is None else self.value_for(current[0])

    @property
    def _number(self) -> Any:
        return math.inf if self.value is None else self.value

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == other)

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: Any) -> bool:
        return bool(self._number < other)

    def __gt__(self, other: Any) -> bool:
        return bool(self._number > other)

    def __rmul__(self, other: Any) -> Any:
        return other * self._number

    def __str__(self) -> str:
        return str(self.value)


_SWITCHES: dict[tuple[ModuleType, str], Callable[[int], Any]] = {
    (ImageFile, "LOAD_TRUNCATED_IMAGES"): lambda _: False,
    (Image, "MAX_IMAGE_PIXELS"): lambda max_pixels: max_pixels // 2,  # Pillow refuses twice as many
    (PngImagePlugin, "MAX_TEXT_CHUNK"): lambda _: TEXT_CHUNK,
    (PngImagePlugin, "MAX_TEXT_MEMORY"): lambda _: TEXT_MEMORY,
    (GifImagePlugin, "LOADING_STRATEGY"): lambda _: GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST,
    (TiffImagePlugin, "READ_LIBTIFF"): lambda _: False,
}


class _QuietFilter:
    """Stands in for a pattern of warnings' texts: matches all warnings of a thread that decodes, and counts them.

    `pattern` is for libraries that copy filters to other processes, where this one is to match nothing.
    """

    pattern = "(?!)"

    def match(self, text: str) -> bool:
        current = getattr(_thread, "current", None)
        if current is not None:
            current[1].add(text)
        return current is not None


_FILTER: Any = ("ignore", _QuietFilter(), Warning, None, 0)


def _put_in_place() -> None:
    """Make sure that every switch answers by thread, and that no filter of warnings comes before regraft's."""
    with _state.lock:
        filters: Any = warnings.filters
        _state.num_active += 1
        for (module, name), value_for in _SWITCHES.items():
            if not isinstance(vars(module)[name], Switch):
                _replace(module, name, value_for)
        if not filters or filters[0] is not _FILTER:
            filters[:] = [_FILTER, *(one for one in filters if one is not _FILTER)]
        libtiff_messages.listen(_tell)


def _put_back() -> None:
    """Take the filter away when nothing is decoded any more. The switches stay: they are the user's then."""
    with _state.lock:
        filters: Any = warnings.filters
        _state.num_active -= 1
        if not _state.num_active and _FILTER in filters:
            filters.remove(_FILTER)


def _tell(text: str) -> bool:
    """Take a message of libtiff, and return whether it was of a thread that decodes for regraft."""
    return _FILTER[1].match(text)  # type: ignore[no-any-return]


def _replace(module: ModuleType, name: str, value_for: Callable[[int], Any]) -> None:
    """Put a switch for a variable; code that uses it from outside, through the module, has the user's value."""
    switch = Switch(value_for, vars(module)[name])

    def get(_: ModuleType) -> Any:
        return switch.value

    def put(_: ModuleType, value: Any) -> None:
        switch.users = value

    vars(module)[name] = switch
    module.__class__ = type("Module", (type(module),), {name: property(get, put)})
