"""A bundle of a few kilobytes, whole in every respect: for tests that load thousands."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from regraft.bundle.write import seal

CLASSES = ("blue", "green", "red")
SIDE = 8  # pixels


def write_tiny(folder: Path, classes: tuple[str, ...] = CLASSES, **values: Any) -> Path:
    """One convolution, a mean, and a head that tells colours apart. values: others than usual in its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    weight, bias = head(len(classes))
    (folder / "model.onnx").write_bytes(network(weight, bias, classes))
    tensors = {"conv.weight": filters(), "fc.weight": weight, "fc.bias": bias}
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / "config.json").write_text("{}")
    seal(folder, {**manifest(classes), **values})
    return folder


def filters() -> np.ndarray:
    """`(4, 3, 3, 3)` float32."""
    return np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)


def head(num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weight `(C, 4)` and bias `(C,)` float32."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(num_classes, 4)).astype(np.float32), rng.normal(size=num_classes).astype(np.float32)


def network(weight: np.ndarray, bias: np.ndarray, classes: tuple[str, ...]) -> bytes:
    """An ONNX file such as a training writes."""
    import json

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "conv"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["map"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], transB=1),
    ]
    constants = {"scale": np.array([255.0], np.float32), "conv": filters(), "head.weight": weight, "head.bias": bias}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", len(bias)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"classes": json.dumps(list(classes))})
    return bytes(model.SerializeToString(deterministic=True))


def manifest(classes: tuple[str, ...]) -> dict[str, Any]:
    """What a frozen training writes, without hashes and seal."""
    rows = [{"class": name, "n": 2, "precision": 1.0, "recall": 1.0, "f1": 1.0} for name in classes]
    accuracy = {"value": 1.0, "low": 0.6, "high": 1.0, "n": 2 * len(classes), "split": "val"}
    return {
        "format": 2,
        "classes": list(classes),
        "preprocessing": {
            "height": SIDE,
            "width": SIDE,
            "resize": [SIDE, SIDE],
            "interpolation": "bilinear",
            "crop_mode": "center",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "precision": "f32",
        "temperature": 1.5,
        "thresholds": {"n": 6, "max_error": [[0.3, 0.5, 1.0]], "coverage": [[0.8, 0.4]]},
        "heads": {"fc": []},
        "metrics": {
            "accuracy": accuracy,
            "macro_f1": 1.0,
            "confusion": (2 * np.eye(len(classes), dtype=int)).tolist(),
            "per_class": rows,
        },
        "backbone": {
            "name": "timm/resnet18",
            "num_features": 4,
            "num_params": 128,
            "licence": "mit",
            "origin": "drawn",
            "loaded": None,
            "bf16_agreement": None,
            "levels": False,
            "graph_sha256": "0" * 64,
        },
        "provenance": {
            "mode": "frozen",
            "config": {"seed": 0},
            "data_sha256": "1" * 64,
            "images": {"found": 30, "used": 30, "quarantined": 0},
            "split": {"given": False, "train": 24, "judged": 6},
            "versions": {"python": "3.11"},
        },
    }
