"""Photos at addresses: copied once, whole or not at all, and read as a folder; places fail and come back."""

import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from regraft.core.errors import DataError
from regraft.data import object_stores, remote
from regraft.data.remote import absolute, address_of, copy_of, fetched, shown
from regraft.data.scan import list_photos

FILES = {f"{name}/{i}.jpg": f"{name} {i}".encode() for name in ("ant", "bee") for i in range(20)}


@pytest.fixture(autouse=True)
def quick(monkeypatch, empty_cache):
    monkeypatch.setattr(remote, "WAIT_S", 0.001)


@pytest.fixture
def memory():
    """A place in memory; it is empty again at the end."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def counted(memory, monkeypatch):
    """The objects that are asked for."""
    asked, read = [], type(memory).cat_file
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, **k: asked.append(path) or read(self, path, **k))
    return asked


def fill(system, files=FILES, around="set"):
    for name, data in files.items():
        system.pipe_file(f"/{around}/{name}", data)


def contents(dataset):
    return {path: dataset.read(i) for i, path in enumerate(dataset.paths)}


def test_an_address_is_one_whatever_a_path_makes_of_it(tmp_path):
    for text in ("s3://bucket/set", "hf://datasets/me/set", "https://host:80/a/b.zip", "memory://set"):
        assert address_of(Path(text)) == address_of(text) == text
        assert shown(Path(text)) == text
        assert absolute(Path(text)) == Path(text)
    assert address_of(tmp_path) is None
    assert copy_of(tmp_path) == tmp_path
    assert fetched(tmp_path) == tmp_path


def test_a_tree_is_copied_once_and_then_what_has_changed(memory, counted):
    fill(memory)
    dataset = list_photos("memory://set")
    assert contents(dataset) == FILES
    assert len(counted) == len(FILES)
    assert contents(list_photos("memory://set")) == FILES
    assert len(counted) == len(FILES)
    memory.pipe_file("/set/ant/0.jpg", b"new 0")
    memory.rm("/set/ant/1.jpg")
    now = contents(list_photos("memory://set"))
    assert counted[len(FILES) :] == ["/set/ant/0.jpg"]
    assert now == {name: data for name, data in FILES.items() if name != "ant/1.jpg"} | {"ant/0.jpg": b"new 0"}


def test_a_cut_copy_goes_on(memory, counted, monkeypatch):
    fill(memory)
    down, read = {"/set/bee/7.jpg", "/set/bee/8.jpg"}, type(memory).cat_file

    def failing(self, path, **options):
        if path in down:
            raise OSError("the place is down")
        return read(self, path, **options)

    monkeypatch.setattr(type(memory), "cat_file", failing)
    with pytest.raises(DataError, match="2 of the 40 objects at memory://set could not be read; the first: /set/b"):
        list_photos("memory://set")
    ledger = next(copy_of(Path("memory://set")).parent.glob("*.jsonl"))
    ledger.write_bytes(ledger.read_bytes() + b'{"key": "/set/bee/7.j')
    down.clear()
    counted.clear()
    assert contents(list_photos("memory://set")) == FILES
    assert sorted(counted) == ["/set/bee/7.jpg", "/set/bee/8.jpg"]


def test_a_place_that_is_gone_is_not_asked_for_every_object(memory, monkeypatch):
    fill(memory, {f"{i}.jpg": b"x" for i in range(200)})
    asked = []

    def failing(self, path, **options):
        asked.append(path)
        raise OSError("the place is down")

    monkeypatch.setattr(type(memory), "cat_file", failing)
    with pytest.raises(DataError, match=r"200 of the 200 objects .*: /set/0\.jpg: OSError: the place is down"):
        list_photos("memory://set")
    assert len(asked) < 100 * remote.NUM_TRIES

    def forbidden(self, path, **options):
        asked.append(path)
        raise PermissionError("Forbidden")

    asked.clear()
    monkeypatch.setattr(type(memory), "cat_file", forbidden)
    with pytest.raises(DataError, match="PermissionError: Forbidden"):
        list_photos("memory://set")
    assert len(asked) <= 200


def test_what_came_short_is_asked_for_again(memory, monkeypatch):
    fill(memory)
    read, short = type(memory).cat_file, set(FILES)

    def failing(self, path, **options):
        name = path.removeprefix("/set/")
        return read(self, path, **options)[: -1 if name in short and not short.discard(name) else None]

    monkeypatch.setattr(type(memory), "cat_file", failing)
    assert contents(list_photos("memory://set")) == FILES


def test_lists_and_archives_are_read_at_addresses(memory, tmp_path):
    fill(memory, {"labels.csv": b"id,label\n0,a\n1,b\n", "photos/0.jpg": b"0", "photos/1.jpg": b"1"})
    dataset = list_photos("memory://set/labels.csv")
    assert contents(dataset) == {"photos/0.jpg": b"0", "photos/1.jpg": b"1"}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    memory.pipe_file("/more/set.zip", (tmp_path / "set.zip").read_bytes())
    assert contents(list_photos("memory://more/set.zip")) == FILES


def test_what_is_large_is_read_in_blocks(memory, counted, monkeypatch):
    fill(memory)
    monkeypatch.setattr(object_stores, "BLOCK", 4)  # bytes
    assert contents(list_photos("memory://set")) == FILES
    assert not counted


def test_a_place_that_lists_itself_is_no_file_of_its_own(memory, monkeypatch):
    fill(memory)
    find = type(memory).find
    itself = {"/set": {"name": "/set", "size": 0, "type": "directory"}}
    monkeypatch.setattr(type(memory), "find", lambda self, path, **options: find(self, path, **options) | itself)
    assert contents(list_photos("memory://set")) == FILES


def test_names_that_lead_out_are_refused_and_nothing_is_written_outside(memory, tmp_path):
    fill(memory)
    memory.store["/set/../../out.jpg"] = memory.store["/set/ant/0.jpg"]
    with pytest.raises(DataError, match=r"has an object '\.\./\.\./out\.jpg', whose name leads out of it"):
        list_photos("memory://set")
    assert not list(tmp_path.rglob("*.jpg"))


def test_where_there_is_nothing_or_no_way_is_said(memory, monkeypatch):
    with pytest.raises(DataError, match="There is nothing at memory://none"):
        list_photos("memory://none")
    monkeypatch.setenv("REGRAFT_OFFLINE", "1")
    with pytest.raises(DataError, match="memory://set is not in the cache, and REGRAFT_OFFLINE forbids"):
        list_photos("memory://set")
    monkeypatch.delenv("REGRAFT_OFFLINE")
    fill(memory)
    list_photos("memory://set")
    memory.store.clear()
    monkeypatch.setenv("REGRAFT_OFFLINE", "1")
    assert contents(list_photos("memory://set")) == FILES


class Failing(SimpleHTTPRequestHandler):
    """Every twentieth request fails, by a status or by hanging up."""

    count, lock = 0, threading.Lock()

    def send_head(self):
        with self.lock:
            type(self).count += 1
            number = self.count
        if number % 20 == 0 and self.path.endswith(".jpg"):
            if number % 40:
                self.send_error(503)
            else:
                self.close_connection = True
            return None
        return super().send_head()

    def log_message(self, *_):
        pass


def test_a_tree_of_the_web_survives_failed_requests_and_a_restart(tmp_path, monkeypatch):
    for name, data in FILES.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(data)

    def serve(port):
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Failing, directory=str(tmp_path)))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    server = serve(0)
    port, read, fetch = server.server_port, [], remote._fetch

    def restarting(system, folder, given_up, one):
        read.append(one)
        if len(read) == 25:
            servers[0].shutdown()
            servers[0].server_close()
            servers.append(serve(port))
        return fetch(system, folder, given_up, one)

    servers = [server]
    monkeypatch.setattr(remote, "_fetch", restarting)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    try:
        assert contents(list_photos(f"http://127.0.0.1:{port}/set")) == FILES
        assert len(servers) == 2
        monkeypatch.setattr(object_stores, "BLOCK", 100)  # bytes: an archive comes in more than one
        assert contents(list_photos(f"http://127.0.0.1:{port}/set.zip")) == FILES
    finally:
        servers[-1].shutdown()
        servers[-1].server_close()
