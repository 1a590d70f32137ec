"""A bundle as files of other runtimes: the same graph, with probabilities at its end."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from regraft.backbones.engine import openvino_model, save
from regraft.bundle.bundle import Bundle
from regraft.core.version import __version__


def onnx_model(bundle: Bundle) -> Any:
    """Return the bundle's graph with probabilities among its outputs, as an ONNX model.

    It takes `images (B, H, W, 3)` uint8 and gives `probabilities (B, C)`, `logits (B, C)` and, where the bundle has it,
    `novelty (B,)`. The bundle's temperature is inside; classes, preprocessing and thresholds are in the metadata.
    """
    manifest = bundle.manifest
    model = onnx.load_from_string(bundle.graph)
    graph = model.graph
    temperature = np.array([manifest["temperature"]], np.float32)
    graph.initializer.append(numpy_helper.from_array(temperature, "temperature"))
    graph.node.append(helper.make_node("Div", ["logits", "temperature"], ["calm"]))
    graph.node.append(helper.make_node("Softmax", ["calm"], ["probabilities"], axis=1))
    (features,) = (output for output in graph.output if output.name == "features")
    graph.output.remove(features)
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", len(bundle.classes)])
    graph.output.insert(0, probabilities)
    helper.set_model_props(model, metadata(bundle, "f32"))
    return model


def metadata(bundle: Bundle, precision: str) -> dict[str, str]:
    """Return what a user of the exported file has to know, as text by name.

    Args:
        bundle: The model.
        precision: "f32" or "int8".
    """
    manifest = bundle.manifest
    return {
        "classes": json.dumps(list(bundle.classes)),
        "preprocessing": json.dumps(manifest["preprocessing"]),
        "thresholds": json.dumps(manifest["thresholds"]),
        "precision": precision,
        "regraft": __version__,
    }


def write_onnx(bundle: Bundle, path: Path, ranges: Sequence[np.ndarray] = ()) -> None:
    """Write a bundle as one ONNX file.

    Args:
        bundle: The model.
        path: Of the file.
        ranges: Inputs, each `(H, W, 3)` uint8, for a model in int8; none for one in full precision.

    Raises:
        MissingExtra: onnxruntime, which int8 needs, is not installed.
    """
    path.write_bytes(_bytes(bundle, ranges))


def write_openvino(bundle: Bundle, path: Path, ranges: Sequence[np.ndarray] = ()) -> None:
    """Write a bundle as OpenVINO's .xml and, beside it, .bin.

    Args:
        bundle: The model.
        path: Of the .xml file.
        ranges: Inputs, each `(H, W, 3)` uint8, for a model in int8; none for one in full precision.

    Raises:
        MissingExtra: onnxruntime, which int8 needs, is not installed.
    """
    model = openvino_model(_bytes(bundle, ranges))
    for name, text in metadata(bundle, "int8" if ranges else "f32").items():
        model.set_rt_info(text, ["regraft", name])
    save(model, path)


def _bytes(bundle: Bundle, ranges: Sequence[np.ndarray]) -> bytes:
    model = onnx_model(bundle)
    if ranges:
        from regraft.exporters.quantization import quantised  # takes onnxruntime along

        model = quantised(model, ranges)
        helper.set_model_props(model, metadata(bundle, "int8"))
    return bytes(model.SerializeToString(deterministic=True))
