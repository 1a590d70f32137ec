"""Frozen stages run once: what they make of some augmented versions of each photo is kept, and learned from.

The version that an epoch shows is the one that it would show anyway; after so many epochs they come again. So what is
kept is a function of seed, version and photo, and a run that was cut finds the same.
"""

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from regraft.backbones.network import Normalise
from regraft.backbones.split_network import SplitNetwork
from regraft.core.errors import TrainError
from regraft.core.memory import in_pieces
from regraft.core.progress import Progress
from regraft.data.scan import Dataset
from regraft.training.batches import Augmentation, DecodedPhotos, HostMemory, Loader


@dataclass(frozen=True)
class CachedActivations:
    """Versions of the same photos, one an epoch, in turn. Their pixels are arrays `(h, w, C)` float16."""

    versions: tuple[DecodedPhotos, ...]

    @property
    def dataset(self) -> Dataset:
        """The photos."""
        return self.versions[0].dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def in_epoch(self, change: Augmentation | None, seed: int, epoch: int) -> TorchDataset[Tensor]:
        """N tensors `(C, h, w)` float16, which have been changed already."""
        return self.versions[epoch % len(self.versions)].in_epoch(None, seed, epoch)


def cache_activations(
    division: SplitNetwork, loader: Loader, num_views: int, progress: Progress, until: float = math.inf
) -> CachedActivations:
    """What the frozen stages make of the photos of a loader, as the first `num_views` epochs would show them.

    until: of `time.monotonic`, when no further version is begun that would last longer; one there is.  Raises
    TrainError where float16 cannot hold what comes out.
    """
    dataset, room, world = loader.photos.dataset, HostMemory(progress), loader.world
    versions: list[DecodedPhotos] = []
    with progress.step("run frozen stages", total=num_views * len(dataset)) as advance:
        while len(versions) < num_views:
            rows: dict[int, np.ndarray] = {}
            began = time.monotonic()
            for indices, found in _activations(division, loader, len(versions), progress):
                rows.update(zip(indices, map(room.put, found), strict=True))
                advance(len(indices))
            versions.append(DecodedPhotos(dataset, [rows[i] for i in range(len(dataset))]))
            if world.broadcast(2 * time.monotonic() - began > until):
                break
    return CachedActivations(tuple(versions))


def _activations(
    division: SplitNetwork, loader: Loader, epoch: int, progress: Progress
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Of the batches of an epoch, the photos' numbers and what the frozen stages give, `(B, h, w, C)` float16.

    Each process runs its share of every batch, and gets the others'.
    """
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
            own, size = in_pieces(size, partial(forward, batch.pixels), progress)
            rows = torch.zeros((len(indices), *own.shape[1:]), dtype=torch.float16, device=own.device)
            share = rows[world.rank :: world.size]
            share.copy_(own[: len(share)])
            world.all_reduce([rows])
            found = rows.permute(0, 2, 3, 1).cpu().contiguous().numpy()
            if not np.isfinite(found).all():
                raise TrainError(
                    f"What the frozen stages of {division.whole.reference} give is more than float16 holds, so it "
                    "cannot be kept. Leave --views out."
                )
            yield indices, found
