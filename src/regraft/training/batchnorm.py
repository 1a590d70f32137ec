"""BatchNorm whose statistics do not depend on how many processes share a batch.

A batch is cut into ghost batches of a fixed size: each is normalised by its own statistics, and goes through one
process whole. The running statistics then move once a step, by the mean over all ghost batches, whichever process saw
them.

References:
    E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better", NeurIPS 2017.
"""

import copy

import torch
from torch import Tensor, nn

from regraft.training.distributed import ProcessGroup

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


class RunningStatistics:
    """Means and variances, through one step, of the BatchNorm layers that are in training mode."""

    def __init__(self, network: nn.Module) -> None:
        self._network, self._now = network, _moving(network)
        self._before = [buffer.clone() for buffer in self._now]
        self.begin()

    @property
    def least(self) -> int:
        """How many photos a ghost batch needs: one alone may have nothing to be normalised by."""
        return 2 if self._now else 1

    def begin(self) -> None:
        """Begin the step, or begin it anew."""
        self._sums = [torch.zeros_like(buffer) for buffer in self._now]
        self._n = 0

    def rewind(self) -> None:
        """Go back, before each ghost batch, to the statistics before the step: as if it were the step's first."""
        for now, before in zip(self._now, self._before, strict=True):
            now.copy_(before)

    def twins(self, count: int) -> list[nn.Module]:
        """Return networks with the same weights, each with statistics of its own, as they were before the step.

        Ghost batches go through them at the same time. The first is the network itself; all are, where none learns.
        """
        if not self._now:
            return [self._network] * count
        self.rewind()
        weights = {id(weight): weight for weight in self._network.parameters()}
        return [self._network, *(copy.deepcopy(self._network, dict(weights)) for _ in range(1, count))]

    def add(self, n: int, twin: nn.Module | None = None) -> None:
        """Add the statistics after a ghost batch of n photos, 0 for a stand-in, that went through a twin."""
        for total, now in zip(self._sums, self._now if twin is None else _moving(twin), strict=True):
            total.add_(now, alpha=n)
        self._n += n

    def settle(self, world: ProcessGroup) -> None:
        """Set the statistics, at the step's end, to the mean over all ghost batches of all processes."""
        if not self._now:
            return
        world.all_reduce(self._sums)
        (n,) = world.total([self._n])
        for now, total in zip(self._now, self._sums, strict=True):
            now.copy_(total / n)


def _moving(network: nn.Module) -> list[Tensor]:
    """Return the running means and variances that training moves, and the counts they may go by, layer by layer."""
    layers = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.training]
    buffers = [buffer for m in layers for buffer in (m.running_mean, m.running_var, m.num_batches_tracked)]
    return [buffer for buffer in buffers if buffer is not None]
