"""Object stores by obstore: a small S3 on loopback that fails, refuses and is started anew, and odd names."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from conftest import draw_folder
from regraft.core.errors import DataError
from regraft.data import object_stores, remote
from regraft.data.remote import copy_of
from regraft.data.scan import list_photos
from tiny_bundle import write_tiny

FILES = {f"set/{name}/{i}.jpg": f"{name} {i}".encode() for name in ("ant", "bee") for i in range(20)}
LISTED = (
    '<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated>{}</ListBucketResult>'
)
ITEM = (
    '<Contents><Key>{}</Key><Size>{}</Size><ETag>"{}"</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified>'
    "<StorageClass>STANDARD</StorageClass></Contents>"
)


class Store(BaseHTTPRequestHandler):
    """What regraft asks of S3: list, head, get; one of `server.failing` gets fails, by a status or by hanging up."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        key = unquote(url.path).removeprefix("/bucket").lstrip("/")
        self.server.asked.append((self.command, key))
        if self.server.status:
            return self.answer(self.server.status, b"<Error><Code>Refused</Code></Error>")
        if not key:
            prefix = parse_qs(url.query).get("prefix", [""])[0]
            return self.answer(200, LISTED.format("".join(self.items(prefix))).encode())
        if key not in self.server.files:
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        number = sum(command == "GET" for command, _ in self.server.asked)
        if self.server.failing and number % self.server.failing == 0:
            if number % (2 * self.server.failing):
                return self.answer(503, b"")
            self.close_connection = True
            return None
        return self.answer(200, self.server.files[key])

    do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

    def items(self, prefix):
        for key, data in sorted(self.server.files.items()):
            if key.startswith(prefix):
                yield ITEM.format(escape(key), len(data), hashlib.md5(data).hexdigest())

    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def started(port=0):
    server = ThreadingHTTPServer(("127.0.0.1", port), Store)
    server.files, server.asked, server.failing, server.status = dict(FILES), [], 0, 0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def stopped(server):
    server.shutdown()
    server.server_close()


@pytest.fixture
def store(monkeypatch, empty_cache):
    server = started()
    monkeypatch.setattr(remote, "WAIT_S", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    yield server
    stopped(server)


def contents(dataset):
    return {f"set/{path}": dataset.read(i) for i, path in enumerate(dataset.paths)}


def got(store):
    return [key for command, key in store.asked if command == "GET" and key]


def test_a_bucket_and_a_tree_in_it_are_copied_once_and_then_what_has_changed(store):
    assert contents(list_photos("s3://bucket/set")) == FILES
    assert sorted(got(store)) == sorted(FILES)
    store.files |= {"set/ant/0.jpg": b"new 0"}
    del store.files["set/ant/1.jpg"]
    store.asked.clear()
    assert contents(list_photos("s3://bucket/set/")) == store.files
    assert got(store) == ["set/ant/0.jpg"]
    assert len(list_photos("s3a://bucket").paths) == len(store.files)


def test_a_store_that_fails_and_is_started_anew_loses_and_doubles_nothing(store, monkeypatch):
    fetch, fetched, servers = remote._fetch, [], [store]

    def restarting(*arguments):
        fetched.append(arguments)
        if len(fetched) == 25:
            stopped(servers[-1])
            servers.append(started(store.server_port))
            servers[-1].failing = 20
        return fetch(*arguments)

    store.failing = 20
    monkeypatch.setattr(remote, "_fetch", restarting)
    try:
        assert contents(list_photos("s3://bucket/set")) == FILES
        assert len(servers) == 2
    finally:
        stopped(servers[-1])


def test_names_are_what_the_store_says(store):
    names = [f"set/ant/{name}.jpg" for name in ("ä 1", "50%", "a+b", "a%20b", "#1", "q?x=1", "a&b", "日本")]
    store.files = {name: name.encode() for name in names} | {"set/ant/": b"", "set/": b"", "setter/ant/9.jpg": b"other"}
    store.files |= {"set/bee/1.jpg": b"bee"}
    found = contents(list_photos("s3://bucket/set"))
    assert found == {name: name.encode() for name in names} | {"set/bee/1.jpg": b"bee"}


def test_a_name_that_leads_out_is_refused_and_nothing_is_written(store, tmp_path):
    store.files |= {"set/../../out.jpg": b"out"}
    with pytest.raises(DataError, match=r"\.\./\.\./out\.jpg"):
        list_photos("s3://bucket/set")
    assert not list(copy_of(Path("s3://bucket/set")).parent.rglob("*.jpg"))


def test_a_file_larger_than_memory_should_hold_comes_in_blocks(store, monkeypatch):
    monkeypatch.setattr(object_stores, "BLOCK", 1000)
    sizes, written = [], remote.written_atomic

    def watching(path):
        context = written(path)
        write = context.__enter__()
        watched = lambda block: (sizes.append(len(block)), write(block))  # noqa: E731
        return type("Watched", (), {"__enter__": lambda _: watched, "__exit__": lambda _, *e: context.__exit__(*e)})()

    monkeypatch.setattr(remote, "written_atomic", watching)
    store.files = {"large.csv": b"path,label\n" + b"x" * 5_000_000}
    with pytest.raises(DataError):
        list_photos("s3://bucket/large.csv")
    assert sum(sizes) == len(store.files["large.csv"])
    assert max(sizes) < 1_000_000


def test_what_a_store_refuses_is_said_once_with_how_access_is_set(store):
    store.status = 403
    with pytest.raises(DataError, match=r"s3://bucket/set cannot be read: .*403.*AWS_ACCESS_KEY_ID") as caught:
        list_photos("s3://bucket/set")
    assert "\n" not in str(caught.value)
    store.status = 0
    store.files = {}
    with pytest.raises(DataError, match="There is nothing at s3://bucket/set"):
        list_photos("s3://bucket/set")


def test_a_profile_needs_boto3_and_keys_do_not(store, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = x\naws_secret_access_key = x\n")
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "obstore.auth.boto3", raising=False)
    assert contents(list_photos("s3://bucket/set")) == FILES
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match="pip install boto3"):
        list_photos("s3://bucket/set")


