"""Which tensors of an ONNX graph are small, found out without computing them.

An engine that reads a graph computes whatever the size of a tensor depends on. So those values may only come from
shapes and constants by way of tensors that are small themselves. This module follows how large they can get.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from regraft.backbones.onnx_wire import Message

SMALL = 4096  # numbers that a computed size may come from
LARGEST = 2**30  # number that is followed: none of the types that are followed overflows by adding two
TYPES = (1, 6, 7, 11)  # ONNX's numbers of those: float, int32, int64, double
MAX_RANK = 16
Range = tuple[float, float]


@dataclass(frozen=True)
class Small:
    """A tensor that is known to be small.

    Attributes:
        count: How many numbers it has at most.
        rank: How many axes it has at most.
        side: How long each of its axes is at most; None where that is not known, as an empty one may be of any shape.
        range: The least and the largest that its numbers can be; None where that is not known.
        product: How large the product of its numbers is at most; None where that is not known.
    """

    count: int
    rank: int
    side: int | None = None
    range: Range | None = None
    product: int | None = None


Rule = Callable[[list[Small]], Small | None]


def of_constant(values: np.ndarray) -> Small | None:
    """Return what is known of a constant, or of the value that fills a tensor; None for a large one."""
    side = max(values.shape, default=1)
    if values.size > SMALL or side > SMALL:
        return None
    is_exact = values.dtype.kind in "if" and values.dtype.itemsize >= 4
    numbers = [float(value) for value in values.ravel()] if is_exact else []
    whole = bool(numbers) and all(abs(value) < LARGEST and value == int(value) for value in numbers)
    bounds = (min(numbers), max(numbers)) if whole else None
    return Small(values.size, values.ndim, side, bounds, math.prod(map(int, numbers)) if whole else None)


def of_node(kind: str, given: list[Small | None], node: Message) -> Small | None:
    """Find what is known of an operator's output from what is known of its inputs.

    Args:
        kind: The operator.
        given: Its inputs that are there, in order.
        node: Its attributes.

    Returns:
        None where the output may be large.
    """
    if kind == "Shape":
        return _shape(given[0], node) if given else None
    if kind == "Size":
        return Small(1, 0)
    known = [one for one in given if one is not None]
    rule = _changed if kind == "Cast" and not _is_exact(node) else RULES.get(kind)
    if rule is None or not known or len(known) != len(given):
        return None
    value = rule(known)
    return value if value is not None and 0 <= value.count <= SMALL and value.rank <= MAX_RANK else None


def _shape(of: Small | None, node: Message) -> Small:
    if of is None:
        return Small(MAX_RANK, 1, MAX_RANK)
    bounds = None if of.side is None else (0.0, float(of.side))
    is_whole = not any(one.get("name") in ("start", "end") for one in node.get("attribute", []))
    return Small(of.rank, 1, of.rank, bounds, max(of.count, 1) if is_whole and bounds else None)


def _is_exact(cast: Message) -> bool:
    """Tell whether a cast leaves numbers as they are."""
    return any(one.get("name") == "to" and one.get("i") in TYPES for one in cast.get("attribute", []))


def _same(given: list[Small]) -> Small:
    return given[0]


def _part(given: list[Small]) -> Small:
    """Follow an operator that gives some of the numbers, or all in another order."""
    return replace(given[0], product=None)


def _unsqueezed(given: list[Small]) -> Small:
    values, axes = given[0], given[1].count if len(given) > 1 else MAX_RANK
    return replace(values, rank=min(values.rank + axes, MAX_RANK))


def _changed(given: list[Small]) -> Small:
    """Follow an operator that gives as many other numbers, or fewer."""
    return Small(given[0].count, given[0].rank, given[0].side)


def _reshaped(given: list[Small]) -> Small | None:
    """Follow a reshaping: axes are no longer than there are numbers, unless there are none."""
    if len(given) != 2:
        return None
    values, sizes = given
    side = max(values.count, int(sizes.range[1])) if sizes.range else None
    return replace(values, rank=sizes.count, side=side)


def _gathered(given: list[Small]) -> Small | None:
    if len(given) != 2:
        return None
    values, places = given
    count = places.count * (1 if values.rank <= 1 else values.count)
    side = None if values.side is None or places.side is None else max(values.side, places.side)
    product = int(values.range[1]) if values.range and count == 1 and values.range[0] >= 0 else None
    return Small(count, max(values.rank - 1, 0) + places.rank, side, values.range, product)


def _joined(given: list[Small]) -> Small:
    ranges = [one.range for one in given if one.range]
    bounds = (min(low for low, _ in ranges), max(high for _, high in ranges)) if len(ranges) == len(given) else None
    sides = [one.side for one in given if one.side is not None]
    side = sum(sides) if len(sides) == len(given) else None
    return Small(sum(one.count for one in given), max(one.rank for one in given), side, bounds)


def _elementwise(bounds: Callable[[Range, Range], Range] | None = None) -> Rule:
    """Return the rule of an operator whose inputs are spread to a common shape.

    Args:
        bounds: Gives the range of the result from those of two inputs.
    """

    def rule(given: list[Small]) -> Small:
        counts, rank = [max(one.count, 1) for one in given], max(one.rank for one in given)
        count = max(counts) if rank <= 1 else math.prod(counts)
        sides = [one.side for one in given if one.side is not None]
        side = max(sides) if len(sides) == len(given) else None
        ranges = [one.range for one in given if one.range]
        limits = bounds(*ranges) if bounds and len(ranges) == len(given) == 2 else None
        limits = limits if limits and limits[0] > -LARGEST and limits[1] < LARGEST else None
        return Small(count, rank, side, limits, int(limits[1]) if limits and count == 1 else None)

    return rule


def _filled(given: list[Small]) -> Small | None:
    """Follow an operator that gives a tensor of the shape that it is given."""
    sizes = given[0]
    if sizes.product is None or sizes.range is None or sizes.range[1] > SMALL:
        return None
    return Small(max(sizes.product, 0), sizes.count, int(sizes.range[1]))


def _one_hot(given: list[Small]) -> Small | None:
    """Follow an operator that gives as many numbers for each place as its second input says."""
    if len(given) != 3 or given[1].range is None or given[1].range[1] > SMALL:
        return None
    depth, side = max(0, int(given[1].range[1])), given[0].side
    return Small(given[0].count * depth, given[0].rank + 1, None if side is None else max(side, depth))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Cast", "Identity", "Squeeze", "Transpose"), _same),
    **dict.fromkeys(("Slice", "Split"), _part),
    "Unsqueeze": _unsqueezed,
    **dict.fromkeys(
        ("Abs", "Ceil", "Clip", "Floor", "Neg", "Not", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Round",
         "Sqrt"),
        _changed,
    ),
    **dict.fromkeys(
        ("And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or",
         "Pow", "Where"),
        _elementwise(),
    ),
    "Add": _elementwise(lambda a, b: (a[0] + b[0], a[1] + b[1])),
    "Sub": _elementwise(lambda a, b: (a[0] - b[1], a[1] - b[0])),
    "Reshape": _reshaped,
    "Gather": _gathered,
    "Concat": _joined,
    "ConstantOfShape": _filled,
    "OneHot": _one_hot,
}  # fmt: skip
