"""What every test stands on: no network, a cache of its own, photos that it draws itself."""

import gc
import json
import multiprocessing.process
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from html.parser import HTMLParser
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from faults.attacks import pytest_runtest_logreport, pytest_sessionfinish  # noqa: F401  # the figures of attacks
from regraft.backbones import engine
from regraft.bundle.bundle import Bundle
from regraft.bundle.format import MANIFEST, seal_manifest
from regraft.core.files import json_bytes, sha256_bytes, sha256_file, write_atomic

TESTS = Path(__file__).parent
os.environ["REGRAFT_PRECISION"] = "f32"  # the same numbers on every processor; tests/test_bf16.py takes it back
COLOURS = {"red": (200, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 200), "yellow": (210, 200, 50)}

MOST_COMPILED = 16  # graphs that stay compiled

RunProcess = Callable[..., subprocess.CompletedProcess[str]]


HEAVY = ("torch", "torchvision", "timm", "sklearn")
STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="only what imports no torch and starts no process")


def pytest_collection(session):
    """In the quick tier a file or test is left out at the moment in which it imports torch or starts a process."""
    if session.config.getoption("--quick"):
        sys.addaudithook(_only_what_is_quick)
        multiprocessing.process.BaseProcess.start = lambda self: pytest.skip("not quick: multiprocessing")


def pytest_collection_modifyitems(config, items):
    """Where threads start the processes, skipping would come too late."""
    items.sort(key=lambda item: item.get_closest_marker("early") is None)
    if config.getoption("--quick"):
        items[:] = [item for item in items if not item.get_closest_marker("processes")]


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What was imported by now stays: it is not looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


def _only_what_is_quick(event: str, values: tuple[Any, ...]) -> None:
    if event in STARTS or (event == "import" and values[0].partition(".")[0] in HEAVY):
        pytest.skip(f"not quick: {event} {values[0] if values else ''}", allow_module_level=True)


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
    """One cache for the whole session, and for all workers of the test runner: each network is traced once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "regraft-cache"
    folder.mkdir(exist_ok=True)
    os.environ["REGRAFT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """A graph is compiled once in a process, however many tests use it: two of three times it was compiled before."""
    compiled, kept = engine._Compiled, OrderedDict()

    def compiled_or_kept(source, precision, also, threads):
        if isinstance(source, Path):
            return compiled(source, precision, also, threads)
        key = (sha256_bytes(source.data), precision, also, threads, engine.num_cores())
        if key not in kept:
            kept[key] = compiled(source, precision, also, threads)
            if len(kept) > MOST_COMPILED:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    def forget():
        for native in (one for old in kept.values() for one in old.natives()):
            engine._keep_for_ever(native)
        kept.clear()

    os.register_at_fork(after_in_child=forget)
    engine._Compiled = compiled_or_kept
    yield
    engine._Compiled = compiled


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
    """A model of the three colours on a tiny network, trained once. Tests must not change its folder."""
    from regraft import train
    from tiny_backbone import only_tiny_backbone

    with only_tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone"):
        return train(photos, tmp_path_factory.mktemp("run"), quiet=True)


@pytest.fixture(scope="session")
def default_bundle(photos, tmp_path_factory) -> Bundle:
    """Such a model on the default backbone: many times slower, for what depends on the network."""
    from regraft import train

    return train(photos, tmp_path_factory.mktemp("run"), quiet=True, mode="frozen", report=False)


@pytest.fixture
def tiny(tmp_path_factory):
    """Whatever network is asked for, it is a tiny one: for tests of trainings whose subject is not the network."""
    from tiny_backbone import only_tiny_backbone

    with only_tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone") as backbone:
        yield backbone


def rewrite_manifest(folder: Path, **values: Any) -> None:
    """Other values in a bundle's manifest, with the seal that goes with them; None takes one away."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **values}
    kept = {name: value for name, value in manifest.items() if value is not None}
    write_atomic(folder / MANIFEST, json_bytes(seal_manifest(kept)))  # in place of a link, not through it


def rehash(folder: Path, name: str) -> None:
    """The manifest vouches for a file as it lies there now."""
    hashes = json.loads((folder / MANIFEST).read_text())["sha256"]
    rewrite_manifest(folder, sha256={**hashes, name: sha256_file(folder / name)})


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


