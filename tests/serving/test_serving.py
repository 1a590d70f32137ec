"""The process: where it listens, who may call it, which model it keeps, and what it can do without."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from _thread import interrupt_main
from http.client import HTTPConnection
from pathlib import Path
from shlex import quote
from types import SimpleNamespace

import pytest
from filelock import FileLock

from bundle.test_without_torch import FORBIDDEN
from conftest import Served as Process
from conftest import rewrite_manifest, serving
from faults.processes import IS_LONG, free_port
from regraft.core.errors import BundleError, ServeError
from regraft.serving import model, process
from regraft.serving import server as module
from regraft.serving.access import Access
from regraft.serving.limits import Limits
from regraft.serving.model import SealedModel
from regraft.serving.server import LOCAL, Models, serve
from serving.test_pool import ODD, children, until

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("198.51.100.7", 0, "cannot assign requested address"),
        ("no..name", 0, "name"),
        ("ü" * 70, 0, "encoding of hostname failed"),
        ("127.0.0.1", 65_536, "port must be 0-65535"),
        ("127.0.0.1", -1, "port must be 0-65535"),
    ],
)
def test_a_place_that_cannot_be_listened_on_is_named_with_the_cure(bundle, host, port, why):
    with pytest.raises(ServeError, match=r"Cannot listen on .* Choose another --port or --host") as error:
        serve(bundle, host=host, port=port)
    assert f"{host}:{port}" in str(error.value)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_place_that_is_taken_is_left_alone(bundle, monkeypatch):
    started = []
    monkeypatch.setattr(module, "Models", lambda *_: started.append(1) or pytest.fail("workers are started for it"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServeError, match="already in use"):
        serve(bundle, port=taken.getsockname()[1])
    assert started == []


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("host", "more", "known"),
    [
        ("127.0.0.1", (), set(LOCAL)),
        ("0.0.0.0", ("pets.example", "pets.example"), {*LOCAL, "0.0.0.0", "pets.example"}),
        ("::1", (), {*LOCAL, "[::1]"}),
        ("fe80::1", ("x",), {*LOCAL, "[fe80::1]", "x"}),
    ],
)
def test_it_may_be_called_by_its_own_name_and_those_that_are_added(bundle, monkeypatch, host, more, known):
    """An IPv6 address stands in brackets there."""

    def create(current, limits, access, keeper):
        assert len(set(access.hosts)) == len(access.hosts)
        assert set(access.hosts) == known
        raise Stopped

    monkeypatch.setattr(module, "_listen", lambda *_: socket.socket())
    monkeypatch.setattr(module, "Models", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(module, "create_app", create)
    with pytest.raises(Stopped):
        serve(bundle, host=host, access=Access(hosts=more))


@pytest.mark.slow
def test_it_serves_without_torch(bundle, photos, tmp_path):
    data = (photos / "red" / "red_0.jpg").read_bytes()
    with serving(bundle.folder, "--workers", 1, forbid=FORBIDDEN, REGRAFT_CACHE=str(tmp_path)) as served:
        (row,) = served.predict(data, "?heatmap=1").json["predictions"]
        assert (row["label"], row["heatmap"][:22]) == ("red", "data:image/jpeg;base64")
        assert served.ask("GET", "/").status == served.ask("GET", "/healthz").status == 200
        assert served.ask("GET", "/v1/model").json["classes"] == ["blue", "green", "red"]
        assert len(served.workers()) == 1
    assert served.process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_says_where_it_is_and_when_anyone_can_reach_it(bundle, tmp_path):
    with serving(bundle.folder, "--workers", 1) as served:
        assert served.said.read_text() == (
            f"serving {bundle.folder} at http://127.0.0.1:{served.port}/   (Ctrl-C ends it)\n"
        )


@pytest.mark.parametrize("access", [Access(token=""), Access(token=" "), Access(origins=("shop.example",))])
def test_what_cannot_be_kept_is_refused_before_anything_is_opened(bundle, monkeypatch, access):
    monkeypatch.setattr(module, "_listen", lambda *_: pytest.fail("it listens"))
    with pytest.raises(ServeError):
        serve(bundle, access=access)


def test_an_empty_token_in_the_environment_is_refused(bundle, regraft_main, monkeypatch):
    monkeypatch.setattr(module, "_listen", lambda *_: pytest.fail("it listens"))
    monkeypatch.setenv("REGRAFT_TOKEN", "")
    done = regraft_main("serve", bundle.folder)
    assert (done.returncode, "REGRAFT_TOKEN" in done.stderr, done.stderr.count("\n")) == (1, True, 1)


@pytest.fixture
def folder(bundle, tmp_path):
    """A copy of the bundle that may be changed."""
    return shutil.copytree(bundle.folder, tmp_path / "copy")


def rewritten(folder: Path) -> None:
    """Another model takes its place: the same network, told otherwise."""
    rewrite_manifest(folder, temperature=3.0)


def copies() -> set[Path]:
    return {
        one
        for parent in (Path(model.tempfile.gettempdir()), model.IN_MEMORY)
        for one in parent.glob(f"{model.PREFIX}*")
    }


def test_a_model_is_kept_though_its_folder_is_replaced(bundle, folder):
    loaded = module.load(folder)
    sealed, others = SealedModel(loaded), copies()
    try:
        assert sealed.sha256 == loaded.sha256
        rewritten(folder)
        (folder / "model.onnx").unlink()
        assert module.load(sealed.folder, expected_sha256=sealed.sha256).manifest == bundle.manifest
        assert sealed.folder.stat().st_uid == os.getuid()
        assert sealed.folder.parent.stat().st_mode & 0o77 == 0
    finally:
        sealed.close()
    assert len(others - copies()) == 1


@pytest.mark.parametrize("change", ["damaged", "removed"])
def test_a_folder_that_was_changed_since_it_was_loaded_is_refused(folder, change):
    loaded, before = module.load(folder), copies()
    if change == "damaged":
        (folder / "model.safetensors").write_bytes(b"nonsense")
    else:
        shutil.rmtree(folder)
    with pytest.raises(BundleError, match="replaced since the model was loaded"):
        SealedModel(loaded)
    assert copies() <= before


def test_a_worker_takes_no_other_model(folder):
    sealed = SealedModel(module.load(folder))
    try:
        rewritten(sealed.folder)
        with pytest.raises(ServeError, match="another model"):
            process.WorkerProcess(sealed, Limits()).wait_ready()
    finally:
        sealed.close()


def test_copies_of_servers_that_were_killed_are_removed_and_those_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(model.tempfile, "tempdir", str(tmp_path))
    for name in ("dead", "used"):
        (tmp_path / f"{model.PREFIX}{name}" / "bundle").mkdir(parents=True)
        (tmp_path / f"{model.PREFIX}{name}" / "bundle" / "regraft.json").touch()
    with FileLock(tmp_path / f"{model.PREFIX}used" / "lock"):
        home = model._private_folder()
    assert {one.name for one in tmp_path.iterdir()} == {f"{model.PREFIX}used", home.name}


def test_where_no_copy_can_be_kept_is_said_in_a_line(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(model.tempfile, "tempdir", str(tmp_path / "nothing"))
    monkeypatch.setattr(model, "IN_MEMORY", tmp_path / "nothing")
    with pytest.raises(ServeError, match="TMPDIR"):
        SealedModel(bundle)


@pytest.fixture
def odd(monkeypatch):
    """Workers that need no model."""
    monkeypatch.setattr(process, "PROGRAM", ODD)


def in_loop(function):
    """Call it in a thread while a loop runs here."""

    async def run():
        return await asyncio.to_thread(function, asyncio.get_running_loop())

    return asyncio.run(run())


@pytest.fixture
def models(folder, odd):
    said: list[str] = []
    opened = Models(module.load(folder), Limits(workers=2), said.append)
    opened.said = said
    yield opened
    opened.close()


def test_a_reload_changes_all_workers_at_once(models, folder):
    before = models.current
    pids = [worker.pid for worker in before.pool._workers]
    rewritten(folder)
    assert models.current is before

    def reloaded(loop):
        models.reload(loop)
        until(lambda: models.said)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

    in_loop(reloaded)
    assert models.current.sha256 == module.load(folder).sha256 != before.sha256
    assert models.said == [f"reloaded: model {models.current.sha256[:12]} answers"]
    assert models.current.pool.is_healthy
    assert not before.pool._model.folder.exists()


@pytest.mark.parametrize("change", ["damaged", "gone"])
def test_a_folder_that_does_not_verify_changes_nothing(models, folder, change):
    before = models.current
    (folder / "model.onnx").write_bytes(b"nonsense") if change == "damaged" else shutil.rmtree(folder)

    def reloaded(loop):
        models.reload(loop)
        until(lambda: models.said)

    in_loop(reloaded)
    assert models.current is before
    assert before.pool.is_healthy
    assert "the model before goes on answering" in models.said[0]
    assert "\n" not in models.said[0]


def test_many_reloads_at_once_are_one_or_two(models, monkeypatch):
    loads, load = [], module.load
    monkeypatch.setattr(module, "load", lambda *a, **k: loads.append(a) or time.sleep(0.1) or load(*a, **k))

    def reloaded(loop):
        for _ in range(5):
            models.reload(loop)
        until(lambda: not any(one.name == "regraft reload" for one in threading.enumerate()))

    in_loop(reloaded)
    assert 1 <= len(loads) <= 2


def test_a_photo_that_was_taken_is_answered_by_the_model_that_took_it(models, folder):
    async def asked():
        old = models.current.pool
        task = asyncio.create_task(old.answers([b"red"] * 40, False))
        await asyncio.sleep(0)
        rewritten(folder)
        models.reload(asyncio.get_running_loop())
        await asyncio.to_thread(until, lambda: models.said)
        return await task, models.current.pool is not old

    answers, is_changed = asyncio.run(asked())
    assert [one["label"] for one in answers] == ["red"] * 40
    assert is_changed


@pytest.mark.parametrize(
    ("had", "has", "wanted"), [(False, False, "reload"), (True, True, "reload"), (True, False, "end")]
)
def test_a_closed_terminal_ends_it_and_any_other_hang_up_reloads(monkeypatch, had, has, wanted):
    server, asked = SimpleNamespace(should_exit=False), []
    monkeypatch.setattr(module, "_has_terminal", lambda: has)
    module._hang_up(server, SimpleNamespace(reload=asked.append), "loop", had)
    assert (server.should_exit, asked) == (wanted == "end", ["loop"] if wanted == "reload" else [])


def test_in_a_notebook_it_serves_until_the_cell_is_interrupted(bundle, odd):
    """A loop runs already where the cell runs."""
    replies, before = [], children()

    def visit(address: str) -> None:
        connection = HTTPConnection("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/")), timeout=60)
        connection.request("GET", "/healthz")
        replies.append(connection.getresponse().status)
        connection.close()
        interrupt_main()

    async def cell():
        serve(
            bundle,
            port=0,
            limits=Limits(workers=1),
            on_ready=lambda address: threading.Thread(target=visit, args=(address,)).start(),
        )

    asyncio.run(cell())
    assert replies == [200]
    assert children() <= before


SCRIPT = """
import sys, regraft
print("once", flush=True)
regraft.serve(regraft.load(sys.argv[1]), port=0, on_ready=lambda address: print(address, flush=True))
"""


@pytest.mark.slow
def test_a_script_needs_no_guard(bundle, tmp_path):
    """Workers run nothing of the script that serves."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, bundle.folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        line, address = program.stdout.readline(), program.stdout.readline()
        program.send_signal(signal.SIGINT)
        rest, errors = program.communicate(timeout=60)
    assert (line, address[:17], rest, errors) == ("once\n", "http://127.0.0.1:", "", "")


