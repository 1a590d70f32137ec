"""bf16 arithmetic on a processor, but for the convolutions whose gradients oneDNN computes by its slow reference in it.

Those are depthwise ones with strides, or wider than three: in bf16 they take three to seventy times as long as in
float32, and with them a whole MobileNet or EfficientNet learned more slowly than without bf16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WIDEST = 3  # pixels; kernels up to here are fast


@contextmanager
def bf16_on_cpu() -> Iterator[None]:
    """Autocast to bf16, where that is faster."""
    with torch.autocast("cpu", torch.bfloat16), _Selective():
        yield


class _Selective(TorchFunctionMode):
    """Sees every convolution, whichever layer calls it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and args and torch.is_grad_enabled() and _is_slow(*args, **kwargs):
            images, *others = args
            with torch.autocast("cpu", enabled=False):
                return func(images.float(), *others, **kwargs).to(torch.bfloat16)
        return func(*args, **kwargs)


def _is_slow(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Tell whether the gradients of a convolution with these arguments are slow in bf16."""
    strides = (stride,) if isinstance(stride, int) else stride
    return groups > 1 and weight.shape[1] == 1 and (max(strides) > 1 or max(weight.shape[2:]) > WIDEST)
