"""What running a graph would take, from its shapes alone: checked before anything is compiled."""

import math
from collections import Counter
from typing import Any

from regraft.backbones.onnx_check import GraphError

MAX_FOLDED = 2**31  # of them what OpenVINO does while it compiles, at a tenth of the speed
WEIGHTED = {
    "MatMul",
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
}
Key = tuple[str, int]  # of a value: the name of the node that makes it, and which of its outputs
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
    given = {node.get_name(): [_key(value) for value in node.input_values()] for node in nodes}
    readers = Counter(key for keys in given.values() for key in keys)
    sizes: dict[Key, int] = {}  # how many numbers
    live: dict[Key, int] = {}  # bytes of what is still needed
    fixed: set[Key] = set()  # what follows from constants alone
    held = most = work = folded = 0
    for node, (name, keys) in zip(nodes, given.items(), strict=True):
        made = {(name, number): value for number, value in enumerate(node.outputs())}
        sizes |= {key: _size(value) for key, value in made.items()}
        if node.get_type_name() == "Constant":  # its numbers are in the file
            fixed.update(made)
            continue
        node_work = _work(node, [sizes[key] for key in keys], [sizes[key] for key in made])
        work += node_work
        if keys and fixed.issuperset(keys):
            fixed.update(made)
            folded += node_work
        live |= {key: sizes[key] * value.element_type.size for key, value in made.items()}
        held += sum(live[key] for key in made)
        most = max(most, held)
        readers.subtract(keys)
        held -= sum(live.pop(key) for key in {*keys, *made} if not readers[key] and key in live)
    if most > MAX_LIVE_BYTES:
        raise GraphError(f"one photo would take {most / 2**20:.0f} MB, expected at most {MAX_LIVE_BYTES / 2**20:.0f}")
    if folded > MAX_FOLDED:
        raise GraphError(f"{folded:.1e} multiplications of constants, expected at most {MAX_FOLDED:.1e}")
    if work > MAX_WORK:
        raise GraphError(f"one photo would take {work:.1e} multiplications, expected at most {MAX_WORK:.1e}")


def _key(value: Any) -> Key:
    return value.get_node().get_name(), value.get_index()


def _size(value: Any) -> int:
    """Return how many numbers a value has. Raises GraphError where that is not known."""
    try:
        return math.prod(value.shape)
    except RuntimeError as error:
        name = value.get_node().get_type_name()
        raise GraphError(f"the size of what {name} gives depends on more than shapes and constants") from error


def _work(node: Any, given: list[int], made: list[int]) -> int:
    """Count multiplications, or what takes as long.

    Args:
        node: OpenVINO's.
        given: How many numbers each input has.
        made: How many numbers each output has.
    """
    kind = node.get_type_name()
    if kind == "Einsum":
        return _einsum(node)
    if kind in ("MaxPool", "AvgPool"):
        return made[0] * math.prod(map(int, node.get_attributes()["kernel"]))
    if kind not in WEIGHTED:
        return max([*given, *made], default=0)
    weight: tuple[int, ...] = tuple(node.input_value(1).shape)
    if kind == "MatMul":
        return made[0] * weight[-1 if node.get_attributes()["transpose_b"] or len(weight) == 1 else -2]
    channels = math.prod(weight[:2]) if kind.startswith("Group") else weight[0]
    return (given[0] if kind.endswith("Data") else made[0]) * given[1] // max(1, channels)


def _einsum(node: Any) -> int:
    """Count a multiplication for each choice of all its letters; an ellipsis stands for the axes not named."""
    sides: dict[str, int] = {}
    terms = node.get_attributes()["equation"].replace(" ", "").partition("->")[0].split(",")
    for term, value in zip(terms, node.input_values(), strict=True):
        before, _, after = term.partition("...")
        shape = tuple(value.shape)
        letters = [*before, *(f"...{n}" for n in range(len(shape) - len(before) - len(after))), *after]
        for letter, side in zip(letters, shape, strict=True):
            sides[letter] = max(side, sides.get(letter, 1))
    return math.prod(sides.values())
