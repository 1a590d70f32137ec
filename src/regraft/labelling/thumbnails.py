"""Photos at the two sizes in which the page shows them: made ahead, kept within bounds on memory and disk."""

import io
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from PIL import Image

from regraft.core.files import PARTIAL
from regraft.core.runtime import num_cores
from regraft.data import decode as decoding
from regraft.data.decode import Unreadable, decode, grey_maximum
from regraft.data.grey_range import BITS, HEAD_BYTES, may_be_16_bit
from regraft.data.sources import read_bytes

EDGES = {"thumb": 384, "screen": 1600}  # pixels of the longer side
QUALITY = {"thumb": 80, "screen": 88}  # of a JPEG
MEMORY_BYTES = 96 * 2**20
DISK_BYTES = 2**30
KEPT_SHARE = 0.8  # of the bytes on disk, once there were too many
NICENESS = 10  # of the thread that works ahead: the network and the page come first
END = b"\xff\xd9"  # of a JPEG that was written whole


class Thumbnails:
    """JPEGs of a sitting's photos.

    Args:
        path_of: Returns the file of a photo.
        num_photos: Photos are 0 to `num_photos - 1`.
        folder: Where the small ones are kept for the next time; a cache that is regraft's own.
        memory_bytes: Of JPEGs kept in memory, at most.
        disk_bytes: Of JPEGs kept in the folder, at most.
    """

    def __init__(
        self,
        path_of: Callable[[int], Path],
        num_photos: int,
        folder: Path,
        *,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
    ) -> None:
        self._path_of, self._num_photos = path_of, num_photos
        self._memory = _Memory(memory_bytes)
        self._disk = _Disk(folder, disk_bytes)
        self._decoders = threading.BoundedSemaphore(num_cores())
        self._is_closed = False
        self._thread = threading.Thread(target=self._work_ahead, daemon=True, name="regraft thumbnails")

    def start(self) -> None:
        """Make thumbnails of all photos in the background."""
        self._thread.start()

    def close(self) -> None:
        """End the background work."""
        self._is_closed = True

    def get(self, photo: int, size: str) -> bytes:
        """Return a photo as a JPEG, upright, without what the camera wrote into it.

        Args:
            photo: Its index.
            size: `thumb` or `screen`.

        Raises:
            Unreadable: It is no photo, or no longer there.
        """
        if (cached := self._memory.get((photo, size))) is not None:
            return cached
        path = self._path_of(photo)
        key = _key(path) if size == "thumb" else None
        data = self._disk.get(key) if key else None
        if data is None:
            with self._decoders:
                data = jpeg_of(path, size)
            if key:
                self._disk.put(key, data)
        self._memory.put((photo, size), data)
        return data

    def _work_ahead(self) -> None:
        _be_nice()
        self._disk.measure()
        for photo in range(self._num_photos):
            if self._is_closed or self._disk.is_full:  # what nobody asked for would push out what somebody has
                return
            if not self._is_on_disk(photo):
                with suppress(Unreadable):  # which is told where it is shown
                    self.get(photo, "thumb")

    def _is_on_disk(self, photo: int) -> bool:
        key = _key(self._path_of(photo))
        return key is not None and self._disk.has(key)


class _Memory:
    """The JPEGs used last, within a bound on bytes."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._kept: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, str]) -> bytes | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[int, str], data: bytes) -> None:
        with self._lock:
            self._used += len(data) - len(self._kept.pop(key, b""))
            self._kept[key] = data
            while self._used > self._most and self._kept:
                self._used -= len(self._kept.popitem(last=False)[1])


class _Disk:
    """Small JPEGs in a folder of the cache, within a bound on bytes.

    It is a cache: what cannot be read or written is made again.

    Attributes:
        is_full: Whether something had to go since this process began.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most, self._used = folder, most, 0
        self._lock = threading.Lock()
        self.is_full = False

    def get(self, key: str) -> bytes | None:
        try:
            data = self._place(key).read_bytes()
        except OSError:
            return None
        return data if data.endswith(END) else None

    def has(self, key: str) -> bool:
        return self._place(key).is_file()

    def put(self, key: str, data: bytes) -> None:
        place = self._place(key)
        partial = place.with_name(f"{PARTIAL}{threading.get_ident():032x}")
        with suppress(OSError):  # a full disk costs time, not the sitting
            place.parent.mkdir(exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, place)
            with self._lock:
                self._used += len(data)
                if self._used > self._most:
                    self._shrink()

    def measure(self) -> None:
        """Count what earlier sittings left."""
        with self._lock:
            self._used = sum(size for _, size, _ in self._files())
            if self._used > self._most:
                self._shrink()

    def _shrink(self) -> None:
        self.is_full, self._used = True, 0
        for _, size, path in sorted(self._files(), reverse=True):  # the newest first
            if self._used + size <= KEPT_SHARE * self._most:
                self._used += size
            else:
                path.unlink(missing_ok=True)

    def _files(self) -> Collection[tuple[float, int, Path]]:
        """List (time of change, bytes, path) of what is kept."""
        files = []
        for path in self._folder.glob("*/*.jpg"):
            with suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        return files

    def _place(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.jpg"


def jpeg_of(path: Path, size: str) -> bytes:
    """Decode a photo and write it as a JPEG of one of the page's sizes.

    Args:
        path: The photo's file.
        size: `thumb` or `screen`.

    Raises:
        Unreadable: It is no photo, or damaged.
    """
    data = read_bytes(path)
    edge = EDGES[size]
    image = decode(data, at_least=edge // 2, grey_bits=_grey_bits(data))  # longer sides are twice the shorter, or less
    image.info.clear()
    image.thumbnail((edge, edge), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=QUALITY[size])
    return buffer.getvalue()


def _grey_bits(data: bytes) -> int | None:
    """Return how many bits a 16-bit grey photo uses: one of few would be nearly black."""
    maximum = grey_maximum(data) if may_be_16_bit(data[:HEAD_BYTES]) else None
    return next((bits for bits in BITS if maximum is not None and maximum < 2**bits), None)


def _key(path: Path) -> str | None:
    """Return the name under which a thumbnail is kept, another once its file or video changes; None without a file."""
    try:
        status = (path.parent if path.parent.is_file() else path).stat()
    except OSError:
        return None
    parts = (path.absolute(), status.st_size, status.st_mtime_ns, EDGES["thumb"], QUALITY["thumb"], decoding.VERSION)
    return sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).hexdigest()


def _be_nice() -> None:
    if sys.platform == "linux":  # where each thread has a niceness of its own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
