"""A backbone's features computed by torch, for machines with a GPU."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regraft.backbones import network as networks
from regraft.backbones.network import FeatureGraph
from regraft.core.memory import in_pieces
from regraft.core.progress import QUIET


@contextmanager
def _single_precision() -> Iterator[None]:
    """Switch off TF32, which training may have switched on: what is kept must not depend on what ran before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class TorchEngine:
    """A backbone on a torch device. Safe to call from many threads: decoding overlaps, batches take turns.

    Args:
        info: Content of backbone.json.
        trunk: The weights beside it.
        device: In torch's words.
    """

    batch_size = 32

    def __init__(self, info: dict[str, Any], trunk: Path, device: str) -> None:
        self._graph = FeatureGraph(networks.restore(info, trunk)).eval().to(device)
        self._device = device
        self._lock = threading.Lock()

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return `{"features": (B, D) float32}` of `images (B, H, W, 3)` uint8."""
        with self._lock:
            features, _ = in_pieces(len(images), partial(self._features, images), QUIET)
            return {"features": features}

    @torch.inference_mode()
    def _features(self, images: np.ndarray, size: int) -> np.ndarray:
        with _single_precision():
            return self._computed(images, size)

    def _computed(self, images: np.ndarray, size: int) -> np.ndarray:
        parts = torch.split(torch.tensor(images, device=self._device), size)
        return torch.cat([self._graph(part).float() for part in parts]).cpu().numpy()
