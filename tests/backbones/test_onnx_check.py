"""Only a plain network passes: by its operators, by the sizes of its tensors, and by every byte of its file."""

import json
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from regraft.backbones.engine import Engine
from regraft.backbones.graph_cost import check_cost
from regraft.backbones.onnx_check import GraphError, check_graph
from regraft.backbones.onnx_wire import WireError, read_model

HUGE = 2**40


def array(name, values, kind=np.int64):
    return numpy_helper.from_array(np.array(values, kind), name)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def model_of(nodes, constants=(), size=(8, 8), output="features", images=TensorProto.UINT8):
    """Photos as floats `x`, and what `nodes` make of them."""
    start = node("Cast", "images", "x", to=TensorProto.FLOAT)
    given = helper.make_tensor_value_info("images", images, ["B", *size, 3])
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph([start, *nodes], "network", [given], [made], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def plain():
    return model_of([node("Flatten", "x", "features", axis=1)])


def refusal(model) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(GraphError) as raised:
        check_graph(data)
    return str(raised.value)


def test_a_plain_network_is_what_its_file_says():
    model = plain()
    helper.set_model_props(model, {"classes": json.dumps(["location", "dislocation"])})
    graph = check_graph(model.SerializeToString())
    assert (graph.image_size, graph.outputs, graph.head) == ((8, 8), ("features",), None)
    assert json.loads(graph.metadata["classes"]) == ["location", "dislocation"]
    assert pickle.loads(pickle.dumps(graph)).data == graph.data
    assert Engine(graph)(np.full((2, 8, 8, 3), 7, np.uint8))["features"].tolist() == [[7.0] * 192] * 2


def test_the_reader_finds_what_the_onnx_package_finds(default_bundle):
    model, found = onnx.load_from_string(default_bundle.graph), read_model(default_bundle.graph)
    for ours, theirs in zip(found["graph"]["node"], model.graph.node, strict=True):
        assert (ours["op_type"], ours.get("input", [])) == (theirs.op_type, list(theirs.input))
        assert ours["output"] == list(theirs.output)
        for one, other in zip(ours.get("attribute", []), theirs.attribute, strict=True):
            value = helper.get_attribute_value(other)
            assert one["name"] == other.name
            assert "t" in one or value in (one.get("i"), one.get("f"), one.get("ints", []), bytes(one.get("s", b"")))
    for ours, theirs in zip(found["graph"]["initializer"], model.graph.initializer, strict=True):
        assert (ours["name"], ours.get("dims", [])) == (theirs.name, list(theirs.dims))
        assert bytes(ours["raw_data"]) == theirs.raw_data
    weight, bias = check_graph(default_bundle.graph).head
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    assert np.array_equal(weight, constants["head.weight"])
    assert np.array_equal(bias, constants["head.bias"])


def branch():
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)])
    return model_of(
        [node("If", "c", "features", then_branch=body, else_branch=body)], [array("c", True, np.bool_)]
    )  # fmt: skip


def function():
    model = plain()
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node("Relu", "a", "b")], []))
    return model


def elsewhere():
    model = model_of([node("Add", "x w", "features")], [array("w", [1.0], np.float32)])
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/passwd", offset=0, length=4)
    model.graph.initializer[0].ClearField("raw_data")
    return model


def sparse():
    model = plain()
    values = helper.make_sparse_tensor(array("v", [1.0], np.float32), array("i", [0]), [3])
    model.graph.sparse_initializer.append(values)
    return model


def of_strings():
    return model_of([node("Flatten", "x", "features")], [helper.make_tensor("s", TensorProto.STRING, [1], [b"a"])])


def of_other_size():
    model = model_of([node("Add", "x w", "features")], [array("w", [1.0], np.float32)])
    model.graph.initializer[0].dims[:] = [HUGE]
    return model


def own_domain():
    model = plain()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def old_operators():
    model = plain()
    model.opset_import[0].version = 9
    return model


