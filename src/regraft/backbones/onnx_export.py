"""A network to an ONNX graph that gives its features, checked against the network before anyone uses it."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save_file

from regraft.backbones import network as networks
from regraft.backbones.backbone import FORMAT, intact, seal_info, tracing_identity
from regraft.backbones.engine import Engine, best_precision
from regraft.backbones.network import FeatureGraph, Network, check_linear
from regraft.backbones.onnx_check import check_graph
from regraft.backbones.probe import probe_images
from regraft.backbones.torch_defaults import torch_defaults
from regraft.core.errors import BackboneError, RegraftError
from regraft.core.files import (
    json_bytes,
    published,
    replace_any,
    sha256_bytes,
    sha256_file,
    sha256_json,
    write_atomic,
)
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import environment

MAX_DIFFERENCE = 1e-3  # of engine and torch, relative to the features' spread
LEAST_SPREAD = 1e-3  # of features beside their size: of what is more alike, rounding is a larger share


@torch_defaults()
def trace(
    graphs: Path,
    name: str,
    weights: str | None,
    *,
    offline: bool,
    seed: int,
    size: int | None = None,
    progress: Progress = QUIET,
) -> str:
    """Build a network and trace it into `graphs/<key>/`, unless it is there already.

    Args:
        graphs: The folder of the cache.
        name: As `regraft backbones` lists it.
        weights: None for the library's pretrained weights, "random", or the path of a file.
        offline: Whether no weights may be fetched.
        seed: Of random weights.
        size: Height of the input in pixels, None for the network's own.
        progress: Is told what is done.

    Returns:
        The key: a hash of network, weights and preprocessing.

    Raises:
        BackboneError: The network takes no input of that size, or is unknown or unusable.
        WeightsError: The weights are not on this machine, damaged, or of another network.
    """
    network = networks.build(name, weights, offline=offline, seed=seed)
    if size is not None:
        network = replace(network, preprocessing=network.preprocessing.scaled(size))
    else:
        _say(network, progress)
    key = _key(network)
    with FileLock(graphs / f"{key}.lock"):  # processes that start together trace once
        if not intact(graphs / key):
            with published(graphs / key, replace_any) as folder:
                try:
                    trace_into(folder, network)
                except Exception as error:  # networks and exporters raise errors of every kind
                    if size is None or isinstance(error, (RegraftError, OSError)):
                        raise
                    raise BackboneError(f"{network.reference} takes inputs of its own size alone.") from error
    return key


@torch_defaults()
def trace_into(folder: Path, network: Network) -> None:
    """Write graph, weights and description of a network, head left out, into an empty folder.

    Args:
        folder: The empty folder.
        network: With its head on.

    Raises:
        BackboneError: The network does not end in one linear layer, or gives other features in the engine than in
            torch.
    """
    images = probe_images(network.preprocessing.height, network.preprocessing.width)
    graph = FeatureGraph(network).eval()
    expected = check_linear(network, graph, torch.from_numpy(images)).numpy()
    export(graph, images, folder / "features.onnx")
    _check_engine(folder / "features.onnx", images, expected, network)
    _save_trunk(network, folder / "trunk.safetensors")
    write_atomic(folder / "backbone.json", json_bytes(seal_info(_info(network, images, folder))))


def export(graph: torch.nn.Module, images: np.ndarray, path: Path) -> None:
    """Write the ONNX file, batch size free.

    The exporter by tracing takes 0.8 s where the one by torch.export takes 10 s, so the latter is kept for networks
    that the first cannot translate, or not into a plain graph.

    Args:
        graph: Takes `images (B, H, W, 3)` uint8 and gives `features`.
        images: `(B, H, W, 3)` uint8, to trace it with.
        path: The file to write.
    """
    example = torch.from_numpy(images)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["features"]}
    batch = {"images": {0: "B"}, "features": {0: "B"}}
    # The first switches its log on and never off again, so it would print a network that it fails at to stdout.
    with warnings.catch_warnings(), patch.object(torch._C, "_jit_set_onnx_log_enabled", create=True):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(graph, (example,), str(path), dynamo=False, dynamic_axes=batch, **names)
            check_graph(path.read_bytes())
        except Exception:  # an operator without a translation, branches, or a torch without this exporter
            shapes = ({0: torch.export.Dim("B")},)
            names |= {"dynamic_shapes": shapes, "verbose": False, "external_data": False}  # one file holds all weights
            torch.onnx.export(graph, (example,), str(path), dynamo=True, **names)


def _key(network: Network) -> str:
    tensors = {name: tensor_hash(value) for name, value in network.module.state_dict().items()}
    what = [FORMAT, tracing_identity(), str(network.reference), network.preprocessing.to_json(), tensors]
    return sha256_json(what)[:32]


def tensor_hash(value: torch.Tensor) -> list[str]:
    """Return dtype, shape and SHA-256 of a tensor's content."""
    content = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return [str(value.dtype), str(tuple(value.shape)), sha256_bytes(content.tobytes())]


