"""stdout and stderr as a program may find them: closed, full, or with nobody who reads them."""

import errno
import io
import os
import sys
from contextlib import suppress

from regraft.core.progress import talk


class _Closed(io.RawIOBase):
    """Stands for a closed stdout: what is written to it is an error, as it is for every other program."""

    def writable(self) -> bool:
        """Until it is asked to."""
        return True

    def write(self, data: object) -> int:
        """Raises OSError."""
        raise OSError(errno.EBADF, "closed")


def open_streams() -> None:
    """Give stdin, stdout and stderr to a process that was started without: else files that it opens take their place.

    Names that are not UTF-8 are written with escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Closed()), encoding="utf-8", errors="backslashreplace")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def flushed(code: int) -> int:
    """Write out what is left, and return the exit code: 1 in place of 0 where that fails, with the cause on stderr."""
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or lost(error)
    except ValueError:
        code = code or 1
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        _to_nowhere(2)
    return code


def lost(error: OSError) -> int:
    """What to do, and the exit code, where stdout cannot be written: nothing is said where its reader has gone."""
    if not isinstance(error, BrokenPipeError):
        reason = (error.strerror or str(error)).lower()
        talk(f"error: cannot write to stdout: {reason}. What went to files is there.")
    _to_nowhere(1)
    return 1


def is_of_stdout(error: OSError) -> bool:
    """Whether an error came from writing to stdout: others name a file, or have become an OutputError."""
    return error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT)


def _to_nowhere(number: int) -> None:
    """What Python still holds for a stream is dropped, so that ending the process does not fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    if number == 1 and isinstance(getattr(getattr(sys.stdout, "buffer", None), "raw", None), _Closed):
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
