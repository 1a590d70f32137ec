"""Signed square roots of features, of unit length: surgery on a graph, for which torch is not needed.

A few large features drown the others in a sum of products; roots bring them closer together, and a common length takes
away how strongly a photo answers as a whole. Zeros stay zeros and signs stay signs.

References:
    F. Perronnin et al., "Improving the Fisher kernel for large-scale image classification", ECCV 2010.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from regraft.backbones.engine import BEFORE_ROOTS
from regraft.backbones.features import LEAST_SUM


def with_root_layer(graph: Path) -> tuple[bytes, int]:
    """Extend a graph so that its features are signed square roots of those it had, divided by their length.

    Args:
        graph: The ONNX file.

    Returns:
        An ONNX file that computes what `backbones.features.roots` does; and how many features it has.
    """
    model = onnx.load(str(graph))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [BEFORE_ROOTS if name == "features" else name for name in names]
    constants = {"roots/axis": np.array([1], np.int64), "roots/least": np.array([LEAST_SUM], np.float32)}
    steps = (
        helper.make_node("Abs", [BEFORE_ROOTS], ["roots/sizes"]),
        helper.make_node("ReduceSum", ["roots/sizes", "roots/axis"], ["roots/sum"], keepdims=1),
        helper.make_node("Max", ["roots/sum", "roots/least"], ["roots/positive"]),
        helper.make_node("Div", ["roots/sizes", "roots/positive"], ["roots/shares"]),
        helper.make_node("Sqrt", ["roots/shares"], ["roots/roots"]),
        helper.make_node("Sign", [BEFORE_ROOTS], ["roots/signs"]),
        helper.make_node("Mul", ["roots/signs", "roots/roots"], ["features"]),
    )
    model.graph.node.extend(steps)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    (output,) = model.graph.output
    return bytes(model.SerializeToString(deterministic=True)), int(output.type.tensor_type.shape.dim[1].dim_value)
