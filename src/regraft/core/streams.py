"""stdout and stderr as a program may find them: closed, full, or with nobody who reads them."""

import errno
import io
import os
import sys
from contextlib import suppress

from regraft.core.progress import talk


class _Closed(io.RawIOBase):
    """Stand-in for a closed stdout: writing to it is an error, as it is for every other program."""

    def writable(self) -> bool:
        """Return True: that it is closed shows only when it is written to."""
        return True

    def write(self, data: object) -> int:
        """Raise OSError."""
        raise OSError(errno.EBADF, "closed")


def open_streams() -> None:
    """Give stdin, stdout and stderr to a process that was started without them.

    Else files that the process opens would take their place. Names that are not UTF-8 are written with escapes.
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
    """Write out what stdout and stderr still hold.

    Args:
        code: Exit code of the program so far.

    Returns:
        The exit code; 1 in place of 0 where stdout cannot be written, with the cause on stderr.
    """
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
    """Deal with a stdout that cannot be written: drop what is left for it.

    The cause is named on stderr, unless it is that the reader of stdout has gone.

    Args:
        error: What writing to stdout raised.

    Returns:
        The exit code, 1.
    """
    if not isinstance(error, BrokenPipeError):
        reason = (error.strerror or str(error)).lower()
        talk(f"error: cannot write to stdout: {reason}. What went to files is there.")
    _to_nowhere(1)
    return 1


def is_of_stdout(error: OSError) -> bool:
    """Return whether an error came from writing to stdout: others name a file, or have become an OutputError."""
    return error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO, errno.EDQUOT)


def _to_nowhere(number: int) -> None:
    """Drop what Python still holds for a stream, so that ending the process does not fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    if number == 1 and isinstance(getattr(getattr(sys.stdout, "buffer", None), "raw", None), _Closed):
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
