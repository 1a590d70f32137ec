"""What is fetched is exactly what was expected, or nothing is kept."""

import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from regraft.core.errors import DataError
from regraft.core.files import sha256_bytes
from regraft.core.progress import Progress
from regraft.data.fetch import download, fetch_hymenoptera

PHOTOS = {"train/ants/1.jpg": b"an ant", "val/bees/2.jpg": b"a bee"}


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.mkdir("hymenoptera_data")
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


ARCHIVE = zipped({f"hymenoptera_data/{name}": data for name, data in PHOTOS.items()})
HOSTILE = zipped(
    {
        "hymenoptera_data/train/ants/1.jpg": b"an ant",
        "hymenoptera_data/../../escaped": b"!",
        "hymenoptera_data/train/../../../escaped": b"!",
        "../escaped": b"!",
        "/escaped": b"!",
        "escaped": b"!",
    }
)
BODIES = {"/good.zip": ARCHIVE, "/hostile.zip": HOSTILE, "/cut.zip": ARCHIVE[: len(ARCHIVE) // 2]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/nonsense":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
        elif self.path not in BODIES:
            self.send_error(404)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(ARCHIVE if self.path == "/cut.zip" else BODIES[self.path])))
            self.end_headers()
            self.wfile.write(BODIES[self.path])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine. `asked`: the paths that were asked for."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("REGRAFT_OFFLINE", raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_good_archive_is_unpacked_without_its_top_folder(server, tmp_path):
    folder = tmp_path / "photos"
    assert fetch_hymenoptera(folder, url=f"{server.url}/good.zip", sha256=sha256_bytes(ARCHIVE)) == folder
    assert files(tmp_path) == {f"photos/{name}": data for name, data in PHOTOS.items()}


def test_an_archive_writes_nowhere_else(server, tmp_path):
    folder = tmp_path / "a" / "b" / "photos"
    fetch_hymenoptera(folder, url=f"{server.url}/hostile.zip", sha256=sha256_bytes(HOSTILE))
    assert set(files(tmp_path)) == {"a/b/photos/train/ants/1.jpg", "a/b/photos/escaped"}


@pytest.mark.parametrize("path", ["cut.zip", "good.zip"])
def test_another_content_is_refused_and_leaves_nothing(server, tmp_path, path):
    sha256 = sha256_bytes(ARCHIVE if path == "cut.zip" else b"another")
    with pytest.raises(DataError, match=f"{server.url}/{path} is not what was expected: sha256 .* Nothing was kept"):
        fetch_hymenoptera(tmp_path / "photos", url=f"{server.url}/{path}", sha256=sha256)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["absent.zip", "nonsense"])
def test_a_server_that_fails_is_a_data_error_and_leaves_nothing(server, tmp_path, path):
    with pytest.raises(DataError, match=f"Cannot fetch {server.url}/{path}: "):
        fetch_hymenoptera(tmp_path / "photos", url=f"{server.url}/{path}", sha256="")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_a_data_error(server, tmp_path):
    with HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(DataError, match=r"refused.* Check the connection, or download it by hand"):
        fetch_hymenoptera(tmp_path / "photos", url=f"http://127.0.0.1:{port}/x.zip")
    assert list(tmp_path.iterdir()) == []


def test_offline_nothing_is_asked_for(server, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_OFFLINE", "1")
    with pytest.raises(DataError, match=f"{tmp_path}/photos is not there, and REGRAFT_OFFLINE forbids to fetch http"):
        fetch_hymenoptera(tmp_path / "photos", url=f"{server.url}/good.zip")
    assert server.asked == []


def test_photos_that_are_there_are_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_OFFLINE", "1")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.jpg").write_bytes(b"mine")
    assert fetch_hymenoptera(tmp_path, url=f"{server.url}/good.zip") == tmp_path
    assert files(tmp_path) == {"train/mine.jpg": b"mine"}
    assert server.asked == []


def test_something_else_in_the_folder_is_never_replaced(server, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    for folder in (tmp_path, tmp_path / "mine.jpg"):
        with pytest.raises(DataError, match=f"{folder} is there, but has no train folder"):
            fetch_hymenoptera(folder, url=f"{server.url}/good.zip", sha256=sha256_bytes(ARCHIVE))
    assert files(tmp_path) == {"mine.jpg": b"mine"}


def test_an_empty_folder_is_filled(server, tmp_path):
    fetch_hymenoptera(tmp_path, url=f"{server.url}/good.zip", sha256=sha256_bytes(ARCHIVE))
    assert files(tmp_path) == PHOTOS


def test_a_download_is_timed_and_silent_on_stdout(server, capsys):
    progress = Progress()
    assert download(f"{server.url}/good.zip", sha256_bytes(ARCHIVE), progress) == ARCHIVE
    assert "download good.zip" in progress.seconds
    assert capsys.readouterr().out == ""
