"""Files that are either whole or not there: hashing, atomic writing, folders published by one rename."""

import csv
import errno
import functools
import hashlib
import io
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft.ground.csv_cells import to_cell
from regraft.ground.errors import OutputError
from regraft.ground.progress import Progress
from regraft.ground.runtime import cache_folder

PARTIAL = ".partial-"  # prefix of everything that is still being written
ASIDE = ".aside-"  # prefix of a folder that is just being replaced; a unique part and its own name follow
DAY_S = 86_400.0


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())


def json_bytes(value: Any) -> bytes:
    """`value` as readable UTF-8 JSON with a final newline; bytes of file names that are not UTF-8 as JSON escapes."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def csv_bytes(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> bytes:
    """A CSV file that `regraft.ground.csv_cells.from_cell` reads back, and no spreadsheet takes for a program."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)  # also where a semicolon ends a cell
    writer.writerow(header)
    writer.writerows([to_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue().encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Raises OutputError where it cannot be written.
    """
    partial = path.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {_reason(error)}. Make room or choose another place.") from error
    finally:
        remove(partial)


def make_folder(path: Path, *, kind: str = "folder") -> Path:
    """Create a folder with its parents. Raises OutputError that names the folder and what it was for."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f"{PARTIAL}{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"Cannot write to the {kind} {path}: {_reason(error)}. Choose another place or change its permissions."
        ) from error
    return path


def writable_cache(name: str, progress: Progress) -> Path:
    """The cache's folder `name`; where it cannot be written, a temporary one that lives as long as the process."""
    try:
        folder = make_folder(cache_folder() / name, kind="cache")
        sweep(folder, older_than_s=DAY_S)
        return folder
    except OutputError as error:
        progress.say_once("cache", f"{error} Going on without: nothing is kept for the next run.")
        return make_folder(Path(_temporary_folder().name) / name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="regraft-")


@contextmanager
def published(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` in one rename when the block ends well, and vanishes when it does not.

    An existing `final` is moved aside first, so that it is replaced as a whole, and back if that fails.
    Raises OutputError where it cannot be written.
    """
    make_folder(final.parent, kind="output folder")
    partial = final.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    aside = final.parent / f"{ASIDE}{uuid.uuid4().hex}-{final.name}"
    partial.mkdir()
    try:
        yield partial
        _replace_folder(final, partial, aside)
    except OSError as error:
        raise OutputError(f"Cannot write {final}: {_reason(error)}. Make room or choose another place.") from error
    finally:
        remove(partial)
        remove(aside)


def sweep(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what killed writers left in a folder; where others may be writing, only what is old.

    A folder that stood aside comes back if its writer was killed before the new one took its place.
    """
    for leftover in [*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{ASIDE}*")]:
        with suppress(OSError):
            if older_than_s and time.time() - leftover.lstat().st_mtime < older_than_s:
                continue
            final = folder / leftover.name.removeprefix(ASIDE).partition("-")[2]
            if leftover.name.startswith(ASIDE) and not os.path.lexists(final):
                os.replace(leftover, final)
            else:
                remove(leftover)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Raises OutputError that names the holder when another run has it."""
    make_folder(folder, kind="output folder")
    holder = folder / ".holder"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = "another process"
        with suppress(OSError):
            owner = holder.read_text()
        raise OutputError(
            f"{folder} is in use by {owner}. Wait until it ends, or choose another folder with --out."
        ) from None
    try:
        write_atomic(holder, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _replace_folder(final: Path, partial: Path, aside: Path) -> None:
    while True:
        with suppress(FileNotFoundError):
            os.replace(final, aside)
        try:
            return os.replace(partial, final)
        except BaseException as error:
            if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                with suppress(OSError):
                    os.replace(aside, final)
                raise
            remove(aside)  # another process was quicker: what it has put there is replaced in its turn


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds, as far as that is possible."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
