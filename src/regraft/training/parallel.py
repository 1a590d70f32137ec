"""Microbatches of a step computed at the same time, each by a thread of its own.

torch divides every operation among its threads, which meet several hundred times in a step, and each time all wait for
the slowest. Threads that compute a microbatch each meet once. So a step is shorter, and where another program takes a
core it holds up one of them. Gradients are added up in the order of the microbatches: the sums do not depend on which
thread was first.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from regraft.core.runtime import num_cores
from regraft.training.batchnorm import BATCH_NORMS
from regraft.training.distributed import ProcessGroup

Result = TypeVar("Result")


@dataclass(frozen=True)
class Threads:
    """Threads to compute with, as long as a training lasts.

    Attributes:
        pool: At most as many threads.
        count: As torch would have for an operation.
    """

    pool: ThreadPoolExecutor
    count: int


@contextmanager
def parallel_threads(world: ProcessGroup) -> Iterator[Threads | None]:
    """Provide threads for microbatches; None on a GPU, for one of several processes, and where there is one core."""
    count = min(torch.get_num_threads(), num_cores())
    if world.is_gpu or world.size > 1 or count < 2:
        yield None
        return
    with ThreadPoolExecutor(count, thread_name_prefix="regraft-microbatch") as pool:
        yield Threads(pool, count)


def side_by_side(works: Sequence[Callable[[], Result]], threads: Threads) -> Iterator[Result]:
    """Yield what works return, in their order; as many are done at once as there are threads.

    Operations of one work are divided among threads that would be idle.
    """
    for start in range(0, len(works), threads.count):
        some = works[start : start + threads.count]
        futures = [threads.pool.submit(_with_threads, threads.count // len(some), work) for work in some]
        wait(futures)
        yield from [future.result() for future in futures]


def _with_threads(count: int, work: Callable[[], Result]) -> Result:
    torch.set_num_threads(count)  # of this thread
    return work()


def gradients_at_once(
    works: Sequence[Callable[[], tuple[Tensor, Result]]], parameters: Sequence[nn.Parameter], threads: Threads
) -> list[Result]:
    """Add the gradients of several losses to those of the parameters.

    Args:
        works: Each returns a loss, whose graph is its own, and what is known besides.
        parameters: What the losses are differentiated with respect to.
        threads: To compute with.

    Returns:
        What is known besides, in the order of `works`.
    """
    results = []
    for gradients, result in side_by_side([partial(_gradients, work, parameters) for work in works], threads):
        _add(gradients, parameters)
        results.append(result)
    return results


def _gradients(
    work: Callable[[], tuple[Tensor, Result]], parameters: Sequence[nn.Parameter]
) -> tuple[tuple[Tensor | None, ...], Result]:
    loss, result = work()
    return torch.autograd.grad(loss, parameters, allow_unused=True), result


def _add(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is None:
            continue
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)  # laid out as the weights are
        else:
            parameter.grad += gradient


def draws_at_random(network: nn.Module, images: Tensor) -> bool:
    """Return whether a network draws random numbers while it learns, which threads would draw in any order.

    Args:
        network: Its BatchNorm layers keep their statistics while it is tried.
        images: `(B, ...)`, what it is tried on.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            network(images)
            return not torch.equal(before, torch.get_rng_state())
    finally:
        for module, mode in modes:
            module.training = mode
