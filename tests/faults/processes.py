"""Command lines forked from one process that has torch in memory: a fault test starts hundreds of trainings.

Each is a process of its own, in a session of its own, that can be killed; it starts in 0.1 s where a fresh interpreter
takes 5.
"""

import atexit
import functools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import draw_folder
from regraft.core.files import PARTIAL, sha256_file

TRIALS = int(os.environ.get("REGRAFT_TRIALS", "20"))
IS_LONG = TRIALS > 20
long_form = pytest.mark.skipif(not IS_LONG, reason="the long form: make torture")
LONG = (pytest.mark.slow, long_form)
SHORT = ("--mode", "full", "--epochs", "5", "--batch-size", "4", "--no-report")  # 3 steps an epoch over 12 of 15 photos
INTERVAL = "regraft.training.loop.CHECKPOINT_SECONDS"


@dataclass(frozen=True)
class Trip:
    """At the call-th call of a function, such as "regraft.commands.train.list_photos": a signal to the process itself,
    then sleep, then the call. signum: 0 for none.  pause: in seconds, unless `Child.resume` ends it.
    """

    at: str
    call: int = 1
    signum: int = 0
    pause: float = 0.0


@dataclass(frozen=True)
class Ended:
    """code: as a shell gives it.  seconds: from the start, by which moments to kill the next one are drawn."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def summary(self) -> dict[str, Any]:
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


@dataclass
class Child:
    """A command line that runs. pid: also the number of its process group.  folder: of what it prints."""

    pid: int
    folder: Path
    nursery: "Nursery"
    began: float = field(default_factory=time.monotonic)

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def is_alive(self) -> bool:
        return self.nursery.ask(poll=self.pid)["code"] is None

    def has_begun(self) -> bool:
        """Whether it looks after signals itself."""
        return (self.folder / "begun").exists()

    def is_paused(self) -> bool:
        """Whether a trip's pause has begun."""
        return (self.folder / "paused").exists()

    def resume(self) -> None:
        """End a trip's pause, and all that are still to come."""
        (self.folder / "resumed").touch()

    def children(self) -> list[int]:
        """Processes that it started."""
        return [int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def after_signal(self) -> Counter[str]:
        """How often what `server.WATCHED` names was called after the first signal was sent."""
        names = (self.folder / "events").read_text().split()
        return Counter(names[names.index("signal") + 1 :])

    def kill(self, signum: int = signal.SIGKILL, *, group: bool = False) -> None:
        with (self.folder / "events").open("ab", buffering=0) as file:
            file.write(b"signal\n")
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signum)

    def wait(self, timeout: float = 120.0) -> Ended:
        deadline = time.monotonic() + timeout
        while (code := self.nursery.ask(poll=self.pid)["code"]) is None:
            if time.monotonic() > deadline:
                self.kill(signal.SIGUSR1)  # it tells where it is
                time.sleep(1.0)
                self.kill(group=True)
                raise TimeoutError(f"still running after {timeout} s: {self.stderr[-6000:]}")
            time.sleep(0.01)
        seconds = time.monotonic() - self.began
        return Ended(code, (self.folder / "stdout").read_text(), self.stderr, seconds)

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Until it has said so."""
        self.wait_until(lambda: text in self.stderr, timeout)

    def wait_until(self, condition: Any, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.is_alive(), self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.002)


class Nursery:
    """The process that command lines are forked from."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="regraft-nursery-")
        env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        command = [sys.executable, str(Path(__file__).with_name("server.py"))]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self._count = 0

    def ask(self, **order: Any) -> dict[str, Any]:
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def start(
        self, *arguments: object, change: dict[str, Any] | None = None, trips: tuple[Trip, ...] = (), **env: str
    ) -> Child:
        """`start("train", photos, ...)`. change: values of modules, by name.  env: added to the environment."""
        self._count += 1
        folder = Path(self._folder.name) / str(self._count)
        folder.mkdir()
        for name in ("stdout", "stderr"):
            (folder / name).touch()
        order = {
            "argv": list(map(str, arguments)),
            "env": {**os.environ, **env},
            "change": change or {},
            "trips": [asdict(trip) for trip in trips],
            "folder": str(folder),
        }
        return Child(self.ask(start=order)["pid"], folder, self)

    def run(self, *arguments: object, **options: Any) -> Ended:
        return self.start(*arguments, **options).wait()

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(120)
        self._folder.cleanup()


@functools.cache
def nursery() -> Nursery:
    """The one of this test run."""
    opened = Nursery()
    atexit.register(opened.close)
    return opened


