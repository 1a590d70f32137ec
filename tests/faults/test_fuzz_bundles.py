"""Bundles with something changed anywhere, every hash right: each is refused in one line, or answers as its graph does.

`REGRAFT_TRIALS` above 20 asks for 20,000 of them.
"""

import json
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults.processes import IS_LONG, record
from regraft.bundle.bundle import load
from regraft.bundle.format import MANIFEST, seal_manifest
from regraft.core.errors import BundleError
from regraft.core.files import json_bytes, sha256_bytes
from tiny_bundle import SIDE, write_tiny

CASES = (20_000 if IS_LONG else 200) // 6  # of each way
MAX_CPU_S = 5.0
MAX_BYTES = 2**30
IMAGE = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
EXAMPLES = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
pytestmark = [pytest.mark.slow] if IS_LONG else []
onnxruntime.set_default_logger_severity(4)

NUMBERS = (0, -1, 1, 2, 7, 8, 255, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))
numbers = st.one_of(st.sampled_from(NUMBERS), st.integers(-(2**63), 2**63 - 1))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=8), st.sampled_from(["f32", "../x"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("fuzz") / "bundle")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to every part of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))] if path else [
        place for key, part in inner for place in places(part, (key,))
    ]  # fmt: skip


def changed_manifest(draw: Callable[..., Any], data: bytes) -> bytes:
    """Some values replaced or removed."""
    manifest = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(manifest)))
        part = manifest
        for key in way:
            part = part[key]
        if draw(st.booleans()):
            part[last] = draw(values)
        else:
            del part[last]
    return json_bytes(seal_manifest(manifest))


def changed_bytes(draw: Callable[..., Any], data: bytes) -> bytes:
    """Some bytes changed, removed, doubled or put in."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(found))), draw(st.sampled_from((1, 1, 2, 8, 100)))
        way = draw(st.sampled_from(("set", "set", "drop", "double", "insert", "cut")))
        if way == "set":
            found[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif way == "drop":
            del found[at : at + length]
        elif way == "double":
            found[at:at] = found[at : at + length]
        elif way == "insert":
            found[at:at] = draw(st.binary(max_size=12))
        else:
            del found[at:]
    return bytes(found)


def changed_graph(draw: Callable[..., Any], data: bytes) -> bytes:
    """A well-formed file with other operators, sizes, names, numbers or types."""
    model = onnx.load_from_string(data)
    for _ in range(draw(st.integers(1, 3))):
        graph = model.graph
        node = draw(st.sampled_from(list(graph.node)))
        tensor = draw(st.sampled_from(list(graph.initializer)))
        names = [*(name for one in graph.node for name in one.output), *(one.name for one in graph.initializer)]
        way = draw(st.sampled_from(("operator", "wire", "attribute", "constant", "type", "node", "output", "input")))
        if way == "operator":
            node.op_type = draw(st.sampled_from(OPERATORS))
        elif way == "wire" and node.input:
            node.input[draw(st.integers(0, len(node.input) - 1))] = draw(st.sampled_from(names))
        elif way == "attribute":
            name = draw(st.sampled_from(("axis", "perm", "pads", "to", "kernel_shape", "axes", "group", "strides")))
            value = draw(st.one_of(numbers, st.lists(numbers, min_size=1, max_size=4)))
            node.attribute.append(onnx.helper.make_attribute(name, value))
        elif way == "constant":
            array = np.array(draw(st.lists(numbers, max_size=4)), np.int64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        elif way == "type":
            tensor.data_type = draw(st.integers(0, 25))
        elif way == "node":
            inputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
            graph.node.insert(
                draw(st.integers(0, len(graph.node))),
                onnx.helper.make_node(draw(st.sampled_from(OPERATORS)), inputs, [f"new{len(graph.node)}"]),
            )
        else:
            info = draw(st.sampled_from([*graph.output, *graph.input]))
            info.type.tensor_type.shape.dim[1].dim_value = draw(numbers)
    return bytes(model.SerializeToString())


OPERATORS = (
    *("Expand", "Tile", "Reshape", "ConstantOfShape", "Range", "Concat", "MatMul", "Conv", "Pad", "Resize", "Shape"),
    *("Gather", "Loop", "If", "Relu", "Exp", "Log", "Div", "Softmax", "Identity", "ReduceSum", "Slice", "TopK"),
)


def changed_header(draw: Callable[..., Any], data: bytes) -> bytes:
    """Tensors of other types, shapes and places."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places(header)))
        part = header
        for key in way:
            part = part[key]
        part[last] = draw(values)
    text = json.dumps(header).encode()
    said = draw(st.sampled_from((len(text), len(text), len(text), 0, 2**63, len(text) + 1)))
    return struct.pack("<Q", said) + text + data[8 + length :]


WAYS = {
    "manifest": (MANIFEST, changed_manifest),
    "bytes of the manifest": (MANIFEST, changed_bytes),
    "graph": ("model.onnx", changed_graph),
    "bytes of the graph": ("model.onnx", changed_bytes),
    "header": ("model.safetensors", changed_header),
    "bytes of the weights": ("model.safetensors", changed_bytes),
}


def vouching(data: bytes, name: str, content: bytes) -> bytes:
    """A manifest with the hash of one file's other content."""
    manifest = json.loads(data)
    manifest["sha256"][name] = sha256_bytes(content)
    return json_bytes(seal_manifest(manifest))


def logits_elsewhere(data: bytes) -> np.ndarray | None:
    """What ONNX Runtime makes of a graph; None where it does not run it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(data, options)
        return np.asarray(session.run(["logits"], {"images": IMAGE[np.newaxis]})[0])
    except Exception:  # it raises errors of many kinds
        return None


def outcome(folder: Path) -> str:
    """ "refused", "answers", or what is wrong."""
    try:
        model = load(folder)
        logits = model.engine(IMAGE[np.newaxis])["logits"]
        answer = model.to_prediction(logits[0])
    except BundleError as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 2000 else f"long: {error}"
    if tuple(answer.probabilities) != model.classes or answer.label not in model.classes:
        return "other classes"
    expected = logits_elsewhere(model.graph)
    is_number = expected is not None and bool(np.isfinite(expected).all())  # engines differ in what is none
    if expected is not None and is_number and not np.allclose(logits, expected, rtol=1e-3, atol=1e-3):
        return f"answers {logits}, its graph {expected}"
    return "answers"


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_bundle_is_refused_or_answers_as_its_graph_does(whole, tmp_path, way, record_property):
    name, change = WAYS[way]
    good = {file: (whole / file).read_bytes() for file in (name, MANIFEST)}
    folder = Path(shutil.copytree(whole, tmp_path / "bundle"))
    seen: dict[str, int] = {"refused": 0, "answers": 0}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @EXAMPLES
    @given(st.data())
    def one(data: Any) -> None:
        changed = change(data.draw, good[name])
        (folder / name).write_bytes(changed)
        if name != MANIFEST:
            (folder / MANIFEST).write_bytes(vouching(good[MANIFEST], name, changed))
        began = time.process_time()
        found = outcome(folder)
        assert found in seen, found
        assert time.process_time() - began < MAX_CPU_S
        seen[found] += 1

    one()
    updated = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert updated < MAX_BYTES
    assert seen["refused"] > CASES / 10
    record(record_property, f"F-{way}", passed=sum(seen.values()), failed=0, **seen)
