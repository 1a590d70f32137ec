"""Everything that was said in a sitting, one line of JSON each, on disk before it counts.

A line is written with one call and synchronised before `append` returns, so a kill or a power cut loses at most the
line in flight; what it leaves of that line has no end and is cut off when the journal is opened again.
"""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from regraft.core.errors import DataError, OutputError
from regraft.core.files import make_folder

FORMAT = {"journal": "regraft label", "format": 1}


class Journal:
    """A file of JSON lines that only grows.

    Args:
        path: The file, made where it is missing.

    Attributes:
        path: The file.
        entries: What it held when it was opened, in order.

    Raises:
        DataError: The file is no journal, or damaged before its last line.
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent, kind="output folder")
        try:
            path.touch()
            self._file = open(path, "r+b", buffering=0)  # noqa: SIM115 - as long as the sitting
        except OSError as error:
            raise _not_written(path, error) from error
        try:
            self.entries, self._size = _read(path)
            self._cut_off()
            if not self._size:
                self.append(FORMAT)
                _synchronise_folder(path.parent)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one entry; it is on disk when this returns.

        Raises:
            OutputError: It is not, such as on a full disk; the journal is as it was before.
        """
        line = (json.dumps(entry, ensure_ascii=True) + "\n").encode()
        try:
            self._file.seek(self._size)
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut_off()
            raise _not_written(self.path, error) from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _cut_off(self) -> None:
        """Remove what follows the last whole line."""
        try:
            self._file.truncate(self._size)
        except OSError as error:
            raise _not_written(self.path, error) from error


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of all whole lines without the first, and how many bytes those lines have."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        entries = [json.loads(line) for line in whole.splitlines()]
        if (entries and entries[0] != FORMAT) or (data and not entries and not _is_cut_short(data)):
            raise ValueError("its first line is not that of a journal")
        if not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("a line is no object")
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read as the journal of a sitting: {error}. Expected what regraft label has written. "
            "Move it away to begin anew, or bring back a copy."
        ) from error
    return entries[1:], len(whole)


def _is_cut_short(data: bytes) -> bool:
    """Whether it is the beginning of the first line of a journal, whose writer was killed."""
    return json.dumps(FORMAT).encode().startswith(data)


def _synchronise_folder(folder: Path) -> None:
    """Make the file's name durable too, where folders can be synchronised."""
    if os.name == "posix":
        place = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def _not_written(path: Path, error: OSError) -> OutputError:
    reason = (error.strerror or str(error)).lower()
    return OutputError(f"Cannot write {path}: {reason}. The answer was not kept. Make room, then answer again.")
