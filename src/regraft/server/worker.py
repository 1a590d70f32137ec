"""A process of its own for each core: photos in, answers out. What is wrong with a photo ends here at the worst."""

import json
import os
import resource
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from regraft.data.decode import Unreadable, decoded_size
from regraft.deliver.bundle import Bundle, load
from regraft.deliver.heatmap import heat_map
from regraft.ground.errors import DataError, RegraftError
from regraft.server.limits import Limits
from regraft.show.page import jpeg
from regraft.show.plots import heat_overlay

READY = b"ready"
HEAT_SIZE = 224  # pixels
TOO_LARGE = "it needs more memory than is allowed"
Answer = dict[str, Any]


@dataclass(frozen=True)
class Order:
    """with_heat: a heat map is wanted.  is_alone: no other photo is under way, so it may have all cores."""

    with_heat: bool
    is_alone: bool


def work(pipe: Connection, folder: Path, promises: dict[str, Any], limits: Limits) -> None:
    """Answer until the other end closes. promises: further arguments of `load`.

    First goes READY, or a sentence why there is no model. Then for each photo two messages come, JSON of an Order and
    the file's bytes, and one goes, JSON.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):  # of a terminal's or a service's whole group: who started us ends us
        signal.signal(signum, signal.SIG_IGN)
    os.nice(5)  # what hands out work goes first, or workers wait for it
    try:
        bundle = load(folder, **promises)
        for engine in (bundle.engine, bundle.quick_engine):
            engine(np.zeros((1, engine.height, engine.width, 3), np.uint8))
        _bound_memory(limits.worker_bytes)
        pipe.send_bytes(READY)
        while True:
            order, data = Order(**json.loads(pipe.recv_bytes())), pipe.recv_bytes()
            pipe.send_bytes(json.dumps(answer(bundle, data, order, limits.max_pixels)).encode())
    except RegraftError as error:
        pipe.send_bytes(str(error).encode())
    except (EOFError, OSError):
        return


def answer(bundle: Bundle, data: bytes, order: Order, max_pixels: int) -> Answer:
    """What the model says of a photo, as the API gives it; {"error": reason} for one that cannot be read."""
    try:
        width, height = decoded_size(data, max(bundle.preprocessing.resize))
        if width * height > max_pixels:
            return {"error": f"{width} x {height} pixels; at most {max_pixels / 1e6:.0f} megapixels are read"}
        image = bundle.to_input(data)
    except Unreadable as error:
        return {"error": str(error)}
    except DataError as error:
        reason = error.__cause__ or error
        return {"error": TOO_LARGE if isinstance(reason.__cause__, MemoryError) else str(reason)}
    except MemoryError:
        return {"error": TOO_LARGE}
    said = (bundle.quick_engine if order.is_alone else bundle.engine)(image[np.newaxis])
    novelty = float(said["novelty"][0]) if "novelty" in said else None
    prediction = bundle.to_prediction(said["logits"][0], novelty)
    found: Answer = prediction.to_json()
    if order.with_heat:
        heat = heat_map(bundle, image, bundle.classes.index(prediction.label))
        found["heatmap"] = jpeg(heat_overlay(image, heat), HEAT_SIZE)
    return found


def _bound_memory(more: int) -> None:
    """No more address space than is in use now and `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
