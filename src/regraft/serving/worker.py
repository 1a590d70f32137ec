"""A process of its own for each core: photos in, answers out. The worst that a photo can do is to end this process."""

import ctypes
import io
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from regraft.bundle.bundle import Bundle, load
from regraft.bundle.heatmap import heat_map
from regraft.core.errors import BundleError, DataError, RegraftError
from regraft.data.decode import Unreadable, decoded_size
from regraft.reporting.page import jpeg
from regraft.reporting.plots import heat_overlay
from regraft.serving.limits import MEGA
from regraft.serving.messages import (
    Answered,
    Channel,
    NoModel,
    Ping,
    Pong,
    Ready,
    Start,
    WorkerAnswer,
    WorkItem,
    decode_message,
    encode,
    limits_of,
)

HEAT_SIZE = 224  # pixels
TOO_LARGE = "it needs more memory than is allowed"
FAILED = "something went wrong here; the server's log says what"
NO_NUMBER = "the model's answer to it is no number"
MAX_FILE = 4096 * MEGA  # no photo is so large: the server has refused it
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Work for the process at the other end of the socket whose number is the first argument."""
    with suppress(EOFError, OSError, KeyboardInterrupt):  # the server is gone
        work(Channel(socket.socket(fileno=int(sys.argv[1]))))


def work(channel: Channel) -> None:
    """Answer until the other end closes; see `messages` for what is said."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a terminal's or a service's whole group
        signal.signal(signum, signal.SIG_IGN)
    start = decode_message(channel.receive())
    assert isinstance(start, Start)
    _end_with(start.parent)
    os.nice(5)  # what hands out work goes first, or workers wait for it
    limits = limits_of(start)
    try:
        bundle = load(start.folder, expected_sha256=start.sha256, **start.load_options)
        warm_up(bundle)
    except RegraftError as error:
        channel.send(encode(NoModel(str(error))))
        return
    except Exception as error:
        traceback.print_exc()
        channel.send(encode(NoModel(f"The model cannot be run: {type(error).__name__}: {str(error)[:200]}.")))
        return
    _bound_memory(limits.worker_bytes)
    channel.send(encode(Ready()))
    while True:
        message = decode_message(channel.receive())
        if isinstance(message, Ping):
            channel.send(encode(Pong()))
        elif isinstance(message, WorkItem):
            data = channel.receive(max_bytes=MAX_FILE)
            channel.send(encode(Answered(guarded_answer(bundle, data, message, limits.max_pixels))))


def warm_up(bundle: Bundle) -> None:
    """Answer a photo with each engine, so that what is wrong with the model shows before anyone asks.

    Raises:
        BundleError: The model does not answer.
    """
    photo = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(photo, "PNG")
    for is_alone in (False, True):
        reply = answer(bundle, photo.getvalue(), WorkItem(with_heat=False, is_alone=is_alone), 64 * 64)
        if "error" in reply:
            raise BundleError(f"{bundle.folder} cannot answer: {reply['error']}. Train again or restore a copy.")


def guarded_answer(bundle: Bundle, data: bytes, item: WorkItem, max_pixels: int) -> WorkerAnswer:
    """Answer as `answer` does; whatever goes wrong is an error of this photo, and of nothing else."""
    try:
        return answer(bundle, data, item, max_pixels)
    except MemoryError:
        return {"error": TOO_LARGE}
    except RegraftError as error:
        return {"error": str(error)}
    except Exception:
        with suppress(Exception):  # there may be nowhere to tell it
            traceback.print_exc()
        return {"error": FAILED}


def answer(bundle: Bundle, data: bytes, item: WorkItem, max_pixels: int) -> WorkerAnswer:
    """Return what the model says of a photo, as the API gives it; {"error": reason} for one that cannot be read.

    Args:
        bundle: The model.
        data: Bytes of the photo's file.
        item: What is wanted of it.
        max_pixels: That a photo may have, as it is decoded.
    """
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
    outputs = (bundle.quick_engine if item.is_alone else bundle.engine)(image[np.newaxis])
    novelty = float(outputs["novelty"][0]) if "novelty" in outputs else None
    if not np.isfinite(outputs["logits"]).all() or not np.isfinite(novelty or 0.0):
        return {"error": NO_NUMBER}
    prediction = bundle.to_prediction(outputs["logits"][0], novelty)
    reply: WorkerAnswer = prediction.to_json()
    if item.with_heat:
        heat = heat_map(bundle, image, bundle.classes.index(prediction.label))
        reply["heatmap"] = jpeg(heat_overlay(image, heat), HEAT_SIZE)
    return reply


def _end_with(parent: int) -> None:
    """Let this process be ended with the thread that started it, in the middle of a photo too; it may be gone already.

    Linux alone has this; elsewhere a worker ends when it has answered and finds nobody at the other end.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise EOFError("the server is gone")


def _bound_memory(more: int) -> None:
    """Allow no more address space than is in use now and `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
