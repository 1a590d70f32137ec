"""Which tensors of an ONNX graph are small, told without computing them.

An engine that reads a graph computes whatever the size of a tensor depends on. So those values may only come from
shapes and constants by way of tensors that are small themselves, and here is followed how large they can get.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from regraft.backbones.onnx_wire import Message

SMALL = 4096  # numbers that a computed size may come from
MAX_RANK = 16
Range = tuple[float, float]


@dataclass(frozen=True)
class Small:
    """A tensor that is known to be small.

    Attributes:
        count: How many numbers it has at most.
        side: How long each of its axes is at most; None where that is not known, as an empty one may be of any shape.
        is_list: Whether it has one axis for certain.
        range: The least and the largest that its numbers can be; None where that is not known.
        product: How large the product of its numbers is at most; None where that is not known.
    """

    count: int
    side: int | None = None
    is_list: bool = False
    range: Range | None = None
    product: int | None = None


def of_constant(values: np.ndarray) -> Small | None:
    """A constant, or one that fills a tensor; None for a large one."""
    side = max(values.shape, default=1)
    if values.size > SMALL or side > SMALL:
        return None
    numbers = [float(value) for value in values.ravel()] if values.dtype.kind in "iuf" else []
    whole = bool(numbers) and all(abs(value) < 2**53 and value == int(value) for value in numbers)
    bounds = (min(numbers), max(numbers)) if whole else None
    return Small(values.size, side, values.ndim == 1, bounds, math.prod(map(int, numbers)) if whole else None)


def of_node(kind: str, given: list[Small | None], node: Message) -> Small | None:
    """What an operator gives, from what it is given; None where that may be large.

    Args:
        kind: The operator.
        given: Its inputs that are there, in order.
        node: Its attributes.
    """
    if kind == "Shape":
        return _shape(given[0], node) if given else None
    known = [one for one in given if one is not None]
    rule = RULES.get(kind)
    if rule is None or not known or len(known) != len(given):
        return None
    found = rule(known)
    return found if found is not None and 0 <= found.count <= SMALL else None


def _shape(of: Small | None, node: Message) -> Small:
    if of is None or of.side is None:
        return Small(MAX_RANK, MAX_RANK, True)
    is_whole = not any(one.get("name") in ("start", "end") for one in node.get("attribute", []))
    return Small(MAX_RANK, MAX_RANK, True, (0, of.side), max(of.count, 1) if is_whole else None)


def _kept(given: list[Small]) -> Small:
    """The same numbers in another order, or some of them."""
    return replace(given[0], is_list=False, product=None)


def _cast(given: list[Small]) -> Small:
    return given[0]


def _sliced(given: list[Small]) -> Small:
    return replace(given[0], product=None)


def _changed(given: list[Small]) -> Small:
    """As many other numbers."""
    return Small(given[0].count, given[0].side)


def _reshaped(given: list[Small]) -> Small:
    """Axes are no longer than there are numbers, unless there are none."""
    values, sizes = given[0], given[1] if len(given) > 1 else None
    known = sizes is not None and sizes.range is not None
    side = max(values.count, int(sizes.range[1])) if known and sizes and sizes.range else None
    return replace(values, is_list=False, side=side, product=None)


def _gathered(given: list[Small]) -> Small | None:
    if len(given) != 2:
        return None
    values, places = given
    count = places.count * (1 if values.is_list else values.count)
    side = None if values.side is None or places.side is None else max(values.side, places.side)
    product = int(values.range[1]) if values.range and places.count == 1 and values.range[0] >= 0 else None
    return Small(count, side, False, values.range, product)


def _joined(given: list[Small]) -> Small:
    sides = [one.side for one in given]
    ranges = [one.range for one in given]
    bounds = None
    if all(ranges):
        bounds = min(r[0] for r in ranges if r), max(r[1] for r in ranges if r)
    return Small(sum(one.count for one in given), None if None in sides else sum(filter(None, sides)), False, bounds)


def _elementwise(bounds: Callable[[Range, Range], Range] | None = None) -> Callable[[list[Small]], Small]:
    """Inputs are spread to a common shape. bounds: of the result, from those of two inputs."""

    def rule(given: list[Small]) -> Small:
        count, sides = math.prod(max(one.count, 1) for one in given), [one.side for one in given]
        side = None if None in sides else max(filter(None, sides), default=0)
        ranges = [one.range for one in given]
        found = bounds(ranges[0], ranges[1]) if bounds and len(given) == 2 and ranges[0] and ranges[1] else None
        product = int(found[1]) if found and count == 1 and found[0] > -(2**53) else None
        return Small(count, side, False, found, product)

    return rule


def _filled(given: list[Small]) -> Small | None:
    """A tensor of the shape that is given."""
    sizes = given[0]
    if sizes.product is None or sizes.range is None:
        return None
    side = int(sizes.range[1])
    return Small(max(sizes.product, 0), side) if side <= SMALL else None


def _one_hot(given: list[Small]) -> Small | None:
    """As many numbers for each place as the second input says."""
    if len(given) != 3 or given[1].range is None:
        return None
    depth, side = max(0, int(given[1].range[1])), given[0].side
    return Small(given[0].count * depth, None if side is None else max(side, depth))


RULES: dict[str, Callable[[list[Small]], Small | None]] = {
    **dict.fromkeys(("Identity", "Cast"), _cast),
    **dict.fromkeys(("Transpose", "Unsqueeze", "Squeeze"), _kept),
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
    "Slice": _sliced,
    "Split": _sliced,
    "Reshape": _reshaped,
    "Gather": _gathered,
    "Concat": _joined,
    "ConstantOfShape": _filled,
    "OneHot": _one_hot,
}  # fmt: skip