@dataclass(frozen=True)
class Story:
    """A command that trains, and what comes of it where nothing disturbs it.

    command: without --out.  out: the run's folder.  cache: where its backbone and features are.  weights: hash of its
    model.  summary: what it printed.  seconds: that it took, from an empty cache.
    """

    photos: Path
    command: tuple[object, ...]
    out: Path
    cache: Path
    weights: str
    summary: dict[str, Any]
    seconds: float

    @property
    def figures(self) -> Any:
        return measured(self.summary)

    def start(
        self,
        out: Path,
        *options: object,
        interval: float = 30.0,
        trips: tuple[Trip, ...] = (),
        cache: Path | None = None,
        command: tuple[object, ...] = (),
        **environment: str,
    ) -> Child:
        """The same command, unless another is given. interval: seconds between checkpoints within an epoch."""
        env = {"REGRAFT_CACHE": str(cache or self.cache), **environment}
        change = {INTERVAL: interval}
        return nursery().start(*(command or self.command), "--out", out, *options, change=change, trips=trips, **env)

    def start_together(self, size: int, out: Path, *options: object, **more: Any) -> list[Child]:
        """The same command in several processes, with the environment that torchrun gives them."""
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
        return [self.start(out, *options, **more, **shared, **rank) for rank in ranks]

    def check(self, out: Path, ended: Ended, *, same_batches: bool = True) -> None:
        """As if nothing had disturbed it. In other batches float32 adds up some 64 numbers in another order."""
        *figures, rows = measured(ended.summary)
        *expected, expected_rows = self.figures
        rounding = 0.0 if same_batches else 2 * 64 * 2.0**-23
        assert figures == expected
        assert rows == [pytest.approx(row, rel=rounding, abs=0.0) for row in expected_rows]
        assert weights_of(out) == self.weights
        assert sorted(os.listdir(out)) == sorted(os.listdir(self.out))


def story(folder: Path, *flags: object, dead: bool = False) -> Story:
    """Fifteen photos of three colours, 12 to learn from, and a run that nothing disturbs."""
    photos = draw_folder(folder / "few", ("red", "green", "blue"), 5)
    command = ("train", photos, *toy(folder / "toy", dead=dead), *(flags or SHORT), "--json")
    out, cache = folder / "undisturbed", folder / "cache"
    nursery().run("--version")  # torch is in memory before seconds are counted
    ended = nursery().run(*command, "--out", out, REGRAFT_CACHE=str(cache))
    return Story(photos, command, out, cache, weights_of(out), ended.summary, ended.seconds)


def shared_story(base: Path) -> Story:
    """The undisturbed run of the short command, once for all modules and for all workers of the test runner.

    base: the folder for temporary files of this worker.
    """
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "story"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        known = folder / "story.pickle"
        if not known.exists():
            known.write_bytes(pickle.dumps(story(folder)))
        return pickle.loads(known.read_bytes())


def mostly_long(cases: Iterable[Any], *short: Any) -> list[Any]:
    """Values of a parameter: those that are named are always tested, the others in the long form."""
    found = list(cases)
    assert all(case in found for case in short), short
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in short else LONG)
        for case in found
    ]


def toy(folder: Path, *, dead: bool = False) -> tuple[object, ...]:
    """Options for a network of half a million random weights at 32 pixels. dead: to which all photos are alike."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network: Any = timm.create_model("test_resnet")
    if dead:
        torch.nn.init.zeros_(network.conv1[0].weight)
        torch.nn.init.ones_(network.conv1[1].bias)  # so that it can learn to see
    folder.mkdir(parents=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    size = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    config = {"pretrained_cfg": {**size, "interpolation": "bilinear"}}
    (folder / "config.json").write_text(json.dumps(config))
    return ("--backbone", "timm/test_resnet", "--weights", folder / "model.safetensors")


def free_port() -> str:
    """Of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def weights_of(out: Path) -> str:
    """Hash of a run's model."""
    return sha256_file(out / "bundle" / "model.safetensors")


def measured(summary: dict[str, Any]) -> Any:
    """All figures of a summary but those of time."""
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in summary["history"]]
    return summary["accuracy"], summary["cross_validated"], summary["decision"], rows


def leftovers(folder: Path) -> list[str]:
    """What is still, or was for ever left, being written below a folder."""
    return sorted(str(path) for pattern in (f"{PARTIAL}*",) for path in folder.rglob(pattern))


def record(record_property: Any, row: str, **figures: Any) -> None:
    """Figures of a row of the matrix: into pytest's report, and into a file where REGRAFT_FIGURES names a folder."""
    record_property(row, json.loads(json.dumps(figures)))  # plain values: they travel between processes
    if folder := os.environ.get("REGRAFT_FIGURES"):
        path = Path(folder) / f"{row}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"row": row, **figures}, indent=2) + "\n")
