"""The process that command lines are forked from. Orders come in, a JSON object a line; each is answered by one."""

import faulthandler
import functools
import gc
import json
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

WATCHED = (
    "regraft.backbones.features._decoded",
    "regraft.training.batches._large_enough",
    "regraft.training.loop.gradients",
    "regraft.training.loop.validate",
)
SIGNAL = "signal"
PRELOADED = (
    "regraft.cli",
    "regraft.commands.train",
    "regraft.training.finetune",
    "regraft.backbones.onnx_export",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "torch.distributed",
    "torch.onnx",
    "onnx",
    "openvino",
)


def serve() -> None:
    """`{"start": {...}}` is answered by a pid, `{"poll": pid}` by its exit code, null while it runs."""
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()  # a child looks through what it makes itself, not through all of torch: a third of its time
    ended: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                become(**order["start"])
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = {"code": poll(order["poll"], ended)}
        print(json.dumps(answer), flush=True)


def poll(pid: int, ended: dict[int, int]) -> int | None:
    """The exit code as a shell gives it."""
    if pid not in ended:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            return None
        code = os.waitstatus_to_exitcode(status)
        ended[pid] = code if code >= 0 else 128 - code
    return ended[pid]


def become(argv: list[str], env: dict[str, str], change: dict[str, Any], trips: list[Any], folder: str) -> None:
    os.setsid()
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_APPEND), number)
    faulthandler.register(signal.SIGUSR1, file=2)
    os.environ.clear()
    os.environ.update(env)
    for target, value in change.items():
        module, _, name = target.rpartition(".")
        setattr(import_module(module), name, value)
    events = Path(folder) / "events"
    for name in WATCHED:
        watch(name, events)
    for trip in trips:
        lay(**trip, mark=Path(folder) / "paused", events=events)
    begin = import_module("regraft.core.signals").install
    import_module("regraft.core.signals").install = lambda: (begin(), (Path(folder) / "begun").touch())
    sys.argv = ["regraft", *argv]
    code = 1
    try:
        import_module("regraft.cli").main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch down costs a second that tells nothing


def watch(at: str, events: Path) -> None:
    """Every call is a line in a file."""
    place, _, name = at.rpartition(".")
    owner = place_of(place)
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        note(events, name)
        return original(*args, **kwargs)

    setattr(owner, name, watched)


def note(events: Path, name: str) -> None:
    """One line more, whole, whichever process or thread writes at the same time."""
    with events.open("ab", buffering=0) as file:
        file.write(f"{name}\n".encode())


def lay(at: str, call: int, signum: int, pause: float, mark: Path, events: Path) -> None:
    place, _, name = at.rpartition(".")
    owner = place_of(place)
    original = getattr(owner, name)
    calls = iter(range(1, 10**9))

    @functools.wraps(original)
    def tripped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            if signum:
                note(events, SIGNAL)
                os.kill(os.getpid(), signal.Signals(signum))
            if pause:
                mark.touch()
                wait(pause, mark.with_name("resumed"))
        return original(*args, **kwargs)

    setattr(owner, name, tripped)


def wait(seconds: float, end: Path) -> None:
    """Until a file is there, or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not end.exists():
        time.sleep(0.005)


def place_of(name: str) -> Any:
    """A module, or a class in one."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        module, _, rest = name.rpartition(".")
        return getattr(import_module(module), rest)


if __name__ == "__main__":
    serve()
