"""Photos to batches: decoded once, kept in memory, augmented at random as a function of seed, epoch and photo alone.

So neither the number of workers nor that of processes changes a run, and one that was cut continues as if it had not
been.
"""

import hashlib
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regraft.core.errors import DataError, OutputError
from regraft.core.files import writable_cache
from regraft.core.progress import Progress
from regraft.core.runtime import num_cores
from regraft.data.decode import Unreadable, decode
from regraft.data.scan import Dataset, map_photos
from regraft.data.transforms import FILTERS, Preprocessing, photo_to_input
from regraft.training.augmentation import Augmentation
from regraft.training.distributed import ProcessGroup

STORED_SIDE = 2  # times the size that is resized to: of larger photos, crops would show no more
MEMORY_SHARE = 0.4  # of the free memory that decoded photos may take; the rest goes to a memory-mapped file
CHUNK_BYTES = 256 * 2**20
SHM_PER_BATCH = 4  # batches on their way from each worker


class Decoded(Protocol):
    """What batches are made of: a data set, and what the network gets of each photo in an epoch."""

    @property
    def dataset(self) -> Dataset:
        """The photos."""
        ...

    def __len__(self) -> int:
        """Return N, the number of photos."""
        ...

    def in_epoch(self, change: Augmentation | None, seed: int, epoch: int) -> TorchDataset[Tensor]:
        """Return N tensors, each augmented as the epoch wants it."""
        ...


@dataclass(frozen=True)
class DecodedPhotos:
    """A data set decoded.

    Attributes:
        dataset: N photos.
        pixels: N arrays `(H, W, 3)` uint8, each of its own size.
    """

    dataset: Dataset
    pixels: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.pixels)

    def in_epoch(self, change: Augmentation | None, seed: int, epoch: int) -> TorchDataset[Tensor]:
        """Return N tensors `(3, H, W)` uint8.

        Args:
            change: The augmentation; None for none.
            seed: Of the augmentation.
            epoch: On which the augmentation depends too.
        """
        return _Changed(self, change, seed, epoch)


@dataclass(frozen=True)
class Batch:
    """This process's share of a batch.

    Attributes:
        pixels: `(B, 3, H, W)` uint8, or `(B, C, h, w)` float16, what frozen stages made of them.
        labels: `(B,)` int64.
        weights: `(B,)` float32, how much each photo counts, 0 for a stand-in.
        total: Sum of the weights of the whole batch, over all processes.
        parts: Numbers of consecutive photos that belong together, for BatchNorm's sake.
    """

    pixels: Tensor
    labels: Tensor
    weights: Tensor
    total: float
    parts: tuple[int, ...]

    def split(self, size: int, least: int = 1) -> Iterator["Batch"]:
        """Yield microbatches, none across two parts; `total` stays that of the whole.

        Args:
            size: Photos that a microbatch has at most.
            least: Photos that none has less of, where that can be.
        """
        sizes = [len(piece) for part in self.parts for piece in evenly(range(part), size, least)]
        pieces = (torch.split(whole, sizes) for whole in (self.pixels, self.labels, self.weights))
        for pixels, labels, weights in zip(*pieces, strict=True):
            yield Batch(pixels, labels, weights, self.total, (len(labels),))


def decode_for_training(dataset: Dataset, preprocessing: Preprocessing, progress: Progress) -> DecodedPhotos:
    """Decode photos for training: whole, at most STORED_SIDE times as large as the network's transform resizes them to.

    Raises:
        DataError: A photo cannot be used any more.
        OutputError: There is no room for the decoded photos.
    """
    return _decoded(dataset, partial(_large_enough, preprocessing), "decode training photos", progress)


def decode_for_validation(dataset: Dataset, preprocessing: Preprocessing, progress: Progress) -> DecodedPhotos:
    """Decode photos exactly as the bundle's graph will get them: `(H, W, 3)` of the network's input size.

    Raises:
        DataError: A photo cannot be used any more.
        OutputError: There is no room for the decoded photos.
    """
    return _decoded(dataset, partial(_as_input, preprocessing), "decode photos to judge", progress)


def epoch_order(hashes: Sequence[str], seed: int, epoch: int) -> list[int]:
    """Return the indices of N photos in the order of an epoch, drawn from their contents.

    Args:
        hashes: Of the N photos' contents.
        seed: Of the run.
        epoch: On which the order depends too.
    """
    return sorted(range(len(hashes)), key=lambda i: (_draw(seed, epoch, hashes[i], "order"), i))


