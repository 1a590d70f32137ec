"""A graph in whole numbers of eight bits, by ONNX Runtime's quantiser: smaller, and faster on most processors.

Three kinds of nodes keep full precision, for they cost most of the accuracy and little of the time: the first
convolution, convolutions within single channels, and what lies behind the features.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.core.errors import MissingExtra

try:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
except ImportError as error:
    raise MissingExtra("onnxruntime", "export") from error

WEIGHTED = ["Conv", "MatMul", "Gemm"]


def quantised(model: Any, inputs: Sequence[np.ndarray]) -> Any:
    """Return an ONNX model in int8.

    Args:
        model: Takes `images` and has a tensor `features`; its nodes are given names.
        inputs: Photos, each `(H, W, 3)` uint8; eight bits are spread over what the numbers inside reach on them.
    """
    kept = _nodes_after(model.graph, "features")
    with tempfile.TemporaryDirectory(prefix="regraft-int8-") as folder:
        whole, plain, small = (Path(folder) / f"{name}.onnx" for name in ("whole", "plain", "small"))
        onnx.save(model, whole)
        quant_pre_process(whole, plain, skip_symbolic_shape=True)
        kept += _delicate(onnx.load(plain).graph)
        quantize_static(
            plain,
            small,
            _Inputs(inputs),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=WEIGHTED,
            nodes_to_exclude=kept,
            extra_options={"CalibMovingAverage": True},
        )
        return onnx.load(small)


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    """Photos one by one, as the quantiser asks for them."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"images": image[np.newaxis]}


def _nodes_after(graph: Any, tensor: str) -> list[str]:
    """Return the names of the nodes that depend on a tensor."""
    reached, names = {tensor}, []
    for number, node in enumerate(graph.node):
        node.name = node.name or f"node {number}"
        if reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


def _delicate(graph: Any) -> Iterator[str]:
    """Find the names of the first convolution, of those within single channels, and of products without a weight."""
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    is_first = True
    for node in graph.node:
        shape = next((shapes[name] for name in node.input[1:2] if name in shapes), None)
        is_convolution = node.op_type == "Conv"
        if node.op_type in WEIGHTED and (shape is None or (is_convolution and (is_first or shape[1] == 1))):
            yield node.name
        is_first = is_first and not is_convolution