def test_without_obstore_fsspec_reads_and_says_what_it_lacks(monkeypatch, empty_cache):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(DataError, match=r"gs://bucket/set cannot be read here: .*gcsfs"):
        list_photos("gs://bucket/set")


@pytest.mark.parametrize(
    ("address", "opened"),
    [
        ("gcs://bucket/a/b", "gs://bucket"),
        ("az://container/a", "az://container"),
        ("abfss://files@account.dfs.core.windows.net/a", "abfss://files@account.dfs.core.windows.net"),
    ],
)
def test_other_stores_are_opened_by_their_own_addresses(address, opened, monkeypatch):
    from obstore import store as stores

    seen = []
    monkeypatch.setattr(stores, "from_url", lambda url, **_: seen.append(url))
    object_stores.remote_tree(address)
    assert seen == [opened]
    monkeypatch.undo()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert object_stores.remote_tree(address)


@pytest.fixture
def drawn(store, tmp_path):
    """Photos that can be decoded, one that cannot, and their addresses."""
    folder = draw_folder(tmp_path / "drawn", ("ant", "bee"), 2)
    store.files = {f"set/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in folder.rglob("*.jpg")}
    store.files |= {"set/bee/broken.jpg": b"no photo"}
    return [f"s3://bucket/{name}" for name in sorted(store.files)]


def test_photos_are_called_by_their_addresses(drawn, tmp_path, regraft_main, monkeypatch):
    bundle = write_tiny(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    done = regraft_main("predict", bundle, "s3://bucket/set", "--json", "--sort", "sorted", "--vote-by", "set/[a-z]+")
    assert [json.loads(line)["group"] for line in done.stdout.splitlines()] == ["set/ant", "set/bee"]
    assert len([path for path in (tmp_path / "sorted").rglob("*.jpg") if path.is_file()]) == 4
    done = regraft_main("predict", bundle, "s3://bucket/set", "--json")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["path"] for one in answers] == drawn
    assert all(drawn[-1] in one["error"] for one in answers if "error" in one)
    regraft_main("embed", "s3://bucket/set", "--bundle", bundle, "-o", "all.csv")
    assert [line.partition(",")[0].strip('"') for line in Path("all.csv").read_text().splitlines()[1:]] == drawn[:-1]
    done = regraft_main("similar", drawn[0], "s3://bucket/set", "--bundle", bundle, "--json", "--html", "page.html")
    assert sorted(one["path"] for one in json.loads(done.stdout)) == drawn[1:-1]
    assert Path("page.html").read_text().count("data:image/jpeg") == 4
    assert "cache" not in done.stdout
