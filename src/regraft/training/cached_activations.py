"""Frozen stages run once: what they make of some augmented versions of each photo is kept, and learned from.

On a processor they run in the engine that extracts features, on all cores; on a GPU in torch.

An epoch shows the version that it would show anyway; after as many epochs as there are versions they come again. So
what is kept is a function of seed, version and photo, and a run that was cut finds the same.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from threading import Lock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from regraft.backbones.engine import Engine
from regraft.backbones.network import Normalise
from regraft.backbones.split_network import SplitNetwork, front_engine
from regraft.core.errors import TrainError
from regraft.core.memory import in_pieces
from regraft.core.progress import Progress
from regraft.data.scan import Dataset, map_photos
from regraft.training.augmentation import Augmentation
from regraft.training.batches import DecodedPhotos, HostMemory, Loader


@dataclass(frozen=True)
class CachedActivations:
    """Versions of the same photos, one an epoch, in turn.

    Attributes:
        versions: Their pixels are arrays `(h, w, C)` float16, what the frozen stages gave.
    """

    versions: tuple[DecodedPhotos, ...]

    @property
    def dataset(self) -> Dataset:
        """The photos."""
        return self.versions[0].dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def in_epoch(self, change: Augmentation | None, seed: int, epoch: int) -> TorchDataset[Tensor]:
        """Return N tensors `(C, h, w)` float16, which have been augmented already."""
        return self.versions[epoch % len(self.versions)].in_epoch(None, seed, epoch)


def cache_activations(
    division: SplitNetwork, loader: Loader, num_views: int, progress: Progress, until: float = math.inf
) -> CachedActivations:
    """Run the frozen stages on the photos of a loader, as the first `num_views` epochs would show them.

    Args:
        division: The network in two.
        loader: The photos and their augmentation.
        num_views: Versions of each photo.
        progress: Is told what is done.
        until: Of `time.monotonic`, seconds: no further version is begun that would last longer. There is always one.

    Raises:
        TrainError: float16 cannot hold what comes out.
    """
    dataset, room, world = loader.photos.dataset, HostMemory(progress), loader.world
    engine = None if world.is_gpu else front_engine(division)
    versions: list[DecodedPhotos] = []
    with progress.step("run frozen stages", total=num_views * len(dataset)) as advance:
        while len(versions) < num_views:
            rows: dict[int, np.ndarray] = {}
            began = time.monotonic()
            runs = _by_torch(division, loader, len(versions), progress)
            if engine is not None:
                runs = _by_engine(engine, loader, len(versions))
            for indices, maps in runs:
                if not np.isfinite(maps).all():
                    raise TrainError(
                        f"What the frozen stages of {division.whole.reference} give is more than float16 holds, so it "
                        "cannot be kept. Leave --views out."
                    )
                rows.update(zip(indices, map(room.put, maps), strict=True))
                advance(len(indices))
            versions.append(DecodedPhotos(dataset, [rows[i] for i in range(len(dataset))]))
            if world.broadcast(2 * time.monotonic() - began > until):
                break
    return CachedActivations(tuple(versions))


def _by_engine(engine: Engine, loader: Loader, epoch: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield, for the batches of an epoch, the photos' indices and what the frozen stages give, `(B, h, w, C)` float16.

    Each process runs its share of every batch, and gets the others'. One thread at a time changes a photo, since
    randomness is torch's, while the others run theirs through the engine.
    """
    world, batches = loader.world, loader.batches_of(epoch)
    shares = [indices[world.rank :: world.size] for indices in batches]
    numbers = [i for share in shares for i in share]
    photos = loader.photos.in_epoch(loader.change, loader.seed, epoch)
    one_at_a_time = Lock()

    def run(place: int) -> np.ndarray:
        with one_at_a_time:
            pixels = photos[numbers[place]]
        maps = engine(pixels.permute(1, 2, 0).numpy()[np.newaxis])["features"]
        with np.errstate(over="ignore"):  # what float16 does not hold is noticed where it is kept
            return maps.astype(np.float16)

    results = map_photos(run, len(numbers), lambda _: None)
    for indices, share in zip(batches, shares, strict=True):
        rows = list(islice(results, len(share)))
        yield indices, np.concatenate(rows) if world.size == 1 else _gathered(rows, indices, loader)


def _gathered(rows: list[np.ndarray], indices: list[int], loader: Loader) -> np.ndarray:
    """Return `(B, h, w, C)` float16 of a batch, of which each process has `rows (1, h, w, C)` for its share."""
    world = loader.world
    shape = world.broadcast(rows[0].shape[1:] if rows else ())  # of the main process, which has one of every batch
    whole = torch.zeros((len(indices), *shape), dtype=torch.float16)
    for place, row in zip(range(world.rank, len(indices), world.size), rows, strict=True):
        whole[place] = torch.from_numpy(row[0])
    world.all_reduce([whole])
    return np.asarray(whole.numpy())


def _by_torch(
    division: SplitNetwork, loader: Loader, epoch: int, progress: Progress
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the same as `_by_engine`, computed in torch on the process group's device."""
    loader, world = replace(loader, ghost_size=0), loader.world
    module = division.whole.module.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normalise(division.whole.preprocessing).to(world.device)
    assert not module.training

    def forward(pixels: Tensor, size: int) -> Tensor:
        with torch.inference_mode(), world.autocast():
            parts = (
                normalise(part).contiguous(memory_format=torch.channels_last) for part in torch.split(pixels, size)
            )
            return torch.cat([division.before(part) for part in parts])

    size = loader.batch_size
    with closing(loader.load(epoch)) as batches:
        for indices, batch in zip(loader.batches_of(epoch), batches, strict=True):
            activations, size = in_pieces(size, partial(forward, batch.pixels), progress)
            rows = torch.zeros((len(indices), *activations.shape[1:]), dtype=torch.float16, device=activations.device)
            share = rows[world.rank :: world.size]
            share.copy_(activations[: len(share)])
            world.all_reduce([rows])
            yield indices, rows.permute(0, 2, 3, 1).cpu().contiguous().numpy()