NOT_PLAIN = {
    "a branch": (branch, "field 6 of attribute"),
    "a function": (function, "field 25 of model"),
    "weights in another file": (elsewhere, "keeps weights in another file"),
    "a sparse constant": (sparse, "field 15 of graph"),
    "strings": (of_strings, "field 6 of tensor"),
    "a constant of another size": (of_other_size, "with other than 1099511627776 numbers"),
    "operators of others": (own_domain, "operators that are not ONNX's own"),
    "an operator that is not allowed": (lambda: model_of([node("NonZero", "x", "features")]), "'NonZero' is not"),
    "inputs that are missing": (lambda: model_of([node("Pad", "x", "features")]), "Pad has 1 inputs, expected from 2"),
    "an input that is empty": (
        lambda: model_of([helper.make_node("Add", ["x", ""], ["features"])]),
        "Add has 2 inputs",
    ),
    "inputs too many": (lambda: model_of([node("Relu", "x x", "features")]), "Relu has 2 inputs, expected from 1 to 1"),
    "old operators": (old_operators, "it is of opset [9], expected one from 13"),
    "a loop": (lambda: model_of([node("Loop", "x", "features")]), "'Loop' is not allowed"),
    "random numbers": (lambda: model_of([node("RandomNormalLike", "x", "features")]), "is not allowed"),
    "an operator of another domain": (
        lambda: model_of([node("Relu", "x", "features", domain="own")]),
        "'Relu' is not allowed",
    ),
    "a value that is not there": (lambda: model_of([node("Relu", "y", "features")]), "'y' is used before"),
    "a value twice": (
        lambda: model_of([node("Relu", "x", "features"), node("Relu", "x", "features")]),
        "'features' is computed twice",
    ),
    "a circle": (lambda: model_of([node("Add", "x features", "features")]), "'features' is used before"),
    "an output that is not there": (lambda: model_of([], output="features"), "'features' is not computed"),
    "no photos": (lambda: model_of([node("Relu", "x", "features")], images=TensorProto.FLOAT), "does not take images"),
    "photos of no size": (lambda: model_of([node("Relu", "x", "features")], size=("H", 8)), "takes images of 0x8"),
    "large photos": (lambda: model_of([node("Relu", "x", "features")], size=(8, 5000)), "images of 8x5000"),
    "a long row": (
        lambda: model_of(
            [node("Relu", f"x{i}" if i else "x", f"x{i + 1}" if i < 500 else "features") for i in range(501)]
        ),
        "operators on single numbers lie in a row",
    ),
    "no nodes": (lambda: onnx.ModelProto(ir_version=9), "it has 0 nodes"),
    "another format": (lambda: b'<?xml version="1.0"?><net name="n" version="11"></net>', "field 7 of model"),
    "another format, indented": (lambda: b'  <net name="n" version="11"></net>', "field 4 of model"),
    "nothing": (lambda: b"", "it has 0 nodes"),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_what_is_no_plain_network_is_refused(name):
    make, reason = NOT_PLAIN[name]
    assert reason in refusal(make())


def test_what_a_reader_could_take_in_two_ways_is_refused():
    data = plain().SerializeToString()
    assert "ir_version twice" in refusal(data + b"\x08\x09")
    assert "graph twice" in refusal(data + b"\x3a\x00")
    assert "cut off" in refusal(data[:-1])
    assert "more than 64 bits" in refusal(b"\x08" + b"\xff" * 9 + b"\x7f")
    assert "cut off" in refusal(b"\x08" + b"\xff" * 11)
    assert "field 99 of model" in refusal(data + b"\x98\x06\x01")


def test_many_values_in_few_bytes_end_soon():
    """A packed list of 4 million zeros, each a byte."""
    numbers = bytes(4_000_000)
    part = b"\x3a" + varint(len(numbers))
    with pytest.raises(WireError, match="more than 2000000 values"):
        read_model(nested(part + numbers))


def varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def nested(tensor: bytes) -> bytes:
    """A file whose graph has one constant of such content."""
    graph = b"\x2a" + varint(len(tensor)) + tensor
    return b"\x08\x09\x3a" + varint(len(graph)) + graph


def by(*nodes, **constants):
    """Reshape by a size that some nodes make."""
    return model_of(
        [*nodes, node("Reshape", "x size", "features")], [array(name, value) for name, value in constants.items()]
    )


def doubling():
    steps = [node("Concat", f"d{i} d{i}", f"d{i + 1}", axis=0) for i in range(40)]
    return by(node("Shape", "images", "d0"), *steps, node("ReduceMin", "d40 a", "size", keepdims=1), a=[0])


LARGE = {
    "filled": lambda: by(node("ConstantOfShape", "n", "b"), node("ReduceSum", "b a", "size"), n=[HUGE], a=[0]),
    "filled by a shape": lambda: by(
        node("Shape", "images", "s"), node("ConstantOfShape", "s", "b"), node("ReduceSum", "b", "size")
    ),
    "a range": lambda: by(node("Range", "z n o", "b"), node("ReduceMax", "b a", "size"), z=0, n=HUGE, o=1, a=[0]),
    "tiled": lambda: by(
        node("Shape", "images", "s"), node("Tile", "s n", "b"), node("ReduceMin", "b a", "size"), n=[HUGE], a=[0]
    ),
    "spread": lambda: by(node("Expand", "o n", "b"), node("Slice", "b z o", "size"), o=[1], n=[HUGE], z=[0]),
    "doubled": doubling,
    "multiplied": lambda: by(
        *[node("Unsqueeze", "r a", "r1"), node("Mul", "r r1", "b"), node("Mul", "b b", "size")], r=[1] * 4000, a=[1]
    ),
    "an empty list's other axis": lambda: by(
        *[node("Reshape", "e n", "b"), node("Shape", "b", "s"), node("Gather", "s o", "g")],
        *[node("ConstantOfShape", "g", "c"), node("ReduceSum", "c z", "size")],
        e=np.zeros(0),
        n=[0, HUGE],
        o=[1],
        z=[0],
    ),
    "a photo": lambda: model_of(
        [
            node("ReduceMax", "x", "m"),
            node("Cast", "m", "s", to=TensorProto.INT64),
            node("ConstantOfShape", "s", "features"),
        ]
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_size_that_only_large_tensors_could_tell_is_refused(name):
    assert "depends on more than shapes and constants" in refusal(LARGE[name]())


def test_sizes_from_shapes_are_allowed_as_exporters_write_them():
    """Shape arithmetic of an expanded class token, and of padding that depends on the input."""
    spread = [
        *[node("Shape", "x", "s"), node("Gather", "s zero", "b"), node("Unsqueeze", "b axis", "b1")],
        *[node("Concat", "b1 minus minus minus", "wanted", axis=0), node("Shape", "wanted", "n")],
        node("ConstantOfShape", "n", "ones", value=array("v", [1])),
        *[node("Mul", "ones minus", "marks"), node("Equal", "wanted marks", "any")],
        node("Where", "any ones wanted", "w"),
        *[node("Expand", "token w", "t"), node("Flatten", "t", "features", axis=1)],
    ]  # fmt: skip
    constants = [
        array("zero", 0),
        array("axis", [0]),
        array("minus", [-1]),
        array("token", [[[[2.0, 3.0]]]], np.float32),
    ]
    graph = check_graph(model_of(spread, constants).SerializeToString())
    assert Engine(graph)(np.zeros((1, 8, 8, 3), np.uint8))["features"].tolist() == [[2.0, 3.0]]


def updated(*sizes):
    """Photos spread over further axes."""
    return model_of(
        [node("Reshape", "x one", "y"), node("Expand", "y n", "big"), node("ReduceSum", "big", "features")],
        [array("one", [1, 192]), array("n", [*sizes, 192])],
    )


COSTLY = {
    "memory": (lambda: updated(2**22), "would take"),
    "memory beyond counting": (lambda: updated(2**40), "would take"),
    "work": (
        lambda: model_of(
            [
                node("Reshape", "x one", "y"),
                node("Expand", "y n", "a"),
                *[node("MatMul", f"a{i or ''} w", f"a{i + 1}") for i in range(80)],
                node("ReduceSum", "a80", "features"),
            ],
            [array("one", [1, 192]), array("n", [2**19, 192]), array("w", np.ones((192, 192)), np.float32)],
        ),
        "multiplications",
    ),
    "work before the first photo": (
        lambda: model_of(
            [
                *[node("Expand", "one n", "c"), node("MatMul", "c c", "d"), node("ReduceSum", "d", "s")],
                *[node("Flatten", "x", "flat", axis=1), node("Add", "flat s", "features")],
            ],
            [array("one", [[1.0]], np.float32), array("n", [2000, 2000])],
        ),
        "multiplications of constants",
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_take_too_much_is_refused_before_it_is_compiled(name):
    make, reason = COSTLY[name]
    graph = check_graph(make().SerializeToString())
    with pytest.raises((GraphError, RuntimeError), match=reason):
        Engine(graph)


def test_the_cost_of_a_network_is_counted(default_bundle, monkeypatch):
    """About 0.39 billion multiplications, as the paper of EfficientNet-Lite0 says."""
    import regraft.backbones.graph_cost as cost
    from regraft.backbones.engine import _core

    model = _core().read_model(default_bundle.graph)
    model.reshape({model.inputs[0]: [1, 224, 224, 3]})
    check_cost(model)
    for limit in ("MAX_WORK", "MAX_LIVE_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(cost, limit, {"MAX_WORK": 390e6, "MAX_LIVE_BYTES": 2**20}[limit])
            with pytest.raises(GraphError, match="one photo would take"):
                check_cost(model)
    monkeypatch.setattr(cost, "MAX_WORK", 450e6)
    check_cost(model)


def test_a_graph_that_does_not_look_at_the_photo_is_refused():
    model = model_of([node("Relu", "x", "features")], [array("k", [[1.0]], np.float32)])
    model.graph.node[0].input[0] = "k"
    with pytest.raises(GraphError, match="does not depend on the photo"):
        Engine(check_graph(model.SerializeToString()))
