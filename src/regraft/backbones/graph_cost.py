"""What running a graph would take, from its shapes alone: checked before anything is compiled."""

import math
from collections import Counter
from typing import Any

from regraft.backbones.onnx_check import GraphError

MAX_LIVE_BYTES = 2**30  # of tensors that are needed at the same time, for one photo
MAX_WORK = 2**40  # multiplications and the like for one photo; the largest networks of timm take half of it


def check_cost(model: Any) -> None:
    """Bound memory and work of one photo.

    Args:
        model: OpenVINO's, reshaped to one photo.

    Raises:
        GraphError: It takes more than any network that is known, or has shapes that depend on what is in a photo.
    """
    nodes = model.get_ordered_ops()
    readers = Counter(_key(value) for node in nodes for value in node.input_values())
    live, most, work = 0, 0, 0
    for node in nodes:
        given = [_size(value) for value in node.input_values()]
        made = [_size(value) for value in node.outputs()]
        work += _work(node, given, made)
        live += sum(size * value.element_type.size for size, value in zip(made, node.outputs(), strict=True))
        most = max(most, live)
        for value in {_key(value): value for value in node.input_values()}.values():
            readers[_key(value)] -= sum(_key(one) == _key(value) for one in node.input_values())
            if not readers[_key(value)]:
                live -= _size(value) * value.element_type.size
    weights = sum(_size(node.output(0)) * node.output(0).element_type.size for node in nodes if _is_constant(node))
    if most - weights > MAX_LIVE_BYTES:
        raise GraphError(f"one photo would take {most / 2**20:.0f} MB, expected at most {MAX_LIVE_BYTES / 2**20:.0f}")
    if work > MAX_WORK:
        raise GraphError(f"one photo would take {work:.1e} multiplications, expected at most {MAX_WORK:.1e}")


def _is_constant(node: Any) -> bool:
    return bool(node.get_type_name() == "Constant")


def _key(value: Any) -> tuple[str, int]:
    return value.get_node().get_name(), value.get_index()


def _size(value: Any) -> int:
    """How many numbers. Raises GraphError where that is not known."""
    if not value.partial_shape.is_static:
        name = value.get_node().get_type_name()
        raise GraphError(f"the size of what {name} gives depends on more than shapes and constants")
    return math.prod(value.shape)


def _work(node: Any, given: list[int], made: list[int]) -> int:
    """Multiplications, or what takes as long."""
    kind, attributes = node.get_type_name(), node.get_attributes
    shape: tuple[int, ...] = tuple(node.input_value(1 if "Convolution" in kind else 0).shape) if given else ()
    if kind in ("Convolution", "GroupConvolution"):
        channels_out = math.prod(shape[:2]) if kind == "GroupConvolution" else shape[0]
        return made[0] * given[1] // max(1, channels_out)
    if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
        channels_in = math.prod(shape[:2]) if kind == "GroupConvolutionBackpropData" else shape[0]
        return given[0] * given[1] // max(1, channels_in)
    if kind == "MatMul":
        return made[0] * shape[-2 if attributes()["transpose_a"] and len(shape) > 1 else -1]
    if kind == "Einsum":
        return math.prod(given)
    if kind in ("MaxPool", "AvgPool"):
        return made[0] * math.prod(map(int, attributes()["kernel"]))
    return max([*given, *made], default=0)
