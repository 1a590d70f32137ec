"""What an ONNX file may hold before any engine sees it: one plain network from a photo to numbers.

A graph from outside is a program. Only operators that compute numbers from numbers are allowed, no branches, loops or
functions; and sizes of tensors come from constants and shapes alone, so that nothing has to be computed to know them.
What it costs is for `graph_cost` to say, once an engine knows all shapes and before it compiles anything.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regraft.backbones.onnx_operators import ENDING, FEWEST_OPSET, MOST_OPSET, MOVING, OPERATORS, SIZES
from regraft.backbones.onnx_sizes import MAX_RANK, SMALL, Small, of_constant, of_node
from regraft.backbones.onnx_wire import Message, WireError, read_model

MAX_NODES = 20_000
MAX_RUN = 400  # operators on single numbers in a row; to join 2,000 of them takes OpenVINO minutes
MAX_SIDE = 4096  # of an image in pixels
STANDARD_DOMAINS = ("", "ai.onnx")

# ONNX's numbers for types: bytes of one value
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
NUMPY_TYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
UINT8, FLOAT32 = 2, 1


class GraphError(ValueError):
    """Raised for a graph that is damaged, or no plain network."""


@dataclass(frozen=True)
class Tensor:
    """A constant of a graph.

    Attributes:
        type: ONNX's number for it.
        shape: Empty for a single number.
        raw: Its numbers as little-endian bytes, None where they are listed one by one.
        listed: Its numbers otherwise.
    """

    type: int
    shape: tuple[int, ...]
    raw: memoryview | None = field(repr=False)
    listed: list[float] = field(repr=False, default_factory=list)

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def numbers(self) -> np.ndarray:
        """Return it as an array of its shape. Raises GraphError for a type that numpy lacks."""
        if self.type not in NUMPY_TYPES:
            raise GraphError(f"a tensor of type {self.type} is no array")
        kind = NUMPY_TYPES[self.type]
        flat = np.array(self.listed, kind) if self.raw is None else np.frombuffer(self.raw, kind)
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class Graph:
    """An ONNX file that was checked. Pickled as its bytes, and checked again.

    Attributes:
        data: The file.
        image_size: Height and width of the input `images (B, H, W, 3)` uint8, in pixels.
        outputs: Names of what it computes.
        metadata: Texts that go with it.
        head: Weight `(C, D)` and bias `(C,)` float32 of the layer from `features` to `logits`, read-only views of
            `data`; None where there is no such layer.
    """

    data: bytes = field(repr=False)
    image_size: tuple[int, int]
    outputs: tuple[str, ...]
    metadata: dict[str, str] = field(repr=False)
    head: tuple[np.ndarray, np.ndarray] | None = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return check_graph, (self.data,)


def check_graph(data: bytes) -> Graph:
    """Read an ONNX file and check that it is a plain network.

    Args:
        data: The whole file.

    Returns:
        The graph, ready for an engine.

    Raises:
        GraphError: It is anything else; the text says what.
    """
    try:
        model = read_model(data)
    except WireError as error:
        raise GraphError(str(error)) from error
    graph = model.get("graph", {})
    versions = [one.get("version", 0) for one in model.get("opset_import", [])]
    if any(one.get("domain", "") not in STANDARD_DOMAINS for one in model.get("opset_import", [])):
        raise GraphError("it needs operators that are not ONNX's own")
    nodes = graph.get("node", [])
    if not 0 < len(nodes) <= MAX_NODES:
        raise GraphError(f"it has {len(nodes)} nodes, expected from 1 to {MAX_NODES}")
    if len(versions) != 1 or not FEWEST_OPSET <= versions[0] <= MOST_OPSET:
        raise GraphError(f"it is of opset {versions}, expected one from {FEWEST_OPSET} to {MOST_OPSET}")
    constants = _constants(graph)
    inputs, outputs = _named(graph.get("input", [])), _named(graph.get("output", []))
    _check_nodes(nodes, constants, inputs, outputs)
    metadata = {one.get("key", ""): one.get("value", "") for one in model.get("metadata_props", [])}
    return Graph(data, _image_size(inputs, constants), tuple(outputs), metadata, _head(nodes, constants))


def _head(nodes: list[Message], constants: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return weight and bias of the one layer from features to logits."""
    node = next((one for one in nodes if one.get("output") == ["logits"]), {})
    attributes = {(one.get("name"), one.get("i")) for one in node.get("attribute", [])}
    features, *names = node.get("input", [""])
    if (node.get("op_type"), features, attributes) != ("Gemm", "features", {("transB", 1)}):
        return None
    known = [constants[name].numbers() for name in names if name in constants]
    if [(value.dtype, value.ndim) for value in known] != [(np.dtype("<f4"), 2), (np.dtype("<f4"), 1)]:
        return None
    weight, bias = known
    return (weight, bias) if len(weight) == len(bias) else None


def _constants(graph: Message) -> dict[str, Tensor]:
    constants: dict[str, Tensor] = {}
    for one in graph.get("initializer", []):
        name = one.get("name", "")
        if not name or name in constants:
            raise GraphError(f"it has a constant without a name of its own: {name[:80]!r}")
        constants[name] = tensor(one)
    return constants