def _check_engine(path: Path, images: np.ndarray, expected: np.ndarray, network: Network) -> None:
    spread = max(float(expected.std()), LEAST_SPREAD * float(np.abs(expected).max()), 1e-6)
    difference = np.abs(Engine(path)(images)["features"] - expected).max() / spread
    if not difference <= MAX_DIFFERENCE:
        raise BackboneError(
            f"{network.reference} gives other features in the engine than in torch (relative difference "
            f"{difference:.1e}, expected at most {MAX_DIFFERENCE:.0e}). Choose another backbone."
        )


def _save_trunk(network: Network, path: Path) -> None:
    in_head = tuple(f"{head}." for head in network.heads)
    state = {name: value for name, value in network.module.state_dict().items() if not name.startswith(in_head)}
    save_file({name: value.clone().contiguous() for name, value in state.items()}, path, metadata={"format": "pt"})


def _info(network: Network, images: np.ndarray, folder: Path) -> dict[str, Any]:
    precision, agreement = best_precision(folder / "features.onnx", images)
    heads = {head: network.module.get_submodule(head) for head in network.heads}
    return {
        "format": FORMAT,
        "name": str(network.reference),
        "library": network.reference.library,
        "architecture": network.reference.architecture,
        "num_features": network.num_features,
        "num_params": sum(parameter.numel() for parameter in network.module.parameters()),
        "heads": {name: list(cast(torch.Tensor, layer.weight).shape[2:]) for name, layer in heads.items()},
        "preprocessing": network.preprocessing.to_json(),
        "licence": network.licence,
        "origin": network.origin,
        "loaded": None if network.loaded is None else str(network.loaded),
        "precision": precision,
        "bf16_agreement": agreement,
        "config": _config(network),
        "versions": environment(),
        "sha256": {name: sha256_file(folder / name) for name in ("features.onnx", "trunk.safetensors")},
    }


def _config(network: Network) -> dict[str, Any]:
    """Return timm's config.json without the classes; for torchvision, the names that build the network again."""
    if network.reference.library != "timm":
        return {"library": network.reference.library, "architecture": network.reference.architecture}
    module: Any = network.module
    p = network.preprocessing
    pretrained = {key: value for key, value in module.pretrained_cfg.items() if _is_json(value) and value is not None}
    for source in ("url", "hf_hub_id", "hf_hub_filename", "file", "source", "custom_load", "label_offset"):
        pretrained.pop(source, None)
    return {
        "architecture": network.reference.architecture,
        "num_features": module.num_features,
        "pretrained_cfg": {**pretrained, "mean": p.mean, "std": p.std, "interpolation": p.interpolation},
    }


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _say(network: Network, progress: Progress) -> None:
    progress.say(f"backbone {network.reference}: {network.loaded or network.origin}; from {network.origin}")
    progress.say(f"  {network.preprocessing}")
