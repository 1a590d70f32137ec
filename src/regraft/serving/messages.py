"""What the server and its workers say to each other: frames of bounded size, messages of known kinds, and nothing else.

The parent says `Start`, then for each photo a `WorkItem` and the file's bytes, or `Ping`. A worker says `Ready` or
`NoModel`, then an `Answered` for each photo, or `Pong`. All are JSON: what a worker sends may have been made by a photo
that took it over, so nothing of it is run, and what is not exactly as described is refused as `Garbled`.
"""

import json
import math
import socket
import struct
import time
from dataclasses import asdict, dataclass
from typing import Any

from regraft.serving.limits import Limits

LENGTH = struct.Struct("!Q")
MAX_MESSAGE = 16 * 2**20  # bytes: the probabilities of 100,000 classes and a heat map
WorkerAnswer = dict[str, Any]
ANSWER_FIELDS = {"label", "probability", "probabilities", "novelty", "looks_new", "unsure", "labels", "heatmap"}


class Garbled(Exception):
    """What came is no message, or not one that is due."""


@dataclass(frozen=True)
class Start:
    """What a worker begins with.

    Attributes:
        folder: Of the model.
        sha256: That the model must have.
        load_options: Further arguments of `load`.
        limits: Of the server.
        parent: Process number of the server.
    """

    folder: str
    sha256: str
    load_options: dict[str, Any]
    limits: dict[str, Any]
    parent: int


@dataclass(frozen=True)
class WorkItem:
    """What is wanted of the photo whose bytes follow.

    Attributes:
        with_heat: Whether a heat map is wanted.
        is_alone: Whether no other photo is under way, so that this one may have all cores.
    """

    with_heat: bool
    is_alone: bool


@dataclass(frozen=True)
class Ping:
    """The question whether the worker is there."""


@dataclass(frozen=True)
class Ready:
    """The worker has answered a photo of its own."""


@dataclass(frozen=True)
class NoModel:
    """The worker has no model.

    Attributes:
        reason: Why, a sentence.
    """

    reason: str


@dataclass(frozen=True)
class Answered:
    """What came of one photo.

    Attributes:
        answer: As the API gives it; {"error": reason} for a photo that cannot be read.
    """

    answer: WorkerAnswer


@dataclass(frozen=True)
class Pong:
    """The worker is there."""


Message = Start | WorkItem | Ping | Ready | NoModel | Answered | Pong
KINDS = {kind.__name__: kind for kind in (Start, WorkItem, Ping, Ready, NoModel, Answered, Pong)}


def encode(message: Message) -> bytes:
    """Write a message as JSON in ASCII, whatever names are in it."""
    return json.dumps([type(message).__name__, asdict(message)]).encode()


def decode_message(data: bytes) -> Message:
    """Read a message.

    Raises:
        Garbled: It is none.
    """
    try:
        name, values = json.loads(data, parse_constant=_no_number)
        message = KINDS[name](**values)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Garbled(f"no message: {data[:80]!r}") from error
    if isinstance(message, Answered) and not is_answer(message.answer):
        raise Garbled(f"no answer: {data[:80]!r}")
    if isinstance(message, NoModel) and not isinstance(message.reason, str):
        raise Garbled(f"no reason: {data[:80]!r}")
    return message


def is_answer(value: Any) -> bool:
    """Return whether a value is what the API says of a photo."""
    if not isinstance(value, dict):
        return False
    if "error" in value:
        return set(value) == {"error"} and isinstance(value["error"], str)
    shares, labels, novelty = value.get("probabilities"), value.get("labels"), value.get("novelty")
    return (
        isinstance(shares, dict)
        and all(map(_is_share, shares.values()))
        and isinstance(value.get("label"), str)
        and value["label"] in shares
        and _is_share(value.get("probability"))
        and (novelty is None or _is_number(novelty))
        and all(isinstance(value.get(name), bool) for name in ("looks_new", "unsure"))
        and (labels is None or (isinstance(labels, list) and all(isinstance(one, str) for one in labels)))
        and isinstance(value.get("heatmap", ""), str)
        and set(value) <= ANSWER_FIELDS
    )


def limits_of(start: Start) -> Limits:
    """Return the server's limits."""
    return Limits(**start.limits)


class Channel:
    """Frames over a socket: a length, then so many bytes.

    Args:
        end: One of a pair of connected sockets.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, data: bytes, limit_s: float | None = None) -> None:
        """Send one frame.

        Args:
            data: Its content.
            limit_s: Seconds that it may take; None for any time.

        Raises:
            TimeoutError: The other side did not take it in time.
            OSError: The other side is gone.
        """
        self._end.settimeout(limit_s)
        self._end.sendall(LENGTH.pack(len(data)))
        self._end.sendall(data)

    def receive(self, limit_s: float | None = None, *, max_bytes: int = MAX_MESSAGE) -> bytes:
        """Receive one frame.

        Args:
            limit_s: Seconds that it may take; None for any time.
            max_bytes: Of its content.

        Raises:
            TimeoutError: It was not there, or not whole, in time.
            EOFError: The other side is gone.
            Garbled: It is larger than a message is.
        """
        deadline = None if limit_s is None else time.monotonic() + limit_s
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size, deadline))
        if length > max_bytes:
            raise Garbled(f"a message of {length} bytes")
        return bytes(self._exactly(length, deadline))

    def close(self) -> None:
        """Close the socket."""
        self._end.close()

    def _exactly(self, count: int, deadline: float | None) -> bytearray:
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            left = None if deadline is None else max(deadline - time.monotonic(), 1e-6)
            self._end.settimeout(left)
            received = self._end.recv_into(view[at:])
            if not received:
                raise EOFError("the other side is gone")
            at += received
        return data


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
