"""Photos in other places: `s3://`, `gs://`, `az://`, `hf://` and `http(s)://` trees and files.

What is there is copied into the cache, `remote/<hash of the address>/<name>/...`, many objects at a time, and read from
there as any folder. A ledger beside it says which objects are whole, and by what mark the place tells their content: a
cut copy goes on, and a later one fetches only what has changed.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from regraft.core.errors import DataError, MissingExtra, OutputError
from regraft.core.files import make_folder, remove, sha256_bytes, writable_cache, write_atomic, written_atomic
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import cache_folder, is_offline
from regraft.data.annotations import is_annotation
from regraft.data.folder_entries import is_junk, is_manifest
from regraft.data.object_stores import RemoteFile, RemoteTree, access_to, remote_tree

_ADDRESS = re.compile(r"(s3|s3a|gs|gcs|az|abfs|abfss|hf|https?|memory):/+(.*)", re.DOTALL)
ADDRESS_FILE = "address.txt"  # beside a copy: where it comes from
NUM_READERS = 16
NUM_TRIES = 8  # of an object, within 25 s: a store that is started anew is back by then
WAIT_S = 0.2  # before an object is asked for again, doubled each time


def address_of(place: str | Path) -> str | None:
    """Return the address that a place is, also where a Path has made `s3:/` of `s3://`; None for a place on disk."""
    match = _ADDRESS.fullmatch(str(place))
    return f"{match[1]}://{match[2]}" if match else None


def absolute(place: Path) -> Path:
    """Return a path that is found from any folder; an address as it is."""
    return place if address_of(place) else place.resolve()


def shown(place: Path) -> str:
    """Return what a place is called: an absolute path, or an address."""
    return address_of(place) or str(place.resolve())


def copy_of(place: Path) -> Path:
    """Return where the copy of an address is, or will be; a place on disk as it is.

    Args:
        place: An address of a tree or file, or a path.
    """
    address = address_of(place)
    if address is None:
        return place
    tree, rest = _tree_of(address)
    return _folder(tree) / rest


def named(file: Path) -> str:
    """Return what a file is called: by its address where it lies in a copy, else by its path.

    Args:
        file: A path as it was given or found, also of a member of an archive.
    """
    copies = cache_folder() / "remote"
    if not file.is_relative_to(copies):
        return str(file)
    folder, *rest = file.relative_to(copies).parts
    address = _address_in(copies / folder)
    return "/".join([address, *rest[1:]]) if address else str(file)


@cache
def _address_in(folder: Path) -> str:
    """Return the address that a copy is of; "" where that is not known any more."""
    try:
        return (folder / ADDRESS_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def fetched(place: Path, progress: Progress = QUIET, on_file: Callable[[Path], None] = lambda _: None) -> Path:
    """Copy what is at an address into the cache, as far as it is not there.

    Args:
        place: An address, or a path, which is returned as it is.
        progress: Shows how far it is.
        on_file: Called with the path of each file that has been copied.

    Returns:
        Path of the copy.

    Raises:
        DataError: There is nothing, an object cannot be read, or its name leads out of the copy.
        MissingExtra: What reads such places is not installed.
    """
    address = address_of(place)
    if address is None or (is_offline() and copy_of(place).exists()):
        return place if address is None else copy_of(place)
    if is_offline():
        raise DataError(
            f"{address} is not in the cache, and REGRAFT_OFFLINE forbids to fetch it. Unset it to go online."
        )
    tree, _ = _tree_of(address)
    writable_cache("remote", progress)
    with _errors_translated(address), progress.step("list objects"):
        remote = remote_tree(tree)
        objects = list(_listed(remote, tree))
    if not objects:
        raise DataError(f"There is nothing at {tree}. Expected photos or an archive. Check the address.")
    _copy(remote, objects, _folder(tree), tree, progress, on_file)
    return copy_of(place)


def _tree_of(address: str) -> tuple[str, str]:
    """The address that is copied, and the path in the copy of what was named: photos lie around a list."""
    base = address.rstrip("/")
    around, _, name = base.rpartition("/")
    if is_manifest(Path(name)) or is_annotation(Path(name)):
        return around, name
    return base, ""


def _folder(tree: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", tree.rpartition("/")[2].partition("?")[0]) or "photos"
    return cache_folder() / "remote" / sha256_bytes(tree.encode())[:32] / name


def _listed(remote: RemoteTree, tree: str) -> Iterator[RemoteFile]:
    """List the files of a tree that are worth copying. Raises DataError."""
    for file in remote.files():
        parts = file.path.split("/")
        if ".." in parts or "\0" in file.path:
            raise DataError(f"{tree} has an object {file.path!r}, whose name leads out of it. Rename it.")
        if not any(map(is_junk, parts)):
            yield file


def _copy(
    remote: RemoteTree,
    objects: list[RemoteFile],
    folder: Path,
    tree: str,
    progress: Progress,
    on_file: Callable[[Path], None],
) -> None:
    """Fetch what the ledger does not have, and remove what is no longer at the place. Raises DataError."""
    ledger = folder.parent / "ledger.jsonl"
    known = _read_ledger(ledger)
    make_folder(folder.parent)
    write_atomic(folder.parent / ADDRESS_FILE, tree.encode())
    missing = [one for one in objects if not _is_whole(one, folder, known)]
    for around in {(folder / one.path).parent for one in missing if one.path}:
        make_folder(around)
    failed: list[str] = []
    in_a_row, given_up = 0, threading.Event()
    with (
        open(ledger, "a", encoding="utf-8") as written,
        progress.step("fetch photos", total=len(missing)) as advance,
        ThreadPoolExecutor(NUM_READERS) as pool,
    ):
        for one, reason in zip(missing, pool.map(partial(_fetch, remote, folder, given_up), missing), strict=True):
            failed += [f"{one.key}: {reason}"] if reason else []
            in_a_row = in_a_row + 1 if reason else 0
            if in_a_row >= NUM_READERS:
                given_up.set()
            if not reason:
                written.write(json.dumps(one._asdict()) + "\n")
                written.flush()
                on_file(folder / one.path if one.path else folder)
            advance(1)
    _remove_others(folder, {one.path for one in objects})
    if failed:
        raise DataError(
            f"{len(failed)} of the {len(objects)} objects at {tree} could not be read; the first: {failed[0]}. "
            "What came is kept: the same command goes on from there."
        )


def _fetch(remote: RemoteTree, folder: Path, given_up: threading.Event, one: RemoteFile) -> str | None:
    """Copy an object, and return why that failed. A place that fails is asked again, unless all fail."""
    reason = "not asked for, as those before it failed"
    for number in range(NUM_TRIES):
        if given_up.is_set():
            break
        time.sleep(WAIT_S * 2 ** (number - 1) if number else 0)
        try:
            with written_atomic(folder / one.path if one.path else folder) as write:
                came = 0
                for block in remote.read(one):
                    write(block)
                    came += len(block)
                if one.size not in (-1, came):
                    raise OSError(f"{came} of {one.size} bytes came")
            return None
        except Exception as error:  # whatever the library of a place raises
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if isinstance(error, PermissionError | FileNotFoundError | OutputError):
                break
    return reason


def _is_whole(one: RemoteFile, folder: Path, known: dict[str, RemoteFile]) -> bool:
    place = folder / one.path if one.path else folder
    return known.get(one.path) == one and place.is_file() and one.size in (-1, place.stat().st_size)


def _read_ledger(file: Path) -> dict[str, RemoteFile]:
    """Objects by path; a line that was cut ends nothing but itself."""
    objects = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            one = RemoteFile(**json.loads(line))
        except (ValueError, TypeError):
            continue
        objects[one.path] = one
    return objects


def _remove_others(folder: Path, kept: set[str]) -> None:
    for path in folder.rglob("*") if folder.is_dir() else ():
        if path.is_file() and path.relative_to(folder).as_posix() not in kept:
            remove(path)


@contextmanager
def _errors_translated(address: str) -> Iterator[None]:
    """What a library of a place raises becomes a DataError, or MissingExtra."""
    try:
        yield
    except (DataError, MissingExtra):
        raise
    except ImportError as error:
        raise DataError(f"{address} cannot be read here: {error}. Install that, as with pip.") from error
    except Exception as error:  # each place has its own
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(
            f"{address} cannot be read: {reason}. Check the address and who may read it{access_to(address)}."
        ) from error