@pytest.mark.slow
@pytest.mark.parametrize("streams", ["closed", "full"] if IS_LONG else ["closed"])
def test_it_needs_nobody_to_listen_to_what_it_says(bundle, streams):
    """Neither stdin, stdout nor stderr; and what a client gets is the answer and nothing else."""
    port = int(free_port())
    command = f"exec {quote(sys.executable)} -m regraft serve {quote(str(bundle.folder))} --port {port} --workers 1"
    to = "<&- >&- 2>&-" if streams == "closed" else ">/dev/full 2>/dev/full"
    with subprocess.Popen(["bash", "-c", f"{command} {to}"]) as program:
        served = Process(program, port, Path("/dev/null"))
        served.wait_until(lambda: program.poll() is not None or listens(port))
        taken = {str(Path(f"/proc/{program.pid}/fd/{number}").readlink()) for number in range(3)}
        assert taken == {"/dev/null"} or streams == "full"
        assert served.ask("GET", "/healthz").json == {"status": "ok"}
        assert served.predict(b"nonsense").status == 400
        program.send_signal(signal.SIGHUP)
        (worker,) = served.workers()
        served.wait_until(lambda: served.workers() and worker not in served.workers())
        assert served.ask("GET", "/healthz").json == {"status": "ok"}
        program.terminate()
        assert program.wait(60) == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_it_answers_with_the_model_that_it_began_with_until_it_is_told(bundle, folder, photos):
    data = (photos / "red" / "red_0.jpg").read_bytes()
    with serving(folder, "--workers", 1) as served:
        first = served.predict(data)
        rewritten(folder)
        for pid in served.workers():
            os.kill(pid, signal.SIGKILL)
        served.wait_until(lambda: served.ask("GET", "/healthz").status == 503)
        served.wait_until(lambda: served.ask("GET", "/healthz").status == 200)
        again = served.predict(data)
        assert (again.body, again.headers["x-model"]) == (first.body, first.headers["x-model"])
        served.process.send_signal(signal.SIGHUP)
        served.wait_until(lambda: "reloaded: model " in served.said.read_text())
        reply = served.predict(data)
        (old,), (new,) = first.json["predictions"], reply.json["predictions"]
        assert (new["label"], new["probability"]) != (old["label"], old["probability"])
        assert reply.headers["x-model"] != first.headers["x-model"]
        assert served.ask("GET", "/v1/model").json["model"] == module.load(folder).sha256
        assert reply.headers["x-model"] in served.said.read_text()


WORKER = """
import os, time
from regraft.serving.worker import _end_with
_end_with(os.getppid())
print(os.getpid(), flush=True)
time.sleep(60)
"""
SERVER = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WORKER!r}]).wait()"


def test_a_worker_ends_with_a_server_that_is_killed_whatever_it_is_doing():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        worker = int(server.stdout.readline())
        server.kill()
        server.wait()
        until(lambda: has_ended(worker), 30)


def test_no_connection_takes_the_place_of_a_closed_stream():
    code = (
        "import socket, sys; from regraft.serving.server import _occupy_standard_streams as occupy; "
        "occupy(); sys.exit(socket.socket().fileno())"
    )
    done = subprocess.run(["bash", "-c", f"exec {quote(sys.executable)} -c '{code}' <&- >&- 2>&-"], check=False)
    assert 3 <= done.returncode < 10


def has_ended(pid: int) -> bool:
    """Gone, or gone but for who would collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
