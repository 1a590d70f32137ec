"""Where memory runs out: the same work with fewer photos at once."""

from collections.abc import Callable
from typing import TypeVar

from regraft.core.errors import TrainError
from regraft.core.progress import Progress

Result = TypeVar("Result")


def in_pieces(size: int, work: Callable[[int], Result], progress: Progress) -> tuple[Result, int]:
    """What `work` gives when it takes at most `size` photos at once, or half as many, and so on; and how many it took.

    work: begins anew each time, and may run out of memory.  Raises TrainError where not even one photo fits.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if not _is_lack_of_memory(error):
                raise
            if size == 1:
                raise TrainError(
                    "Not enough memory for one photo. Choose a smaller backbone, or free memory."
                ) from error
        size //= 2  # out here, where the error no longer holds what had been computed
        progress.say(f"out of memory: microbatches of {size}; batches stay as they are")


def _is_lack_of_memory(error: BaseException) -> bool:
    """Python's own error, torch's on a GPU, or the words of torch's allocator on a processor."""
    is_named_so = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_named_so or "can't allocate memory" in str(error)
