"""The default network as it comes with regraft, so that it needs neither torch nor a download.

    pretrained/<name>.safetensors   its weights under timm's own names, head left out
    pretrained/<name>.onnx          its graph as it was traced, without the weights
    pretrained/<name>.json          what backbone.json says, and which layers the graph has joined

Exporting a network joins each convolution with the BatchNorm behind it, so the graph's weights follow from the
network's, and 13 MB instead of 27 are shipped. Whoever trains by gradient descent uses the same files: the features,
and so the bytes of a model, do not depend on whether torch is installed. Made by `tools/package_backbone.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from regraft.backbones.catalog import DEFAULT
from regraft.core.errors import WeightsError
from regraft.core.files import sha256_file, sha256_json
from regraft.data.transforms import Preprocessing

FOLDER = Path(__file__).parent / "pretrained"
TRUNK, STRUCTURE, DESCRIPTION = (FOLDER / f"{DEFAULT}{suffix}" for suffix in (".safetensors", ".onnx", ".json"))


def is_packaged(name: str, weights: str | None) -> bool:
    """Tell whether a backbone by this name and with these weights is the one that comes with regraft."""
    return weights is None and name.removeprefix("timm/") == DEFAULT


def packaged_key(size: int | None) -> str:
    """Return the name of the default backbone's folder in the cache.

    Args:
        size: Height of the input in pixels, None for the network's own.

    Raises:
        WeightsError: The description in the installation cannot be read.
    """
    return sha256_json([_description(), size])[:32]


def packaged_graph(size: int | None) -> bytes:
    """Build the ONNX file that gives features, weights inside.

    Args:
        size: Height of the input in pixels, None for the network's own. The graph computes its padding from what it is
            given, so any size does.

    Returns:
        The same bytes on every machine.

    Raises:
        WeightsError: The files of the installation are damaged.
    """
    import onnx
    from onnx import numpy_helper

    description = _intact_description()
    model, tensors = onnx.load(str(STRUCTURE)), load_file(TRUNK)
    for convolution, norm, weight, bias in description["joined"]:
        values = folded(tensors, convolution, norm, description["epsilon"])
        for name, value in zip((weight, bias), values, strict=True):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    if size is not None:
        input_shape = Preprocessing.from_json(description["info"]["preprocessing"]).scaled(size)
        _, height, width, _ = model.graph.input[0].type.tensor_type.shape.dim
        height.dim_value, width.dim_value = input_shape.height, input_shape.width
    return bytes(model.SerializeToString(deterministic=True))


def packaged_info(size: int | None) -> dict[str, Any]:
    """Return what backbone.json says, but for what this machine adds.

    Args:
        size: Height of the input in pixels, None for the network's own.

    Raises:
        WeightsError: The description in the installation cannot be read.
    """
    info: dict[str, Any] = _description()["info"]
    if size is not None:
        info["preprocessing"] = Preprocessing.from_json(info["preprocessing"]).scaled(size).to_json()
    return info


def folded(
    tensors: dict[str, np.ndarray], convolution: str, norm: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute weight and bias of a convolution that does what it and the BatchNorm behind it do.

    Args:
        tensors: Of the network, by name.
        convolution: Name of the layer, which has no bias of its own.
        norm: Name of the BatchNorm.
        epsilon: What the BatchNorm adds to the variance.

    Returns:
        `(K, C, h, w)` and `(K,)`, float32. Every step is one that IEEE 754 rounds in one way only.
    """
    gain, shift, mean, variance = (
        tensors[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + np.float32(epsilon))
    return tensors[f"{convolution}.weight"] * scale[:, None, None, None], shift - mean * scale


def _intact_description() -> dict[str, Any]:
    """Return the description, once the files that it speaks of have the content that it states."""
    description = _description()
    for path in (TRUNK, STRUCTURE):
        if not path.is_file() or sha256_file(path) != description["sha256"][path.name]:
            raise WeightsError(
                f"{path} is not as regraft was published. Install it anew: pip install --force-reinstall regraft"
            )
    return description


def _description() -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{DESCRIPTION} cannot be read. Install regraft anew.") from error
    return description
