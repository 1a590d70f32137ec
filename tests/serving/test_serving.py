"""The process: where it listens, under which names it may be called, and what it can do without."""

import socket
import time

import pytest

from bundle.test_without_torch import FORBIDDEN
from conftest import serving
from regraft.core.errors import ServeError
from regraft.serving import server as module
from regraft.serving.server import LOCAL, serve


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


def test_a_place_that_is_taken_is_left_alone(bundle):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        began = time.monotonic()
        with pytest.raises(ServeError, match="already in use"):
            serve(bundle, port=taken.getsockname()[1])
    assert time.monotonic() - began < 10  # no worker was started for it


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

    class NoPool:
        def __init__(self, *_):
            pass

        def close(self):
            pass

    def create(pool, about, limits, hosts, token):
        assert len(set(hosts)) == len(hosts)
        assert set(hosts) == known
        raise Stopped

    monkeypatch.setattr(module, "_listen", lambda *_: socket.socket())
    monkeypatch.setattr(module, "Pool", NoPool)
    monkeypatch.setattr(module, "create_app", create)
    with pytest.raises(Stopped):
        serve(bundle, host=host, hosts=more)


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
