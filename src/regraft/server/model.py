"""The model that a server answers with: a private copy, so that all workers have it whatever becomes of the folder."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regraft.deliver.bundle import FILES, MANIFEST, Bundle, load
from regraft.ground.errors import BundleError, ServeError
from regraft.ground.files import sha256_json

PREFIX = "regraft-model-"
IN_MEMORY = Path("/dev/shm")  # noqa: S108  # where nothing else can be written, a container has this


def sha256_of(bundle: Bundle) -> str:
    """The model's identity: the hash of its manifest, which holds the hashes of all other files."""
    return sha256_json(bundle.manifest)


def promises_of(bundle: Bundle) -> dict[str, Any]:
    """Further arguments of `load` that make the same of its folder."""
    return {"precision": bundle.wanted_precision, "max_error": bundle.max_error, "coverage": bundle.coverage}


def load_as(folder: Path, sha256: str, promises: dict[str, Any]) -> Bundle:
    """A bundle, if it is the one that is wanted.

    Raises:
        BundleError: It is another, or cannot be loaded.
    """
    bundle = load(folder, **promises)
    if sha256_of(bundle) != sha256:
        raise BundleError(f"{folder} holds another model than the one that was loaded before. Load it again.")
    return bundle


class SealedModel:
    """A copy of a loaded bundle that nobody else writes to. Closing it removes the copy.

    Attributes:
        bundle: The model, loaded from the copy.
        sha256: Its identity.

    Raises:
        BundleError: The folder was replaced since the bundle was loaded.
        ServeError: There is no room for a copy.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.sha256, self.promises = sha256_of(bundle), promises_of(bundle)
        self._home = _private_folder()
        self._lock = FileLock(self._home / "lock")
        self.folder = self._home / "bundle"
        try:
            self._lock.acquire(timeout=0)
            self.folder.mkdir()
            for name in (MANIFEST, *FILES):
                _copy(bundle.folder / name, self.folder / name)
            self.bundle = load_as(self.folder, self.sha256, self.promises)
        except BundleError as error:
            self.close()
            raise BundleError(f"{bundle.folder} was replaced since it was loaded. Load it again.") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the copy."""
        self._lock.release()
        shutil.rmtree(self._home, ignore_errors=True)


def _private_folder() -> Path:
    """For this user alone. What servers left there that were killed is removed."""
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


def _copy(source: Path, target: Path) -> None:
    """Raises BundleError where it cannot be read, ServeError where it cannot be written."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise BundleError(f"{source} cannot be read: {error.strerror}.") from error
    try:
        target.write_bytes(data)
    except OSError as error:
        raise ServeError(
            f"Cannot keep a copy of the model in {target.parent}: {error.strerror}. Make room or set TMPDIR."
        ) from error
