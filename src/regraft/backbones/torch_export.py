"""A bundle's network as a program of torch: photos to probabilities, in one file that torch alone reads."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.backbones import network as networks
from regraft.backbones.network import Network, Normalise
from regraft.backbones.torch_defaults import torch_defaults


class Program(nn.Module):
    """A module from photos `(B, H, W, 3)` uint8 to probabilities `(B, C)` float32."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.normalise = Normalise(network.preprocessing)
        self.network = network.module
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Compute the probabilities of a batch."""
        logits = cast(Tensor, self.network(self.normalise(images.permute(0, 3, 1, 2))))
        return (logits / self.temperature).softmax(dim=1)


@torch_defaults()
def write_program(
    manifest: dict[str, Any], config: dict[str, Any], weights: Path, head: tuple[np.ndarray, np.ndarray], path: Path
) -> None:
    """Write a bundle as `torch.export`'s file, batch size free.

    Args:
        manifest: The bundle's.
        config: What its config.json holds.
        weights: A copy of its model.safetensors.
        head: Weight `(C, D)` and bias `(C,)` of its last layer, float32.
        path: The file to write.
    """
    info = {**manifest["backbone"], "preprocessing": manifest["preprocessing"], "config": config}
    network = networks.restore(info, weights)
    weight, bias = (torch.tensor(values) for values in head)
    program = Program(networks.with_new_head(network, weight, bias), manifest["temperature"]).eval()
    p = network.preprocessing
    example = torch.zeros((2, p.height, p.width, 3), dtype=torch.uint8)
    with torch.no_grad():
        exported = torch.export.export(program, (example,), dynamic_shapes={"images": {0: torch.export.Dim("B")}})
    torch.export.save(exported, path)
