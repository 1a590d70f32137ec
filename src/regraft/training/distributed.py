"""The processes that train together: one alone, or as many as torchrun started, on one machine or several.

Every process holds the same weights and works on its share of each batch; once a step their gradients are added up in
a single reduction. This stands for DistributedDataParallel, whose hooks would wait for ever when one process alone has
to halve its microbatch. torch is imported when it is needed: a process that is alone and only solves a head needs none.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from regraft.backbones.engine import has_bf16, has_gpu
from regraft.core.errors import TrainError
from regraft.core.runtime import let_threads_yield, rank_and_world

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # one process may solve and save while the others wait


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: Number of this process.
        size: How many there are.
        device: Where this one computes, in torch's words.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    def seed(self, number: int) -> None:
        """Seed what is drawn from now on, on the device too.

        Without a GPU not by torch.manual_seed: it also asks for tracebacks, several milliseconds of each step.
        """
        import torch

        if self.is_gpu:
            torch.manual_seed(number)
        else:
            torch.default_generator.manual_seed(number)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bf16 where the device has it, else in float32."""
        import torch

        if self.is_gpu:
            return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_bf16_supported() else nullcontext()
        from regraft.training.bf16 import bf16_on_cpu

        return bf16_on_cpu() if has_bf16() else nullcontext()

    def total(self, values: Iterable[float]) -> list[float]:
        """Return the sums over all processes, in float64."""
        if self.size == 1:
            return list(values)
        import torch

        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return list(tensor.tolist())

    def all_reduce(self, tensors: "list[Tensor]") -> None:
        """Replace each tensor by its sum over all processes, in one reduction."""
        if self.size == 1 or not tensors:
            return
        import torch

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast(self, value: T) -> T:
        """Return what the main process has."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, device=self.device)  # type: ignore[arg-type]
        return box[0]

    def broadcast_tensors(self, tensors: Iterable["Tensor"]) -> None:
        """Overwrite tensors with those of the main process."""
        if self.size > 1:
            from torch import distributed

            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()


@contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the process group that torchrun's environment describes, and leave it at the end.

    Yields:
        The group; of one process where there is no other.

    Raises:
        TrainError: Another process has ended, or cannot be reached.
    """
    rank, size = rank_and_world()
    let_threads_yield()
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if has_gpu() else "cpu"
    if device != "cpu":
        import torch

        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if size == 1:
        yield ProcessGroup(device=device)
        return
    from torch import distributed

    try:
        distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    except RuntimeError as error:  # the others may end while this one is still looking for them
        if not _is_of_others(error):
            raise
        raise TrainError(
            "The processes of this training did not come together: another has ended, and its own message says why, "
            "or MASTER_ADDR and MASTER_PORT lead elsewhere."
        ) from error
    try:
        yield ProcessGroup(rank, size, device)
    except RuntimeError as error:
        if not _is_of_others(error):
            raise
        raise TrainError(
            "Another process of this training has ended: its own message says why. The same command goes on from here."
        ) from error
    finally:
        distributed.destroy_process_group()


def _is_of_others(error: RuntimeError) -> bool:
    """Return whether an error comes from how processes reach each other."""
    from torch import distributed

    return "gloo" in str(error) or isinstance(error, distributed.DistError)
