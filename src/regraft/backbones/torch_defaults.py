"""Torch's switches as regraft wants them, whatever this process has set: no graph and no network depends on them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

CPU = torch.device("cpu")


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Compute in float32, on the processor, with gradients and without autocast; afterwards as before.

    It is a decorator too.

    The default type is the process's, the others this thread's. A default device that is the processor already is left
    alone: to set one slows every call of torch.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, dtype)
        if torch.get_default_device() != CPU:
            stack.enter_context(CPU)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        stack.enter_context(torch.enable_grad())
        yield
