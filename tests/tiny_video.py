"""Short videos without loss: their frames are, to the bit, the pictures they were made of."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def write_video(path: Path, frames: Sequence[np.ndarray], rate: int) -> None:
    """Write frames `(H, W, 3)` uint8, so many a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
