"""Only files that regraft made itself, and nobody has changed since, are replaced or removed; all others stay.

A folder that regraft writes to has a marker, `.regraft`, with the SHA-256 of every file that regraft wrote there. A
file that is sent or moved on its own, such as a report or a program, bears a seal in its last line instead: the SHA-256
of all that is above it. Whatever has neither is the user's.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from regraft.core.errors import OutputError
from regraft.core.files import (
    MARKER,
    is_partial,
    make_folder,
    marker_bytes,
    published,
    read_marker,
    remove,
    sha256_bytes,
    sha256_file,
    write_atomic,
)

Hashes = list[str] | None  # of a file's contents that are regraft's; None for any content
SEALS = {".html": "<!-- regraft-seal: {} -->\n", ".py": "# regraft-seal: {}\n"}
_SEAL = re.compile(rb"(?:<!--|#) regraft-seal: ([0-9a-f]{64})(?: -->)?\n\Z")
_LEVELS = 6  # folders above a file whose markers may name it


def seal_text(text: str, suffix: str) -> bytes:
    """Write a page or a program as UTF-8, with a seal as its last line, by which `foreign` knows it again.

    Args:
        text: Its content.
        suffix: ".html" or ".py": which of `SEALS` says how a comment is written.
    """
    data = (text if text.endswith("\n") else text + "\n").encode(errors="backslashreplace")
    return data + SEALS[suffix].format(sha256_bytes(data)).encode()


def is_sealed(data: bytes) -> bool:
    """Return whether a file's content is still as `seal_text` wrote it."""
    seal = _SEAL.search(data)
    return seal is not None and seal[1].decode() == sha256_bytes(data[: seal.start()])


def foreign(path: Path) -> Path | None:
    """Find what regraft did not make, or what was changed since.

    Args:
        path: A file, or a folder that is searched with all that is below it. It need not exist.

    Returns:
        The first file or folder that is the user's, or that cannot be looked into; None where there is none.
    """
    if not os.path.lexists(path) or is_partial(path):
        return None
    try:
        if path.is_dir() and not path.is_symlink():
            return next(filter(None, map(foreign, _content(path))), None)
        return None if _is_made(path) else path
    except FileNotFoundError:
        return None
    except OSError:  # what cannot be looked into is not known to be regraft's
        return path


def check(folder: Path, names: Iterable[str]) -> None:
    """Make sure that files and folders of some names in a folder may be replaced and removed. Changes nothing.

    Args:
        folder: Where they are.
        names: Of files and folders, which need not exist.

    Raises:
        OutputError: One of them, or the folder's marker, is not regraft's; the first is named.
    """
    _refuse_foreign_marker(folder)
    for name in names:
        refuse_foreign(folder / name)


def refuse_foreign(path: Path) -> None:
    """Make sure that one file or folder may be replaced and removed, as `check` does for several.

    Raises:
        OutputError: It, or something in it, is not as regraft wrote it.
    """
    if reason := foreign(path):
        raise OutputError(
            f"{reason} is there already, and is not as regraft wrote it: it stays. "
            "Move it away, or choose another place with --out."
        )


def record(folder: Path, files: Mapping[str, Hashes]) -> None:
    """Note in a folder's marker what regraft is about to write there, or has written.

    Args:
        folder: Made where it is missing.
        files: SHA-256 of each file's possible contents, or None for any content; by path from the folder, with "/"
            between names.

    Raises:
        OutputError: The marker cannot be written, or is a file of somebody else's.
    """
    _refuse_foreign_marker(make_folder(folder, kind="output folder"))
    known = {name: hashes for name, hashes in _recorded(folder).items() if os.path.lexists(folder / name)}
    if read_marker(folder) is None or known != {**known, **files}:
        write_atomic(folder / MARKER, marker_bytes(files={**known, **files}))


def write_output(path: Path, data: bytes) -> None:
    """Write a file where the user chose, whole or not at all, and note that it is regraft's.

    Raises:
        OutputError: It cannot be written, or something else is there, which stays.
    """
    refuse_foreign(path)
    if not is_sealed(data):
        record(path.parent, {path.name: _now_and_before(sha256_bytes(data), path)})
    write_atomic(path, data)


def put_file(new: Path, path: Path, sha256: str) -> None:
    """Move a whole file, which is on the same disk, to where the user chose, and note that it is regraft's.

    Args:
        new: The file.
        path: Where it is to be.
        sha256: Hash of its content.

    Raises:
        OutputError: Something else is there, which stays.
        OSError: It cannot be moved.
    """
    refuse_foreign(path)
    record(path.parent, {path.name: _now_and_before(sha256, path)})
    os.replace(new, path)


@contextmanager
def output_folder(final: Path, *, any_content: bool = False) -> Iterator[Path]:
    """Publish a folder that the user chose, as `files.published` does: one that regraft wrote is replaced, no other.

    Args:
        final: The folder to be.
        any_content: Whether its files stay regraft's when they are changed, as those of a checkpoint do by damage.

    Yields:
        A temporary folder to write to, which becomes `final` when the block ends well.

    Raises:
        OutputError: It cannot be written, or what is there is not regraft's and stays.
    """
    with published(final, refuse_foreign) as partial:
        yield partial
        new = [path for path in partial.rglob("*") if path.is_file()]
        names = [path.relative_to(partial).as_posix() for path in new]
        hashes = (
            None if any_content else _now_and_before(sha256_file(path), final / name)
            for path, name in zip(new, names, strict=True)
        )
        record(final.parent, {f"{final.name}/{name}": one for name, one in zip(names, hashes, strict=True)})


def remove_made(path: Path) -> None:
    """Remove a file, or what a folder holds, as far as it is regraft's; everything else stays where it is."""
    with suppress(OSError):
        if is_partial(path):
            remove(path)
        elif path.is_dir() and not path.is_symlink():
            for one in _content(path):
                remove_made(one)
            if not any(_content(path)):
                (path / MARKER).unlink(missing_ok=True)
                path.rmdir()
        elif _is_made(path):
            path.unlink()


def _content(folder: Path) -> list[Path]:
    """List what is in a folder, in order of names, without its marker."""
    return sorted(one for one in folder.iterdir() if one.name != MARKER or read_marker(folder) is None)


def _is_made(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if path.suffix in SEALS and is_sealed(path.read_bytes()):
        return True
    for folder in path.parents[:_LEVELS]:
        known, name = _recorded(folder), path.relative_to(folder).as_posix()
        if name in known:
            hashes = known[name]
            return hashes is None or sha256_file(path) in hashes
    return False


def _recorded(folder: Path) -> dict[str, Hashes]:
    """Files that a folder's marker names; none where there is no marker."""
    files = (read_marker(folder) or {}).get("files")
    if not isinstance(files, dict):
        return {}
    return {str(name): one for name, one in files.items() if one is None or isinstance(one, list)}


def _now_and_before(new: str, path: Path) -> list[str]:
    """Hashes of a file that is about to be written: a kill leaves the new content or the old, both regraft's."""
    return [new, sha256_file(path)] if _is_made(path) else [new]


def _refuse_foreign_marker(folder: Path) -> None:
    path = folder / MARKER
    if os.path.lexists(path) and read_marker(folder) is None:
        raise OutputError(f"{path} is not regraft's, which keeps a file of that name there. Choose another --out.")
