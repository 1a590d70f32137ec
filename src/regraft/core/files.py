"""Files that are either whole or not there: hashing, atomic writing, folders published by one rename."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft.core.csv_cells import to_cell
from regraft.core.errors import OutputError
from regraft.core.progress import Progress
from regraft.core.runtime import cache_folder, chosen_cache, foreign_hands, temporary_folder
from regraft.core.version import __version__

PARTIAL = ".regraft-partial-"  # prefix of everything that is still being written; 32 hexadecimal digits follow
MARKER = ".regraft"  # a file that says what is regraft's own in the folder that holds it
LOCK, HOLDER = ".regraft.lock", ".regraft.holder"
DAY_S = 86_400.0
_NEW, _OLD = "new", "old"  # in a workspace: what is to be put in place, and what stood there before
_IS_PARTIAL = re.compile(re.escape(PARTIAL) + "[0-9a-f]{32}")


def sha256_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hexadecimal SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256_bytes(json.dumps(value, sort_keys=True).encode())


def json_bytes(value: Any) -> bytes:
    """Write a value as readable UTF-8 JSON with a final newline; bytes of file names that are no UTF-8 are escaped."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def csv_bytes(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> bytes:
    """Write a CSV file whose cells `csv_cells.from_cell` reads back, and that no spreadsheet takes for a program.

    Args:
        header: Names of the columns.
        rows: As many cells each as there are columns.

    Returns:
        The file's content, UTF-8.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL)  # also where a semicolon ends a cell
    writer.writerow(header)
    writer.writerows([to_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue().encode()


def marker_bytes(**facts: Any) -> bytes:
    """Return the content of a marker: which version of regraft made the folder around it, and facts about the folder.

    Args:
        **facts: Plain JSON values.
    """
    return json_bytes({"made_by": f"regraft {__version__}", **facts})


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return the facts of the marker in a folder; None where there is none, or one that regraft has not made."""
    path = folder / MARKER
    try:
        if path.is_symlink() or not path.is_file():
            return None
        marker = json.loads(path.read_text(encoding="utf-8"))
        return marker if marker["made_by"].startswith("regraft ") else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    For files in folders that are regraft's alone; what lies where the user chose goes through `core.ownership`.

    Raises:
        OutputError: It cannot be written.
    """
    with written_atomic(path) as write:
        write(data)


@contextmanager
def written_atomic(path: Path) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Provide what writes a file piece by piece; as with `write_atomic` it is there when the block has ended well.

    Raises:
        OutputError: It cannot be written; what the block raises otherwise goes through as it is.
    """
    partial = path.parent / _partial_name()
    try:
        with _unwritable(path):
            file = open(partial, "wb")  # noqa: SIM115 (closed below)

        def write(data: bytes | memoryview) -> None:
            with _unwritable(path):
                file.write(data)

        try:
            yield write
            with _unwritable(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(OSError):  # what was not written has been said
                file.close()
        with _unwritable(path):
            os.replace(partial, path)
    finally:
        remove(partial)


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {_reason(error)}. Make room or choose another place.") from error


def make_folder(path: Path, *, kind: str = "folder") -> Path:
    """Create a folder with its parents, unless it is there, and make sure that files can be written in it.

    Args:
        path: The folder.
        kind: What it is for, as the error calls it.

    Returns:
        The folder.

    Raises:
        OutputError: It cannot be created or written to; names the folder and what it was for.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / _partial_name()
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"Cannot write to the {kind} {path}: {_reason(error)}. Choose another place or change its permissions."
        ) from error
    return path


def writable_cache(name: str, progress: Progress) -> Path:
    """Return the cache's folder `name`, or a temporary one where that cannot be written, or others may write to it.

    Args:
        name: Of the folder within the cache.
        progress: Says once if nothing is kept for the next run.

    Returns:
        A folder that exists; leftovers in it that are older than a day are removed. A temporary one lives as long as
        the process.
    """
    if why := foreign_hands(chosen_cache()):
        progress.say_once(
            "cache",
            f"The cache {chosen_cache()} is not used: {why}. Going on without: nothing is kept for the next run. Name "
            "a folder of your own with REGRAFT_CACHE.",
        )
    try:
        with suppress(OSError):  # what the next lines say better
            cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)  # for its owner alone
        folder = make_folder(cache_folder() / name, kind="cache")
        sweep(folder, older_than_s=DAY_S)
        return folder
    except OutputError as error:
        progress.say_once("cache", f"{error} Going on without: nothing is kept for the next run.")
        return make_folder(Path(temporary_folder().name) / name)


@contextmanager
def workspace(parent: Path, final: str = "") -> Iterator[Path]:
    """Provide a folder for what is being written, inside `parent`, on the same disk; it is removed at the end.

    Args:
        parent: Where it is made.
        final: Name in `parent` of what comes of it, so that `sweep` can restore what had that name.

    Yields:
        The folder.

    Raises:
        OutputError: It cannot be made.
    """
    place = make_folder(parent, kind="output folder") / _partial_name()
    try:
        try:
            place.mkdir()
        except OSError as error:
            raise OutputError(f"Cannot write to {parent}: {_reason(error)}. Choose another place.") from error
        write_atomic(place / MARKER, marker_bytes(final=final))
        yield place
    finally:
        remove(place)


def replace_any(final: Path) -> None:
    """Allow `published` to replace whatever is there: for the cache, whose names nobody else gives."""


@contextmanager
def published(final: Path, replace: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Provide a temporary folder that becomes `final` in one rename when the block ends well, and else vanishes.

    Args:
        final: The folder to be.
        replace: Called with `final` where something is there, just before it is replaced as a whole; raises
            OutputError where it must stay. None replaces nothing but an empty folder.

    Yields:
        The temporary folder.

    Raises:
        OutputError: It cannot be written, or what is there stays.
    """
    with workspace(final.parent, final.name) as place:
        try:
            (place / _NEW).mkdir()
            yield place / _NEW
            _put_in_place(final, place, replace)
        except OSError as error:
            raise OutputError(f"Cannot write {final}: {_reason(error)}. Make room or choose another place.") from error


def sweep(folder: Path, *, older_than_s: float = 0.0) -> None:
    """Remove what killed writers left in a folder.

    Only what bears regraft's own names and markers is touched. A folder that was moved aside to be replaced comes back
    if its writer was killed before the new one took its place.

    Args:
        folder: Where they wrote.
        older_than_s: Seconds since it was last changed, below which something stays, because another process may still
            be writing it; 0 removes everything.
    """
    for leftover in folder.glob(f"{PARTIAL}*"):
        with suppress(OSError):
            young = older_than_s and time.time() - leftover.lstat().st_mtime < older_than_s
            if not young and is_partial(leftover):
                _clear_up(leftover)


def is_partial(path: Path) -> bool:
    """Return whether a writer of regraft's left this, or is writing it: by its name, and a folder by its marker too."""
    if not _IS_PARTIAL.fullmatch(path.name) or path.is_symlink():
        return False
    if not path.is_dir():
        return path.is_file()
    return read_marker(path) is not None or all(is_partial(one) for one in path.iterdir())  # killed before its marker


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process until the block ends.

    Raises:
        OutputError: Another run has it, which is named, or its lock is no plain, empty file.
    """
    make_folder(folder, kind="output folder")
    lock = FileLock(_plain_lock(folder / LOCK))
    holder = folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = "another process"
        with suppress(OSError):
            owner = holder.read_text()
        raise OutputError(
            f"{folder} is in use by {owner}. Wait until it ends, or choose another folder with --out."
        ) from None
    except OSError as error:
        raise OutputError(f"Cannot lock {folder / LOCK}: {_reason(error)}. Choose another --out.") from error
    try:
        write_atomic(holder, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _plain_lock(path: Path) -> Path:
    """Return the same path, once it is sure that locking it changes nothing. Raises OutputError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_size:
            raise OutputError(
                f"{path} is no lock of regraft's: expected an empty file. Move it away, or choose another --out."
            )
    return path


def _clear_up(leftover: Path) -> None:
    """Remove what a killed writer left; what it had moved aside comes back where nothing has taken its place."""
    facts = read_marker(leftover) if leftover.is_dir() else None
    name = facts.get("final") if facts else None
    if isinstance(name, str) and name and Path(name).name == name and os.path.lexists(leftover / _OLD):
        final = leftover.parent / name
        if not os.path.lexists(final):
            os.replace(leftover / _OLD, final)
    remove(leftover)


def _put_in_place(final: Path, place: Path, replace: Callable[[Path], None] | None) -> None:
    """Rename the new folder to `final`, and what is there aside, or back if that fails."""
    while True:
        if replace is not None and os.path.lexists(final):
            replace(final)
            with suppress(FileNotFoundError):
                os.replace(final, place / _OLD)
        try:
            return os.replace(place / _NEW, final)
        except BaseException as error:
            in_the_way = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            if in_the_way and replace is None:
                raise OutputError(
                    f"{final} is there already, and stays as it is. Move it away, or choose another place."
                ) from error
            if not in_the_way:
                with suppress(OSError):
                    os.replace(place / _OLD, final)
                raise
            remove(place / _OLD)  # another process was quicker: what it has put there is replaced in its turn


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds, as far as that is possible.

    For what is regraft's alone; what lies where the user chose goes through `core.ownership`.
    """
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _partial_name() -> str:
    return f"{PARTIAL}{uuid.uuid4().hex}"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