VOID = {"base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


def tree_of(page: str) -> ElementTree.Element:
    """The elements of an HTML page, nested as they are written; unlike a browser it mends nothing."""
    builder = ElementTree.TreeBuilder()
    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            builder.start(tag, {name: value or "" for name, value in attrs})
            if tag in VOID:
                builder.end(tag)
            else:
                opened.append(tag)

        def handle_startendtag(self, tag, attrs):
            builder.start(tag, {name: value or "" for name, value in attrs})
            builder.end(tag)

        def handle_endtag(self, tag):
            assert tag == opened.pop(), f"</{tag}> ends another element"
            builder.end(tag)

        def handle_data(self, data):
            if opened:
                builder.data(data)

    reader = Reader()
    reader.feed(page)
    reader.close()
    assert opened == []
    return builder.close()


def text_of(element: ElementTree.Element) -> str:
    """What is read of an element, in one line."""
    return " ".join("".join(element.itertext()).split())


def all_of(element: ElementTree.Element, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """Elements by their tag, of those that have a class by its name."""
    return [one for one in element.iter(tag) if not kind or kind in one.get("class", "").split()]


@pytest.fixture(scope="session")
def doubtful_photos(tmp_path_factory) -> Path:
    """Three colours, split: two of each six to judge on show the next colour, and one of those to learn from is again
    among them."""
    root = tmp_path_factory.mktemp("data") / "doubtful"
    names = ("red", "green", "blue")
    draw_folder(root / "train", names, 8)
    for c, name in enumerate(names):
        for i in range(6):
            shown = names[(c + (i < 2)) % 3]
            draw(root / "val" / name / f"{i}.jpg", COLOURS[shown], 7000 + 100 * c + i)
    shutil.copy(root / "train" / "red" / "red_0.jpg", root / "val" / "red" / "again.jpg")
    return root


@pytest.fixture
def regraft_main(monkeypatch, capfd) -> Callable[..., SimpleNamespace]:
    """The program without a process of its own: `regraft_main("train", ...)` gives returncode, stdout and stderr."""
    import regraft.cli

    monkeypatch.setattr("regraft.core.signals.install", lambda: None)

    def start(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["regraft", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            regraft.cli.main()
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=end.value.code, stdout=out, stderr=err)

    return start


@dataclass
class Opened:
    """A page in a browser. requests: what it asked for.  messages: what the console says.  dialogs: their texts."""

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window; the test is skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """`opened(file, width=390, scheme="dark")`: an HTML file as a browser shows it."""
    contexts = []

    def start(file: Path, *, width: int = 1280, scheme: str = "light") -> Opened:
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        seen = Opened(contexts[-1].new_page())
        own = file.absolute().as_uri()
        seen.page.on("request", lambda one: own == one.url or seen.requests.append(one.url))
        seen.page.on("console", lambda one: seen.messages.append(one.text))
        seen.page.on("pageerror", lambda one: seen.messages.append(str(one)))
        seen.page.on("dialog", lambda one: (seen.dialogs.append(one.message), one.dismiss()))
        seen.page.goto(own)
        seen.requests[:] = [address for address in seen.requests if not address.startswith("data:")]
        return seen

    yield start
    for context in contexts:
        context.close()


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server in a process of its own. said: the file that its stderr goes to."""

    process: subprocess.Popen[str]
    port: int
    said: Path

    def connect(self, timeout: float = 60.0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "", **headers: str) -> Reply:
        """kind: of the body."""
        named = {"Content-Type": kind, **headers} if kind else headers
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, named)
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def predict(self, photo: bytes, query: str = "") -> Reply:
        return self.ask("POST", f"/v1/predict{query}", photo, "image/jpeg")

    def workers(self) -> list[int]:
        """Their process numbers."""
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        own = [pid for children in threads for pid in children.read_text().split()]
        return [int(pid) for pid in own if b"regraft.serving.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def wait_until(self, condition: Callable[[], Any], timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.01)


@contextmanager
def serving(folder: Path, *flags: object, options: dict[str, Any] | None = None, forbid: str = "", **more: Any):
    """`regraft serve` on a free port. options: for `tests/serving/limited.py` in its place.  more: the environment, and
    cwd.
    """
    cwd = more.pop("cwd", None)
    command = [sys.executable, "-m", "regraft", "serve", folder, "--port", "0", *flags]
    if options is not None:
        command = [sys.executable, TESTS / "serving" / "limited.py", folder, json.dumps(options)]
    env = {**os.environ, "PYTHONPATH": str(TESTS / "blocked"), "REGRAFT_TEST_FORBID": forbid, **more}
    with tempfile.TemporaryDirectory(prefix="regraft-said-") as temporary:
        said = Path(temporary) / "stderr"
        with said.open("w") as stream:
            process = subprocess.Popen([*map(str, command)], stdout=stream, stderr=stream, text=True, env=env, cwd=cwd)
        try:
            deadline = time.monotonic() + 120
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", said.read_text())):
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.02)
            yield Served(process, int(found[1]), said)
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()
