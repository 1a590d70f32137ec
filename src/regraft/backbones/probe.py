"""Inputs that a network is tried with before it is used."""

import numpy as np
from PIL import Image

GRID = 7  # colours along each side, between which the rest is interpolated


def probe_images(height: int, width: int, count: int = 2) -> np.ndarray:
    """Draw smooth coloured noise: always the same, and nearer to photos than white noise.

    Args:
        height: Pixels.
        width: Pixels.
        count: How many images.

    Returns:
        `(count, H, W, 3)` uint8.
    """
    coarse = np.random.default_rng(0).uniform(0, 255, (count, 3, GRID, GRID)).astype(np.float32)
    smooth = [
        [np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)) for channel in image]
        for image in coarse
    ]
    return np.ascontiguousarray(np.stack(smooth).clip(0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1))
