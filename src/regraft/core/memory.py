"""What to do where memory runs out: the same work with fewer photos at once."""

import errno
from collections.abc import Callable
from typing import TypeVar

from regraft.core.errors import ResourceError, TrainError
from regraft.core.progress import Progress

Result = TypeVar("Result")
WORDS = (
    "allocate memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "failed to map segment",
    "out of memory",
    "can't start new thread",
)


def in_pieces(size: int, work: Callable[[int], Result], progress: Progress) -> tuple[Result, int]:
    """Do work with at most `size` photos at once; where memory runs out, begin anew with half as many, and so on.

    Args:
        size: How many photos to take at first.
        work: Called with the number of photos to take at once. It begins anew each time, and may run out of memory.
        progress: Says each time that memory ran out.

    Returns:
        What `work` returned, and how many photos it took at once.

    Raises:
        TrainError: Not even one photo fits.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            if size == 1:
                raise TrainError(
                    "Not enough memory for one photo. Choose a smaller backbone, or free memory."
                ) from error
        size //= 2  # out here, where the error no longer holds what had been computed
        progress.say(f"out of memory: microbatches of {size}; batches stay as they are")


def is_lack_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: by its kind, or words of an allocator, runtime or linker."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | ImportError | OSError) and any(word in text for word in WORDS)


def too_little(what: str) -> ResourceError:
    """Return the error that tells a user that memory ran out.

    Args:
        what: What could not be done, as "Cannot load pets/bundle".
    """
    return ResourceError(
        f"{what}: there is not enough memory. Free some, raise the limit of this process (`ulimit -v`, or that of its "
        "container), or choose a smaller backbone."
    )
