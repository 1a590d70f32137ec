"""The model that a server answers with: a private copy, so that all workers have it whatever becomes of the folder."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft.bundle.bundle import Bundle
from regraft.bundle.format import FILES, MANIFEST
from regraft.core.errors import ServeError

PREFIX = "regraft-model-"
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # where nothing else can be written, a container has this


def load_options_of(bundle: Bundle) -> dict[str, Any]:
    """Return further arguments of `load` that make the same bundle of its folder."""
    return {"precision": bundle.wanted_precision, "max_error": bundle.max_error, "coverage": bundle.coverage}


class SealedModel:
    """A copy of a loaded bundle that nobody else writes to. Closing it removes the copy.

    Attributes:
        folder: Of the copy.
        sha256: Identity of the model: what is loaded from the copy has to have it.
        load_options: Further arguments of `load` that make the same of the copy.

    Raises:
        BundleError: The bundle's folder was replaced since it was loaded.
        ServeError: There is no room for a copy.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.sha256, self.load_options = bundle.sha256, load_options_of(bundle)
        self._home = _private_folder()
        self._lock = FileLock(self._home / "lock")
        self.folder = self._home / "bundle"
        try:
            self._lock.acquire(timeout=0)
            self.folder.mkdir()
            for name in (MANIFEST, *FILES):
                _write(self.folder / name, bundle.read(name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy."""
        self._lock.release()
        shutil.rmtree(self._home, ignore_errors=True)


def _private_folder() -> Path:
    """Make a folder for this user alone; remove what servers left beside it that were killed."""
    for parent in (None, IN_MEMORY):
        with suppress(OSError):
            home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            _sweep(home.parent)
            return home
    raise ServeError("There is no folder for a copy of the model. Set TMPDIR to one that can be written.")


def _sweep(parent: Path) -> None:
    """Remove copies that no server holds any more."""
    for home in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):  # another user's, or a server's that runs
            if (home / "bundle" / MANIFEST).exists():
                with FileLock(home / "lock", timeout=0):
                    shutil.rmtree(home, ignore_errors=True)


def _write(target: Path, data: bytes) -> None:
    """Write a file; raise ServeError where it cannot be written."""
    try:
        target.write_bytes(data)
    except OSError as error:
        raise ServeError(
            f"Cannot keep a copy of the model in {target.parent}: {error.strerror}. Make room or set TMPDIR."
        ) from error