def tensor(message: Message) -> Tensor:
    """Read a tensor whose numbers are all there.

    Args:
        message: As `read_model` gives it.

    Raises:
        GraphError: It is of an unknown type, has an impossible shape or too many axes, lies in another file, or has
            more or fewer numbers than its shape says.
    """
    kind, shape = message.get("data_type", 0), tuple(message.get("dims", []))
    if message.get("data_location", 0) != 0:
        raise GraphError("it keeps weights in another file")
    if kind not in ITEM_BYTES or len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise GraphError(f"it has a constant of type {kind} and shape {str(shape)[:60]}")
    listed = [message[name] for name in ("float_data", "int32_data", "int64_data", "double_data") if name in message]
    raw, count = message.get("raw_data"), math.prod(shape)
    given = [len(numbers) for numbers in listed] + ([] if raw is None else [len(raw) / ITEM_BYTES[kind]])
    if given != [count] and (given or count):
        raise GraphError(f"it has a constant of shape {str(shape)[:60]} with other than {count} numbers")
    return Tensor(kind, shape, raw, listed[0] if listed else [])


def _named(values: list[Message]) -> dict[str, Message]:
    by_name = {one.get("name", ""): one for one in values}
    if len(by_name) != len(values) or "" in by_name:
        raise GraphError("its inputs or outputs lack names of their own")
    return by_name


def _image_size(inputs: dict[str, Message], constants: dict[str, Tensor]) -> tuple[int, int]:
    """Return height and width. Raises GraphError unless the one input is `images (B, H, W, 3)` uint8."""
    given = {name: one for name, one in inputs.items() if name not in constants}
    kind = given.get("images", {}).get("type", {}).get("tensor_type", {})
    sizes = [dim.get("dim_value", 0) for dim in kind.get("shape", {}).get("dim", [])]
    if len(given) != 1 or kind.get("elem_type") != UINT8 or len(sizes) != 4 or sizes[3] != 3:
        raise GraphError("it does not take images (B, H, W, 3) uint8 and nothing else")
    if not (sizes[0] >= 0 and all(0 < side <= MAX_SIDE for side in sizes[1:3])):
        raise GraphError(f"it takes images of {sizes[1]}x{sizes[2]}, expected at most {MAX_SIDE} each")
    return sizes[1], sizes[2]


class _Walk:
    """The nodes in their order, each checked against those before it.

    Attributes:
        small: What is known of each tensor so far; None for one that may be large.
        run: For each tensor, how many operators on single numbers lie in a row before it.
    """

    def __init__(self, constants: dict[str, Tensor], inputs: Iterable[str]) -> None:
        self.small: dict[str, Small | None] = dict.fromkeys(inputs)
        self.small |= {name: _of_constant(one) for name, one in constants.items()}
        self.run: dict[str, int] = {}

    def add(self, node: Message) -> None:
        """Add one more node. Raises GraphError where it may not follow those before it."""
        kind, names = node.get("op_type", ""), node.get("input", [])
        if kind not in OPERATORS or node.get("domain", "") not in STANDARD_DOMAINS:
            raise GraphError(f"operator {kind[:80]!r} is not allowed")
        least, most = OPERATORS[kind]
        if not least <= len(names) <= most or not all(names[:least]) or not any(node.get("output", [])):
            raise GraphError(f"{kind} has {len(names)} inputs, expected from {least} to {most}")
        if missing := [name for name in names if name and name not in self.small]:
            raise GraphError(f"{missing[0][:80]!r} is used before it is computed")
        for place in SIZES.get(kind, ()):
            if place < len(names) and names[place] and self.small[names[place]] is None:
                raise GraphError(f"the size of what {kind} gives depends on more than shapes and constants")
        outputs = [name for name in node.get("output", []) if name]
        if again := [name for name in outputs if name in self.small]:
            raise GraphError(f"{again[0][:80]!r} is computed twice")
        given = [self.small[name] for name in names if name]
        values = _of_attributes(node) if kind == "Constant" else of_node(kind, given, node)
        self.small.update(dict.fromkeys(outputs, values))
        run = max((self.run.get(name, 0) for name in names), default=0) + (kind not in MOVING)
        self.run.update(dict.fromkeys(outputs, 0 if kind in ENDING else run))
        if run > MAX_RUN:
            raise GraphError(f"more than {MAX_RUN} operators on single numbers lie in a row")


def _of_attributes(node: Message) -> Small | None:
    """Return what is known of the value that a node `Constant` gives."""
    for one in node.get("attribute", []):
        if "t" in one:
            return _of_constant(tensor(one["t"]))
        if "ints" in one or "i" in one:
            return of_constant(np.array(one.get("ints", one.get("i")), np.int64))
        if "floats" in one or "f" in one:
            return of_constant(np.array(one.get("floats", one.get("f")), np.float64))
    return None


def _of_constant(value: Tensor) -> Small | None:
    return of_constant(value.numbers()) if value.count <= SMALL and value.type in NUMPY_TYPES else None


def _check_nodes(
    nodes: list[Message], constants: dict[str, Tensor], inputs: Iterable[str], outputs: Iterable[str]
) -> None:
    """Check that operators are allowed, values are computed before use, and sizes come from shapes and constants."""
    walk = _Walk(constants, inputs)
    for node in nodes:
        for attribute in node.get("attribute", []):
            if "t" in attribute:
                tensor(attribute["t"])
        walk.add(node)
    if missing := [name for name in outputs if name not in walk.small]:
        raise GraphError(f"its output {missing[0][:80]!r} is not computed")
