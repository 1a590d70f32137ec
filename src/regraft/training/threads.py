"""How many threads a training computes with while other programs take some of the cores.

torch divides a step evenly among its threads, which meet several hundred times in it. So whoever shares a core with
another program holds up all the others: with one of N cores taken, N threads go half as fast, and N - 1 threads lose a
share of 1/N. Which is quicker is measured, since it also depends on how many programs there are beside it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch.nn import functional

from regraft.core.progress import Progress
from regraft.core.runtime import num_cores, own_cores
from regraft.training.distributed import ProcessGroup

WINDOW_S, PERIOD_S = 0.3, 30.0  # how long it is looked at other programs, and how often: a hundredth of the time
PROBE_S = 0.4  # for each of two numbers of threads
CHOSEN_BY_USER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def threads_beside_others(world: ProcessGroup, progress: Progress) -> Iterator[Callable[[], None]]:
    """Give a function to call before each step that torch divides among threads: it chooses their number anew.

    It does so every half minute. Nothing is chosen on a GPU, where several processes train together, and where the user
    has set the number. What was set before is set again at the end.

    Args:
        world: The processes that train together.
        progress: Is told when the number changes.
    """
    before, next_s = torch.get_num_threads(), 0.0
    is_chosen = any(name in os.environ for name in CHOSEN_BY_USER) or before not in (num_cores(), len(own_cores()))
    if world.is_gpu or world.size > 1 or is_chosen:
        yield lambda: None
        return

    def choose() -> None:
        nonlocal next_s
        if time.monotonic() < next_s:
            return
        most, was = num_cores(), torch.get_num_threads()
        taken = cores_taken() if most > 1 else 0.0
        number = quickest(most, taken, seconds_of_convolutions)
        torch.set_num_threads(number)
        if number != was:
            progress.say(f"threads: {number} of {most}; other programs take {taken:.1f} cores")
        next_s = time.monotonic() + PERIOD_S

    try:
        yield choose
    finally:
        torch.set_num_threads(before)


def cores_taken(window_s: float = WINDOW_S) -> float:
    """Return how many of this process's cores other programs keep busy; those that have made themselves nice are none.

    Args:
        window_s: Seconds for which the calling thread does nothing but look.
    """
    busy, own = _busy_s(), time.process_time()
    began = time.perf_counter()
    time.sleep(window_s)
    seconds = time.perf_counter() - began
    return max(0.0, (_busy_s() - busy - (time.process_time() - own)) / seconds)


def quickest(most: int, taken: float, seconds: Callable[[int], float]) -> int:
    """Return the number of threads to compute with: all, or as many as cores are free, where that is quicker.

    Args:
        most: How many threads there may be.
        taken: How many cores other programs take.
        seconds: Measures how long the same work takes with a number of threads.
    """
    fewer = max(1, most - round(taken))
    return most if fewer == most else min((fewer, most), key=seconds)


def seconds_of_convolutions(num_threads: int) -> float:
    """Return the seconds of work like that of a training step: convolutions of a few channels, there and back."""
    torch.set_num_threads(num_threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 32, 56, 56, generator=generator).contiguous(memory_format=torch.channels_last)
    each, mixing = torch.randn(32, 1, 3, 3, generator=generator), torch.randn(32, 32, 1, 1, generator=generator)
    each.requires_grad_(True)
    rounds, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < PROBE_S:
        maps = functional.conv2d(functional.conv2d(images, each, padding=1, groups=32), mixing)
        maps.square().mean().backward()  # type: ignore[no-untyped-call]
        rounds += 1
    return seconds / rounds


def _busy_s() -> float:
    """Return for how many seconds this process's cores have computed for programs that are not nice."""
    times = psutil.cpu_times(percpu=True)
    return float(sum(times[core].user + times[core].system for core in own_cores() if core < len(times)))