def cut_into_batches(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut indices into batches. A last one of a single photo joins the one before: BatchNorm needs two.

    Args:
        indices: Of the photos, in order.
        batch_size: Photos that a batch has.
    """
    batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()
        batches[-1] += alone
    return batches


def evenly(indices: Sequence[int], size: int, least: int = 1) -> list[Sequence[int]]:
    """Cut indices into consecutive parts of at most `size`, as equal as can be.

    None has less than `least` indices where there are so many.
    """
    count = max(1, min(math.ceil(len(indices) / size), len(indices) // least))
    ends = [len(indices) * number // count for number in range(count + 1)]
    return [indices[start:end] for start, end in pairwise(ends)]


@dataclass(frozen=True)
class Loader:
    """Batches of one set of photos for this process.

    Attributes:
        photos: What batches are made of.
        batch_size: Photos of a batch, over all processes.
        seed: Of order and augmentation.
        world: The processes that train together.
        change: The augmentation, None for photos that the network is evaluated on.
        weights: `(C,)`, how much each class counts; None for all alike.
        ghost_size: Photos that must not be divided among processes; 0 where it does not matter.
        num_workers: Processes that augment photos ahead of the network; 0 for none.
        small_change: The same to smaller photos; None where the network takes no others.
        small_epochs: How many epochs, the first ones, have smaller photos.
    """

    photos: Decoded
    batch_size: int
    seed: int
    world: ProcessGroup
    change: Augmentation | None = None
    weights: tuple[float, ...] | None = None
    ghost_size: int = 0
    num_workers: int = 0
    small_change: Augmentation | None = None
    small_epochs: int = 0

    def batches_of(self, epoch: int) -> list[list[int]]:
        """Return the indices of the photos of each batch of an epoch, over all processes."""
        hashes = self.photos.dataset.hashes
        indices = epoch_order(hashes, self.seed, epoch) if self.change else range(len(self.photos))
        return cut_into_batches(indices, self.batch_size)

    def load(self, epoch: int, first: int = 0) -> Generator[Batch]:
        """Yield this process's share of an epoch's batches, from the one numbered `first`."""
        batches = self.batches_of(epoch)[first:]
        shares = [self._share(indices) for indices in batches]
        change = self.small_change if epoch < self.small_epochs else self.change
        loader = DataLoader(
            self.photos.in_epoch(change, self.seed, epoch),
            batch_sampler=[[i for part in share for i in part] for share in shares],
            num_workers=self.num_workers,
            collate_fn=torch.stack,
            worker_init_fn=_begin_worker,
            pin_memory=self.world.is_gpu,
        )
        for indices, share, pixels in zip(batches, shares, loader, strict=True):
            yield self._batch(indices, share, pixels)

    def _share(self, indices: list[int]) -> list[Sequence[int]]:
        """Return this process's parts of a batch.

        Where there are more processes than parts, the batch's first photos stand in.
        """
        rank, size = self.world.rank, self.world.size
        if self.ghost_size:
            return evenly(indices, self.ghost_size, least=2)[rank::size] or [indices[:2]]
        return [indices[rank::size] or indices[:1]]

    def _batch(self, indices: list[int], share: list[Sequence[int]], pixels: Tensor) -> Batch:
        labels = torch.from_numpy(self.photos.dataset.labels)
        per_class = torch.tensor(self.weights or (1.0,) * len(self.photos.dataset.classes))
        rank_indices = [i for part in share for i in part]
        num_parts = len(evenly(indices, self.ghost_size, least=2)) if self.ghost_size else len(indices)
        weights = torch.zeros(len(rank_indices)) if num_parts <= self.world.rank else per_class[labels[rank_indices]]
        total = float(per_class[labels[indices]].double().sum())
        to = partial(Tensor.to, device=self.world.device, non_blocking=True)
        pixels = pixels.to(memory_format=torch.channels_last)
        return Batch(to(pixels), to(labels[rank_indices]), to(weights), total, tuple(map(len, share)))


def choose_workers(wanted: int, batch: Sequence[int], world: ProcessGroup, progress: Progress) -> int:
    """Choose how many processes augment photos.

    On a processor the network has the cores' full attention, and a worker would only take one away. For a GPU, as many
    as there are cores, if /dev/shm, through which batches travel, holds what is on its way.

    Args:
        wanted: How many; -1 to decide.
        batch: Shape of one batch of bytes.
        world: The processes that train together.
        progress: Is told what was chosen.
    """
    if wanted < 0:
        wanted = min(8, num_cores() - 1) if world.is_gpu else 0
    if wanted == 0:
        return 0
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108
    needed = SHM_PER_BATCH * int(np.prod(batch))
    chosen = wanted if free is None else min(wanted, free // needed)
    room = "" if free is None else f" (/dev/shm has {free / 2**20:.0f} MB free, each needs {needed / 2**20:.0f} MB)"
    progress.say(f"workers: {chosen} of {wanted} wanted{room}")
    return chosen


def _begin_worker(_: int) -> None:
    """Ignore signals that reach the whole group of processes, as that of Ctrl-C does.

    They are for the main process, which finishes its step with the workers' help.

    Errors reach the main process through the loader; the hook is only for what multiprocessing prints when the other
    end has gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = lambda *_: None


class _Changed(TorchDataset[Tensor]):
    """Photos of one epoch as tensors `(3, H, W)` uint8."""

    def __init__(self, photos: DecodedPhotos, change: Augmentation | None, seed: int, epoch: int) -> None:
        self._photos, self._change, self._seed, self._epoch = photos, change, seed, epoch

    def __getitem__(self, index: int) -> Tensor:
        pixels = torch.from_numpy(self._photos.pixels[index]).permute(2, 0, 1)
        if self._change is None:
            return pixels
        content = self._photos.dataset.hashes[index]
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: it also asks for a traceback, to seed a GPU by when one is used.
            torch.default_generator.manual_seed(int(_draw(self._seed, self._epoch, content, "change")[:15], 16))
            return self._change(pixels)


def _draw(seed: int, epoch: int, content: str, what: str) -> str:
    return hashlib.sha256(f"{what} {seed} {epoch} {content}".encode()).hexdigest()


def _decoded(dataset: Dataset, convert: Callable[[bytes], np.ndarray], name: str, progress: Progress) -> DecodedPhotos:
    room = HostMemory(progress)

    def read(index: int) -> np.ndarray:
        try:
            return room.put(convert(dataset.read(index)))
        except Unreadable as error:
            path = dataset.root / dataset.paths[index]
            raise DataError(f"{path} cannot be used any more: {error}. Run the command again.") from error

    order = sorted(range(len(dataset)), key=dataset.paths.__getitem__)  # as they lie in archives
    with progress.step(name, total=len(dataset)) as advance:
        pixels = dict(zip(order, map_photos(lambda k: read(order[k]), len(order), advance), strict=True))
    return DecodedPhotos(dataset, [pixels[i] for i in range(len(dataset))])


def _large_enough(preprocessing: Preprocessing, data: bytes) -> np.ndarray:
    image = decode(data, max(preprocessing.resize), preprocessing.grey_bits)
    which = max if preprocessing.crop_mode == "border" else min
    side, limit = which(image.size), STORED_SIDE * max(preprocessing.resize)
    if side > limit:
        width, height = (max(1, round(one * limit / side)) for one in image.size)
        image = image.resize((width, height), FILTERS[preprocessing.interpolation])
    return np.array(image)


def _as_input(preprocessing: Preprocessing, data: bytes) -> np.ndarray:
    return photo_to_input(data, preprocessing).copy()  # torch wants memory that it may write to


class HostMemory:
    """Where decoded photos stay: in memory while it lasts, then in memory-mapped files without a name."""

    def __init__(self, progress: Progress) -> None:
        self._left = int(MEMORY_SHARE * _free_memory())
        self._progress = progress
        self._chunk = np.empty(0, np.uint8)
        self._used = 0
        self._lock = threading.Lock()

    def put(self, pixels: np.ndarray) -> np.ndarray:
        """Return the same pixels at the place where they stay.

        Raises:
            OutputError: Memory is used up, and no file can be made for them.
        """
        with self._lock:
            self._left -= pixels.nbytes
            if self._left > 0:
                return pixels
            place = self._reserve(pixels.nbytes).view(pixels.dtype).reshape(pixels.shape)
        place[...] = pixels
        return place

    def _reserve(self, num_bytes: int) -> np.ndarray:
        if self._used + num_bytes > len(self._chunk):
            self._chunk, self._used = self._mapped(max(num_bytes, CHUNK_BYTES)), 0
        self._used += num_bytes
        return self._chunk[self._used - num_bytes : self._used]

    def _mapped(self, num_bytes: int) -> np.ndarray:
        folder = writable_cache("photos", self._progress)
        self._progress.say(f"decoded photos outgrow the memory: {num_bytes / 2**20:.0f} MB more in {folder}")
        try:
            with tempfile.TemporaryFile(dir=folder) as file:  # without a name: gone when nothing maps it
                os.posix_fallocate(file.fileno(), 0, num_bytes)
                return np.memmap(file, np.uint8, "r+", shape=(num_bytes,))
        except OSError as error:
            raise OutputError(
                f"Cannot keep {num_bytes / 2**20:.0f} MB of decoded photos in {folder}: {error.strerror}. "
                "Make room, or choose another place with REGRAFT_CACHE."
            ) from error


def _free_memory() -> int:
    """Return the bytes that can be had without swapping."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 2**30
