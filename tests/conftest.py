"""What every test stands on: no network, a cache of its own, photos that it draws itself."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.deliver.bundle import Bundle

TESTS = Path(__file__).parent
COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 200), "yellow": (210, 200, 50)}

RunProcess = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only this machine can be reached."""
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise RuntimeError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache for the whole session: the default backbone is traced once."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["REGRAFT_CACHE"] = str(folder)
    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REGRAFT_CACHE", str(folder))
    return folder


def draw(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (96, 80)) -> Path:
    """Save a noisy photo of one colour: easy to tell apart, and each one different."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(colour) + rng.normal(0, 25, (size[1], size[0], 3)) + rng.normal(0, 12, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def draw_folder(root: Path, classes: tuple[str, ...], count: int, seed: int = 0) -> Path:
    """`root/<class>/<class>_<i>.jpg`, colour-coded: classes take the colours of COLOURS in turn."""
    colours = list(COLOURS.values())
    for c, name in enumerate(classes):
        for i in range(count):
            draw(root / name / f"{name}_{i}.jpg", colours[c % len(colours)], seed + 1000 * c + i)
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Ten photos each of three colours, not split."""
    return draw_folder(tmp_path_factory.mktemp("data") / "colours", ("red", "green", "blue"), 10)


@pytest.fixture(scope="session")
def bundle(photos, tmp_path_factory) -> Bundle:
    """A model of the three colours, trained once. Tests must not change its folder."""
    from regraft import train

    return train(photos, tmp_path_factory.mktemp("run"), quiet=True)


@pytest.fixture
def run() -> RunProcess:
    """`run("predict", ..., forbid="torch")`: the command line in a process of its own, without network."""

    def start(*arguments: object, forbid: str = "", cwd: Path | None = None, **environment: str):
        env = {**os.environ, "PYTHONPATH": str(TESTS / "blocked"), "REGRAFT_TEST_FORBID": forbid, **environment}
        command = [sys.executable, "-m", "regraft", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)

    return start


@pytest.fixture
def real_photos() -> Path:
    """The folder of real photos named by REGRAFT_DATA; the test is skipped without it."""
    folder = os.environ.get("REGRAFT_DATA")
    if not folder:
        pytest.skip("REGRAFT_DATA is not set")
    return Path(folder).absolute()
