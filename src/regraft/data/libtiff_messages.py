"""Messages of libtiff about odd files.

It writes them to the process's stderr, megabytes for some files, and Pillow lets it.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import PIL

LIBRARIES = ("pillow.libs/libtiff*.so*", "PIL/.dylibs/libtiff*.dylib")  # in Pillow's wheels for Linux and macOS
SETTERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_kept: list[Any] = []  # what libtiff calls must never go away


@cache
def listen(take: Callable[[str], bool]) -> bool:
    """Hand libtiff's messages to a function; what it does not want goes where it went before.

    Args:
        take: Gets a message, its numbers still as C's placeholders; returns whether it wants it. Called in the thread
            that decodes.

    Returns:
        Whether this Pillow has a libtiff that can be reached.
    """
    site = Path(PIL.__file__).parent.parent
    libraries = [path for pattern in LIBRARIES for path in site.glob(pattern)]
    if not libraries:
        return False
    library = ctypes.CDLL(str(libraries[0]))
    for name in SETTERS:
        _listen(getattr(library, name), take)
    return True


def _listen(setter: Any, take: Callable[[str], bool]) -> None:
    setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before: list[Any] = []

    def handle(module: bytes | None, form: bytes | None, values: int | None) -> None:
        text = b": ".join(part for part in (module, form) if part).decode("utf-8", "replace")
        if not take(text):
            for one in before:
                one(module, form, values)

    handler = _Handler(handle)
    previous = setter(ctypes.cast(handler, ctypes.c_void_p))
    if previous:
        before.append(_Handler(previous))
    _kept.append((handler, before))
