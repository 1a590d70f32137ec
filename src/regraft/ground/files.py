"""Files that are either whole or not there: hashing, atomic writing, folders published by one rename."""

import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft.ground.errors import OutputError
from regraft.ground.progress import Progress
from regraft.ground.runtime import cache_folder

PARTIAL = ".partial-"  # prefix of everything that is still being written


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
    """`value` as readable UTF-8 JSON with a final newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new, never a part."""
    partial = path.parent / f"{PARTIAL}{uuid.uuid4().hex}"
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {_reason(error)}.") from error
    finally:
        partial.unlink(missing_ok=True)


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
        return make_folder(cache_folder() / name, kind="cache")
    except OutputError as error:
        progress.say(f"{error} Going on without: nothing is kept for the next run.")
        return make_folder(Path(_temporary_folder().name) / name)


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="regraft-")


@contextmanager
def published(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` in one rename when the block ends well, and vanishes when it does not.

    An existing `final` is moved aside first, so that it is replaced as a whole.
    """
    make_folder(final.parent, kind="output folder")
    partial, aside = (final.parent / f"{PARTIAL}{uuid.uuid4().hex}" for _ in range(2))
    partial.mkdir()
    try:
        yield partial
        if final.exists():
            os.replace(final, aside)
        os.replace(partial, final)
    except OSError as error:
        raise OutputError(f"Cannot write {final}: {_reason(error)}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder. The caller has the folder for itself."""
    for leftover in folder.glob(f"{PARTIAL}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder for this process. Raises OutputError that names the holder when another run has it."""
    make_folder(folder, kind="output folder")
    holder = folder / ".holder"
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = holder.read_text() if holder.exists() else "another process"
        raise OutputError(
            f"{folder} is in use by {owner}. Wait until it ends, or choose another folder with --out."
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
