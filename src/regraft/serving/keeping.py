"""Photos that a server keeps for its owner to label: unsure ones, new ones, and a random sample; off unless asked for.

A photo's name is its content's SHA-256, and nothing that a client says is part of it. Once the bytes are used up
nothing more is kept, and nothing is ever removed: that is the owner's to do, at any time.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from regraft.core.errors import OutputError, RegraftError
from regraft.core.files import exclusive, make_folder, sha256_bytes, sweep, write_atomic
from regraft.data.file_endings import ending_of
from regraft.data.units import share_at
from regraft.serving.messages import WorkerAnswer

GIGA = 2**30
KINDS = ("unsure", "new", "sample")
SAMPLED = 0.01  # share of all photos
BLOCK = 4096  # bytes that a file takes at least
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keep:
    """What a server is to keep.

    Attributes:
        folder: Where photos are put, in `unsure/`, `new/` and `sample/`.
        max_bytes: Of all files in the folder, photos of earlier servers included; each of the three has a third.
    """

    folder: Path
    max_bytes: int = GIGA


@dataclass
class Keeper:
    """A folder that has room for so many bytes.

    Attributes:
        keep: What is to be kept.
        used: Bytes used, by kind of photo.
    """

    keep: Keep
    used: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _warned: set[str] = field(default_factory=set)

    async def consider(self, photos: Sequence[bytes], answers: Sequence[WorkerAnswer], least_sure: float) -> None:
        """Keep those photos of a request that are worth it. Whatever goes wrong, the request is answered.

        Args:
            photos: Bytes of their files.
            answers: What is said of each.
            least_sure: Probability below which an answer is unsure.
        """
        wanted = [
            (data, kind) for data, one in zip(photos, answers, strict=True) if (kind := _kind(data, one, least_sure))
        ]
        if wanted:
            await asyncio.to_thread(self._store_all, wanted)

    def _store_all(self, wanted: Sequence[tuple[bytes, str]]) -> None:
        for data, kind in wanted:
            try:
                self.store(data, kind)
            except (OSError, RegraftError) as error:
                self._warn_once("error", f"a photo could not be kept: {error}")

    def store(self, data: bytes, kind: str) -> Path | None:
        """Keep a photo, whole or not at all.

        Args:
            data: Of its file.
            kind: One of `KINDS`.

        Returns:
            Its file; None where there is no room for it, or it is kept already.

        Raises:
            OutputError: It cannot be written.
        """
        name = f"{sha256_bytes(data)}{ending_of(data)}"
        with self._lock:
            if any(os.path.lexists(self.keep.folder / one / name) for one in KINDS):
                return None
            taken = max(BLOCK, len(data))
            if self.used[kind] + taken > self.keep.max_bytes // len(KINDS):
                self._warn_once(
                    kind, f"no more {kind} photos are kept: their part of the room in {self.keep.folder} is used"
                )
                return None
            self.used[kind] += taken
            try:
                write_atomic(self.keep.folder / kind / name, data)
            except BaseException:
                self.used[kind] -= taken
                raise
            return self.keep.folder / kind / name

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            log.warning(message)


@contextmanager
def keeping(keep: Keep | None) -> Iterator[Keeper | None]:
    """Hold a folder for this server until the block ends.

    Args:
        keep: What is to be kept; None for nothing.

    Yields:
        What keeps it.

    Raises:
        OutputError: The folder cannot be written, another server uses it, or a link leads out of it.
    """
    if keep is None:
        yield None
        return
    is_new = not keep.folder.exists()
    make_folder(keep.folder, kind="folder for photos")
    if is_new:
        keep.folder.chmod(0o700)  # photos of others are nobody else's business
    with exclusive(keep.folder):
        for kind in KINDS:
            place = keep.folder / kind
            if place.is_symlink():
                raise OutputError(f"{place} is a link. Expected a folder: remove the link, or choose another --keep.")
            make_folder(place, kind="folder for photos")
            sweep(place)
        yield Keeper(keep, {kind: _bytes_in(keep.folder / kind) for kind in KINDS})


def _kind(data: bytes, answer: WorkerAnswer, least_sure: float) -> str | None:
    """Return why a photo is kept; None for one that is not. Whether it is drawn depends on its content alone."""
    if "error" in answer:
        return None
    if answer["looks_new"]:
        return "new"
    if answer["unsure"] or answer["probability"] < least_sure:
        return "unsure"
    return "sample" if share_at(0, sha256_bytes(data)) < SAMPLED else None


def _bytes_in(folder: Path) -> int:
    """Count what the files below a folder take."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                total += max(BLOCK, path.lstat().st_size)
    return total
