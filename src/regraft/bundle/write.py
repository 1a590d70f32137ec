"""Write a backbone's graph and a head as a bundle's files. Needs no torch: the head is one Gemm more."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save

from regraft.backbones.backbone import Backbone, is_derived
from regraft.bundle.format import FILES, FORMAT, MANIFEST, seal_manifest, special_features
from regraft.bundle.model_card import card
from regraft.core.files import json_bytes, sha256_file, write_atomic
from regraft.core.runtime import environment
from regraft.data.transforms import Preprocessing
from regraft.models.ood import LEAST, OodDetector

OTHER_SIZES = ("test_input_size", "test_crop_pct", "min_input_size", "pool_size")  # of what timm states of a network


def write_model(
    folder: Path,
    backbone: Backbone,
    weight: np.ndarray,
    bias: np.ndarray,
    classes: tuple[str, ...],
    ood: OodDetector | None = None,
) -> None:
    """Write model.onnx, model.safetensors and config.json.

    Args:
        folder: Of the bundle.
        backbone: The network below the head.
        weight: `(C, D)` float32.
        bias: `(C,)` float32.
        classes: Names of the C classes.
        ood: Where the features of the photos that were learned from lie; None for a model that cannot say what is
            unlike them.
    """
    write_atomic(folder / "model.onnx", _with_head(backbone, weight, bias, classes, ood))
    write_atomic(folder / "model.safetensors", _weights(backbone, weight, bias))
    config = {**_library_config(backbone), "num_classes": len(classes), "label_names": list(classes)}
    write_atomic(folder / "config.json", json_bytes(config))


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the card, and last the manifest with the hash of every file: from now on the bundle loads."""
    write_atomic(folder / "README.md", card(manifest).encode())
    hashes = {name: sha256_file(folder / name) for name in FILES}
    write_atomic(folder / MANIFEST, json_bytes(seal_manifest({**manifest, "sha256": hashes})))


def manifest_of(
    backbone: Backbone,
    classes: tuple[str, ...],
    temperature: float,
    thresholds: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Make a manifest without metrics and hashes.

    Args:
        backbone: The network below the head.
        classes: Names of the classes.
        temperature: What divides the logits.
        thresholds: As `models.calibration.thresholds` gives them.
        provenance: Where the model comes from, without versions.
    """
    info = backbone.info
    return {
        "format": FORMAT,
        "classes": list(classes),
        "preprocessing": info["preprocessing"],
        "precision": backbone.precision,
        "temperature": temperature,
        "thresholds": thresholds,
        "heads": info["heads"],
        "metrics": {},
        "backbone": {
            **{key: info[key] for key in ("name", "num_features", "num_params", "licence", "origin", "loaded")},
            "bf16_agreement": info["bf16_agreement"],
            **_features_in(info),
            "graph_sha256": backbone.graph_sha256,
        },
        "provenance": {**provenance, "versions": environment()},
    }


def _features_in(info: dict[str, Any]) -> dict[str, bool]:
    """Return which features beyond a network's own a backbone has, as the manifest says it."""
    return {name: name in info for name in ("levels", "roots")}


def _library_config(backbone: Backbone) -> dict[str, Any]:
    """Return what builds the network in its own library, with an input as the bundle takes it."""
    config, p = backbone.info["config"], backbone.preprocessing
    if is_derived(backbone.info):
        special = " and ".join(special_features(_features_in(backbone.info)))
        return {**config, "note": f"Features: {special}; only model.onnx computes them, and no library builds it."}
    if "pretrained_cfg" not in config:
        return dict(config)
    stated = {key: value for key, value in config["pretrained_cfg"].items() if key not in OTHER_SIZES}
    actual = {
        "input_size": (3, p.height, p.width),
        "interpolation": p.interpolation,
        "crop_pct": _crop_pct(p, float(stated.get("crop_pct") or 1.0)),
        "crop_mode": p.crop_mode,
        "mean": p.mean,
        "std": p.std,
    }
    return {**config, "pretrained_cfg": {**stated, **actual}}


def _crop_pct(p: Preprocessing, stated: float) -> float:
    """Return the share of the resized photo that is kept, from which timm's rounding makes just this size to resize to.

    The network's own, `stated`, is taken where it does.
    """
    sides = tuple(zip((p.height, p.width), p.resize, strict=True))
    upper = min(size / resize for size, resize in sides)
    middle = max(size / (resize + 0.5) for size, resize in sides)
    fits = (c for c in (stated, upper, middle) if all(int(size / c) == resize for size, resize in sides))
    return next(fits, middle)


def _with_head(
    backbone: Backbone, weight: np.ndarray, bias: np.ndarray, classes: tuple[str, ...], ood: OodDetector | None
) -> bytes:
    model = onnx.load(str(backbone.graph))
    graph = model.graph
    graph.initializer.extend(
        [numpy_helper.from_array(weight, "head.weight"), numpy_helper.from_array(bias, "head.bias")]
    )
    graph.node.append(helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], transB=1))
    graph.output.insert(0, helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", len(weight)]))
    if ood is not None:
        _add_novelty(graph, ood)
    helper.set_model_props(model, {"classes": json.dumps(list(classes))})
    return bytes(model.SerializeToString(deterministic=True))


def _add_novelty(graph: Any, ood: OodDetector) -> None:
    """Add `OodDetector.novelty` as an output `(B,)`, in operators that every version of ONNX writes alike."""
    constants = {
        "ones": np.ones((len(ood.mean), 1), np.float32),
        "least": np.array([LEAST], np.float32),
        "mean": ood.mean,
        "axes": ood.axes,
        "columns": np.ascontiguousarray(ood.axes.T),
        "limit": np.array([ood.limit], np.float32),
        "row": np.array([-1], np.int64),
    }
    steps = (
        ("Mul", "features", "features", "squares"),
        ("MatMul", "squares", "ones", "square"),
        ("Sqrt", "square", "", "length"),
        ("Max", "length", "least", "positive"),
        ("Div", "features", "positive", "unit"),
        ("Sub", "unit", "mean", "centred"),
        ("MatMul", "centred", "columns", "along"),
        ("MatMul", "along", "axes", "inside"),
        ("Sub", "centred", "inside", "outside"),
        ("Mul", "outside", "outside", "outside squares"),
        ("MatMul", "outside squares", "ones", "outside square"),
        ("Sqrt", "outside square", "", "distance"),
        ("Div", "distance", "limit", "column"),
        ("Reshape", "column", "row", "novelty"),
    )
    given = {"features", "novelty"}
    graph.initializer.extend(numpy_helper.from_array(value, f"novelty/{name}") for name, value in constants.items())
    for kind, *inputs, output in steps:
        names = [name if name in given else f"novelty/{name}" for name in (*filter(None, inputs), output)]
        graph.node.append(helper.make_node(kind, names[:-1], names[-1:]))
    graph.output.append(helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["B"]))


def _weights(backbone: Backbone, weight: np.ndarray, bias: np.ndarray) -> bytes:
    state = load_file(backbone.trunk)
    for name, tail in backbone.info["heads"].items():  # a head may be a 1x1 convolution: the same numbers, more axes
        state[f"{name}.weight"] = weight.reshape(*weight.shape, *tail)
        state[f"{name}.bias"] = bias
    return bytes(save(state, metadata={"format": "pt"}))
