"""A worker that does what a photo's bytes tell it, well or badly, and needs no model."""

import os
import signal
import socket
import sys
import time

from regraft.serving.messages import (
    LENGTH,
    Answered,
    Channel,
    NoModel,
    Ping,
    Pong,
    Ready,
    Start,
    WorkItem,
    decode_message,
    encode,
)

GOOD = {
    "label": "red",
    "probability": 0.7,
    "probabilities": {"red": 0.7, "blue": 0.3},
    "novelty": None,
    "looks_new": False,
    "unsure": False,
    "labels": None,
}


def main() -> None:
    end = socket.socket(fileno=int(sys.argv[1]))
    channel = Channel(end)
    start = decode_message(channel.receive())
    assert isinstance(start, Start)
    begin(start.sha256, end, channel)
    while True:
        message = decode_message(channel.receive())
        if isinstance(message, Ping):
            channel.send(encode(Pong()))
        elif isinstance(message, WorkItem):
            react(channel.receive(max_bytes=2**30), end, channel)


def begin(how: str, end: socket.socket, channel: Channel) -> None:
    if how == "refuses":
        channel.send(encode(NoModel("The model is none.")))
    elif how == "dies":
        os._exit(3)
    elif how == "talks nonsense":
        channel.send(b"ready")
    elif how == "answers unasked":
        channel.send(encode(Answered(GOOD)))
    elif how == "sleeps":
        time.sleep(60)
    else:
        channel.send(encode(Ready()))


def react(data: bytes, end: socket.socket, channel: Channel) -> None:
    said = data.decode(errors="replace")
    if said.startswith("say "):
        channel.send(data[4:])
    elif said == "die":
        os._exit(1)
    elif said == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif said == "announce much":
        end.sendall(LENGTH.pack(2**62))
    elif said == "send half":
        end.sendall(LENGTH.pack(100) + b"x")
        time.sleep(60)
    elif said == "sleep":
        time.sleep(60)
    elif said == "nap":
        time.sleep(0.03)
        channel.send(encode(Answered(GOOD)))
    else:
        channel.send(encode(Answered({**GOOD, "label": said} if said in ("red", "blue") else {"error": said[:80]})))


if __name__ == "__main__":
    main()
