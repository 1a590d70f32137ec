"""The application by itself: what is answered to what, with workers that are made up."""

import asyncio
import base64
import gzip
import hmac
import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from regraft.core.errors import ServeError
from regraft.serving.access import Access
from regraft.serving.app import HEADERS, Served, about_model, create_app
from regraft.serving.limits import Limits
from regraft.serving.pool import Busy

CLASSES = ["blue", "green", "red"]
ABOUT = {"classes": CLASSES, "limits": {"max_bytes": 1000}}
LIMITS = Limits(max_bytes=1000, max_photos=4, buffered=1500, body_s=0.2)
RAW = ("content-type", "image/jpeg")
TYPED = ("content-type", "multipart/form-data; boundary=edge")
TOKEN = "geheim-ü"


@dataclass
class FakePool:
    """Says of a photo that it is what its bytes say. fails: what is raised in place of an answer."""

    is_healthy: bool = True
    num_waiting: int = 0
    fails: Exception | None = None
    asked: list[tuple[list[bytes], bool]] = field(default_factory=list)

    async def answers(self, photos: list[bytes], with_heat: bool) -> list[dict[str, Any]]:
        self.asked.append((photos, with_heat))
        if self.fails:
            raise self.fails
        return [self.answer(photo.decode(errors="replace"), with_heat) for photo in photos]

    def answer(self, said: str, with_heat: bool) -> dict[str, Any]:
        if said not in CLASSES:
            return {"error": "not an image of a known format"}
        shares = {name: 0.7 if name == said else 0.1 + 0.1 * (name > said) for name in CLASSES}
        heat = {"heatmap": "data:image/jpeg;base64,AA=="} if with_heat else {}
        rest = {"novelty": 0.5, "looks_new": False, "unsure": False, "labels": None}
        return {"label": said, "probability": 0.7, "probabilities": shares, **rest, **heat}


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    @property
    def json(self) -> Any:
        assert self["content-type"] == "application/json"
        return json.loads(self.body)


class Client:
    """Asks an application without a socket."""

    def __init__(
        self,
        pool: FakePool | None = None,
        limits: Limits = LIMITS,
        token: str | None = None,
        origins: tuple[str, ...] = (),
    ) -> None:
        self.pool = pool or FakePool()
        self.served = Served(self.pool, ABOUT, "abcdef0123456789" * 4)
        access = Access(("localhost", "[::1]", "photos.example"), origins, token)
        self.app = create_app(lambda: self.served, limits, access)

    def ask(self, *request: Any, **more: Any) -> Reply:
        return asyncio.run(self.send(*request, **more))

    async def send(self, method: str, address: str, *headers: tuple[str, str], body: Any = b"", host="localhost"):
        """body: bytes, or a list of parts: bytes, seconds or an event to wait for, None for a connection that ends."""
        path, _, query = address.partition("?")
        named = [*headers, *([("host", host)] if host is not None else [])]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "scheme": "http",
            "server": ("localhost", 80),
            "headers": [(name.encode(), value.encode()) for name, value in named],
        }
        told, left = [], list(body) if isinstance(body, list) else [body]

        async def receive():
            while left and isinstance(left[0], float | asyncio.Event):
                pause = left.pop(0)
                await (asyncio.sleep(pause) if isinstance(pause, float) else pause.wait())
            if not left or left[0] is None:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def told_of(message):
            told.append(message)

        await self.app(scope, receive, told_of)
        headers = [(name.decode(), value.decode()) for name, value in told[0]["headers"]]
        return Reply(told[0]["status"], headers, b"".join(one.get("body", b"") for one in told[1:]))

    def predict(self, *photos: Any, query: str = "", headers: Any = (), **more: Any) -> Reply:
        return self.ask("POST", f"/v1/predict{query}", TYPED, *headers, body=form(*photos), **more)

    def metrics(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.ask("GET", "/metrics", BEARER).body.decode())
        return {sample.name + str(sample.labels or ""): sample.value for one in families for sample in one.samples}


BEARER = ("authorization", f"Bearer {TOKEN}")


def form(*photos: Any, end: bytes = b"--edge--\r\n") -> bytes:
    """A part for each photo, bytes or a pair of file name and bytes."""
    pairs = [photo if isinstance(photo, tuple) else (f"{i}.jpg", photo) for i, photo in enumerate(photos)]
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="photo"; filename="%b"\r\n\r\n%b\r\n' % (name.encode(), data)
        for name, data in pairs
    ]
    return b"".join(parts) + end


def labels(reply: Reply) -> list[str | None]:
    return [row.get("label") for row in reply.json["predictions"]]


def test_a_body_is_a_photo():
    for kind in ("image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream", "binary/octet-stream"):
        client = Client()
        reply = client.ask("POST", "/v1/predict", ("content-type", kind), body=[b"r", b"", b"ed"])
        assert reply.status == 200
        (row,) = reply.json["predictions"]
        assert (row["name"], row["label"], row["probability"], row["novelty"]) == ("", "red", 0.7, 0.5)
        assert row["looks_new"] is row["unsure"] is False
        assert row["labels"] is None
        assert client.pool.asked == [([b"red"], False)]


def test_photos_of_a_form_are_answered_in_order_under_their_names():
    sent = [("z.jpg", b"red"), ("a.jpg", b"blue"), ("z.jpg", b"green"), ("", b"red")]
    reply = Client().predict(*sent)
    assert reply.status == 200
    assert labels(reply) == ["red", "blue", "green", "red"]
    assert [row["name"] for row in reply.json["predictions"]] == [name for name, _ in sent]


def test_fields_that_are_no_files_are_left_alone():
    field = b'--edge\r\nContent-Disposition: form-data; name="url"\r\n\r\nhttp://example.com/x.jpg\r\n'
    client = Client()
    assert labels(client.ask("POST", "/v1/predict", TYPED, body=field + form(b"red"))) == ["red"]
    reply = client.ask("POST", "/v1/predict", TYPED, body=field + form())
    assert (reply.status, "no files" in reply.json["error"]) == (400, True)
    assert client.pool.asked == [([b"red"], False)]


@pytest.mark.parametrize(("query", "kept"), [("", 3), ("?top=1", 1), ("?top=2", 2), ("?top=3", 3), ("?top=99", 3)])
def test_top_keeps_the_most_probable_in_order(query, kept):
    (row,) = Client().predict(b"green", query=query).json["predictions"]
    assert list(row["probabilities"].items()) == [("green", 0.7), ("red", 0.2), ("blue", 0.1)][:kept]


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("false", False)]
)
def test_heat_maps_come_when_they_are_asked_for(text, wanted):
    client = Client()
    (row,) = client.predict(b"red", query=f"?heatmap={text}").json["predictions"]
    assert ("heatmap" in row) is wanted
    assert client.pool.asked == [([b"red"], wanted)]


@pytest.mark.parametrize(
    "query", ["top=0", "top=-1", "top=x", "top=", "top=1.5", "top=%00", "top=1e9", f"top={'9' * 5000}", "heatmap=2"]
)
def test_settings_that_make_no_sense_are_refused_by_name(query):
    client = Client()
    reply = client.predict(b"red", query=f"?{query}")
    assert reply.status == 400
    assert reply.json["error"].startswith(f"{query.partition('=')[0]}='")
    assert len(reply.json["error"]) < 150
    assert client.pool.asked == []


def test_a_bad_photo_does_not_stop_the_others():
    reply = Client().predict(b"red", b"nonsense", b"blue")
    assert reply.status == 200
    assert labels(reply) == ["red", None, "blue"]
    assert reply.json["predictions"][1] == {"name": "1.jpg", "error": "not an image of a known format"}


def test_it_is_an_error_when_no_photo_can_be_read():
    reply = Client().predict(b"bad", b"worse")
    assert reply.status == 400
    assert all(row["error"] for row in reply.json["predictions"])


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "<img src=x onerror=alert(1)>", "=1+1", "ü🐝.jpg", "a\u202eb", "\x1b[2J", "x" * 900]
)
def test_file_names_come_back_as_they_were_sent(name):
    assert Client(limits=Limits()).predict((name, b"red")).json["predictions"][0]["name"] == name


@pytest.mark.parametrize("kind", ["text/plain", "application/jsonl", "application/zip", "", "multipart/mixed", "imag"])
def test_other_kinds_of_content_are_refused_before_they_are_read(kind):
    parts = [b"red", None]
    reply = Client().ask("POST", "/v1/predict", *([("content-type", kind)] if kind else []), body=parts)
    assert reply.status == 415
    assert "image/*" in reply.json["error"]


def test_too_large_a_body_is_refused():
    client = Client()
    for headers, parts in (
        ([("content-length", "1001")], [None]),
        ([("content-length", "9" * 4000)], [None]),
        ([], [b"x" * 600, b"x" * 600, None]),
        ([("content-length", "3")], [b"x" * 1001]),
    ):
        reply = client.ask("POST", "/v1/predict", RAW, *headers, body=parts)
        assert reply.status == 413
        assert "send fewer or smaller photos" in reply.json["error"]
        assert reply["connection"] is None  # or who is still sending never sees it
    assert client.pool.asked == []
    assert client.ask("POST", "/v1/predict", RAW, body=b"x" * 1000).status == 400


def test_a_body_that_does_not_come_in_time_is_given_up():
    reply = Client().ask("POST", "/v1/predict", RAW, body=[b"re", 30.0, b"d"])
    assert (reply.status, reply["connection"]) == (408, "close")
    assert "0.2 s" in reply.json["error"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"red",
        b"--edge--\r\n",
        b"--other\r\n\r\n",
        b"--edge\r\n\r\nred\r\n--edge--",
        b'--edge\r\nContent-Disposition: form-data; filename="a"\r\n\r\nred\r\n--edge--',
        b"--edge\r\n\0: \0\r\n\r\nred\r\n--edge--",
    ],
)
def test_a_form_that_is_none_is_refused(body):
    reply = Client().ask("POST", "/v1/predict", TYPED, body=body)
    assert reply.status == 400
    assert reply.json["error"]


def test_a_form_that_is_cut_off_loses_no_photo_silently():
    whole = form(b"red", b"blue")
    for end in (whole.index(b"blue") - 1, whole.index(b"blue") + 2, len(whole) - len(b"--edge--\r\n")):
        client = Client()
        reply = client.ask("POST", "/v1/predict", TYPED, body=whole[:end])
        assert reply.status == 400
        assert "cut off" in reply.json["error"]
        assert client.pool.asked == []
    assert labels(Client().ask("POST", "/v1/predict", TYPED, body=whole[:-2])) == ["red", "blue"]


def test_who_is_heard_when_the_server_has_to_stop_is_told_so():
    client = Client(limits=Limits())

    async def stopped():
        request = asyncio.create_task(client.send("POST", "/v1/predict", RAW, body=[b"r", 60.0, b"ed"]))
        await asyncio.sleep(0.01)
        request.cancel()
        return await request

    reply = asyncio.run(stopped())
    assert (reply.status, reply["retry-after"]) == (503, "10")
    assert "being stopped" in reply.json["error"]
    assert client.metrics()["regraft_buffered_bytes"] == 0


def test_more_photos_than_are_allowed_are_refused():
    client = Client()
    assert client.predict(*[b"red"] * 4).status == 200
    reply = client.predict(*[b"red"] * 5)
    assert reply.status == 400
    assert "4" in reply.json["error"]
    assert len(client.pool.asked) == 1


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "unicode_escape", "utf-7", "hex", "x", '"a\0b"'])
def test_a_form_cannot_choose_how_names_are_read(charset):
    headers = ("content-type", f"multipart/form-data; boundary=edge; charset={charset}")
    for name in ("+2AA-.jpg", "\\ud800.jpg", "ü" * 70, f"xn--{'a' * 70}.jpg"):
        reply = Client().ask("POST", "/v1/predict", headers, body=form((name, b"red")))
        assert reply.status == 200
        assert reply.json["predictions"][0]["name"] == name


def test_what_is_not_there_and_what_is_not_allowed_is_said_in_json():
    client = Client()
    for path in ("/nothing", "/v1", "/page.css/../app.py", "/openapi", "/v1/predict/x", "http://localhost/healthz"):
        reply = client.ask("GET", path)
        assert reply.status == 404, path
        assert set(reply.json) == {"error"}
    for method, path in (("GET", "/v1/predict"), ("POST", "/"), ("PUT", "/v1/model"), ("OPTIONS", "/v1/predict")):
        reply = client.ask(method, path)
        assert reply.status == 405, path
        assert set(reply.json) == {"error"}
        assert reply["allow"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "[::1]:8000", "photos.example"])
def test_names_that_are_known_may_be_used(host):
    assert Client().ask("GET", "/v1/model", host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:80#localhost",
        "",
        "127.0.0.2",
        "localhost:x",
        "a b",
        None,
    ],
)
def test_a_name_that_another_site_lent_us_is_refused(host):
    """Against DNS rebinding: a page of that site could read what we answer."""
    for path in ("/", "/v1/model", "/openapi.json", "/nothing"):
        reply = Client().ask("GET", path, host=host)
        assert reply.status == 400
        assert "--allow-host" in reply.json["error"]
    client = Client()
    assert client.predict(b"red", host=host).status == 400
    assert client.pool.asked == []


def test_a_token_opens_all_and_without_it_only_the_page_and_the_health_are_open():
    client = Client(token=TOKEN)
    for path in ("/", "/page.js", "/page.css", "/healthz"):
        assert client.ask("GET", path).status == 200
    closed = [
        ("GET", "/v1/model"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/predict"),
        ("GET", "/x"),
    ]
    for method, path in closed:
        reply = client.ask(method, path)
        assert (reply.status, reply["www-authenticate"]) == (401, "Bearer")
        assert "Authorization: Bearer" in reply.json["error"]
        assert client.ask(method, path, BEARER).status != 401
    assert client.pool.asked == []
    assert client.ask("POST", "/v1/predict", RAW, BEARER, body=b"red").status == 200


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN} ", f"Bearer  {TOKEN}", f"Bearer {TOKEN}x", TOKEN],
)
def test_what_is_nearly_the_token_is_not_the_token(sent):
    assert Client(token=TOKEN).ask("GET", "/v1/model", ("authorization", sent)).status == 401


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
    Client(token=TOKEN).ask("GET", "/v1/model", ("authorization", "Bearer x"))
    assert compared == [(b"x", TOKEN.encode())]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_of_a_token_may_be_written_in_any_case(scheme):
    assert Client(token=TOKEN).ask("GET", "/v1/model", ("authorization", f"{scheme} {TOKEN}")).status == 200


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_a_token_that_would_keep_nobody_out_is_refused(token):
    with pytest.raises(ServeError, match="REGRAFT_TOKEN"):
        Access(token=token).check()
    Access(token=TOKEN).check()


@pytest.mark.parametrize("origin", ["shop.example", "https://", "https://shop.example/page", "", "https://a b"])
def test_an_origin_that_is_none_is_refused(origin):
    with pytest.raises(ServeError, match=r"https://shop\.example"):
        Access(origins=(origin,)).check()
    Access(origins=("*", "https://shop.example", "http://[::1]:8080", "app://x")).check()


@pytest.mark.parametrize("host", ["10.244.0.5:8762", "evil.example", "", None])
def test_probes_may_ask_by_whatever_name(host):
    """Kubernetes, load balancers and Prometheus ask by address."""
    for path in ("/healthz", "/metrics", "/healthz/", "/metrics/"):
        assert Client().ask("GET", path, host=host).status == 200
    client = Client(token=TOKEN)
    assert client.ask("GET", "/healthz", host=host).status == 200
    assert client.ask("GET", "/metrics", host=host).status == 401


def test_a_slash_at_the_end_is_answered_and_leads_nowhere():
    for path in ("/healthz/", "/v1/model/", "/openapi.json/"):
        reply = Client().ask("GET", path)
        assert (reply.status, reply["location"]) == (200, None)
    assert Client().ask("GET", "/healthz//").status == 404


SITES = {
    "no browser": ((), 200),
    "our page": ((("origin", "http://localhost"), ("sec-fetch-site", "same-origin")), 200),
    "our page behind a proxy": ((("origin", "https://photos.example"), ("sec-fetch-site", "same-origin")), 200),
    "our page in an old browser": ((("origin", "http://localhost"),), 200),
    "an address that was typed": ((("sec-fetch-site", "none"),), 200),
    "a page elsewhere": ((("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")), 403),
    "a page elsewhere in an old browser": ((("origin", "https://evil.example"),), 403),
    "a page of another port": ((("origin", "http://localhost:3000"), ("sec-fetch-site", "same-site")), 403),
    "a page that hides": ((("origin", "null"),), 403),
    "a page that shows nothing": ((("sec-fetch-site", "cross-site"),), 403),
    "a name that begins as ours": ((("origin", "http://localhost.evil.example"),), 403),
}


@pytest.mark.parametrize("name", SITES)
def test_pages_of_other_sites_cannot_make_the_server_compute(name):
    headers, status = SITES[name]
    client = Client()
    reply = client.predict(b"red", headers=headers)
    assert reply.status == status
    assert bool(client.pool.asked) is (status == 200)
    if status == 403:
        assert "--allow-origin" in reply.json["error"]
    assert client.ask("GET", "/v1/model", *headers).status == 200  # its answer stays unread


SHOP = ("origin", "https://shop.example")


def test_pages_of_an_origin_that_is_allowed_may_ask_and_read():
    client = Client(origins=(SHOP[1],), token=TOKEN)
    asked = (
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    )
    preflight = client.ask("OPTIONS", "/v1/predict", SHOP, *asked)
    assert (preflight.status, preflight["access-control-allow-origin"]) == (200, SHOP[1])
    assert "POST" in preflight["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= set(preflight["access-control-allow-headers"].lower().split(", "))
    reply = client.predict(b"red", headers=(SHOP, ("sec-fetch-site", "cross-site"), BEARER))
    assert (reply.status, reply["access-control-allow-origin"]) == (200, SHOP[1])
    assert "X-Model" in reply["access-control-expose-headers"]
    closed = client.predict(b"red", headers=(SHOP,))
    assert (closed.status, closed["access-control-allow-origin"]) == (401, SHOP[1])  # so that the page can tell
    other = client.predict(b"red", headers=(("origin", "https://shop.example.evil"), BEARER))
    assert (other.status, other["access-control-allow-origin"]) == (403, None)
    assert Client(origins=("*",)).predict(b"red", headers=(SHOP,)).status == 200


def test_a_request_with_two_lengths_is_refused():
    client = Client()
    reply = client.ask(
        "POST", "/v1/predict", RAW, ("content-length", "3"), ("transfer-encoding", "chunked"), body=b"red"
    )
    assert (reply.status, reply["connection"]) == (400, "close")
    assert "two lengths" in reply.json["error"]
    assert client.pool.asked == []


def test_every_answer_says_which_model_gave_it():
    client = Client()
    for reply in (client.predict(b"red"), client.predict(b"bad"), client.ask("GET", "/v1/model")):
        assert reply["x-model"] == "abcdef012345"


def test_a_request_is_answered_by_one_model_though_another_takes_its_place():
    client, pause = Client(), asyncio.Event()

    async def changed():
        task = asyncio.create_task(client.send("POST", "/v1/predict", RAW, body=[b"r", pause, b"ed"]))
        await asyncio.sleep(0.01)
        other = Served(FakePool(), {**ABOUT, "classes": ["x"]}, "0123456789abcdef" * 4)
        client.served, old = other, client.served
        pause.set()
        return await task, old, other

    reply, old, other = asyncio.run(changed())
    assert reply["x-model"] == other.sha256[:12]
    assert (old.pool.asked, other.pool.asked) == ([], [([b"red"], False)])


@pytest.mark.parametrize("name", ["caf\udce9", "\ud83d"])
def test_names_that_are_no_unicode_are_answered(name):
    class Odd(FakePool):
        def answer(self, said, with_heat):
            return {**super().answer("red", with_heat), "label": name, "probabilities": {name: 1.0}, "labels": [name]}

    client = Client(Odd())
    client.served = Served(client.pool, {**ABOUT, "classes": [name]}, "0" * 64)
    (row,) = client.predict(b"red").json["predictions"]
    assert (row["label"], list(row["probabilities"]), row["labels"]) == (name, [name], [name])
    assert client.ask("GET", "/v1/model").json["classes"] == [name]


PACKED = (RAW, ("content-encoding", "gzip"))


def test_a_body_may_be_compressed():
    for coding in ("gzip", "GZIP", "x-gzip", "identity"):
        body = b"red" if coding == "identity" else gzip.compress(b"red", mtime=0)
        reply = Client().ask("POST", "/v1/predict", RAW, ("content-encoding", coding), body=body)
        assert labels(reply) == ["red"]
    reply = Client().ask("POST", "/v1/predict", TYPED, PACKED[1], body=gzip.compress(form(b"red", b"blue"), mtime=0))
    assert labels(reply) == ["red", "blue"]


def test_what_is_compressed_takes_no_more_than_a_body_may():
    client = Client()
    for size, status in ((1000, 400), (1001, 413), (10**8, 413)):
        packed = gzip.compress(bytes(size), mtime=0)
        if len(packed) <= LIMITS.max_bytes:
            reply = client.ask("POST", "/v1/predict", *PACKED, body=packed)
            assert reply.status == status
        assert client.metrics()["regraft_buffered_bytes"] == 0
    bomb = gzip.compress(bytes(64 * 2**20), mtime=0)
    reply = Client(limits=Limits(max_bytes=2**20, buffered=2**21)).ask("POST", "/v1/predict", *PACKED, body=bomb)
    assert reply.status == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"red",
        gzip.compress(b"red", mtime=0)[:-5],
        gzip.compress(b"red", mtime=0)[:12],
        gzip.compress(b"red", mtime=0) + b"x",
    ],
)
def test_what_is_no_gzip_is_refused(body):
    reply = Client().ask("POST", "/v1/predict", *PACKED, body=body)
    assert reply.status == 400
    assert "gzip" in reply.json["error"]


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd", "x"])
def test_other_compressions_are_refused_before_they_are_read(coding):
    reply = Client().ask("POST", "/v1/predict", RAW, ("content-encoding", coding), body=[b"red", None])
    assert (reply.status, reply["accept-encoding"]) == (415, "gzip")


def encoded(*photos: bytes) -> list[str]:
    return [base64.b64encode(photo).decode() for photo in photos]


def ask_json(value: Any, client: Client | None = None) -> Reply:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return (client or Client()).ask("POST", "/v1/predict", ("content-type", "application/json"), body=body)


def test_photos_may_come_in_json():
    (red,) = encoded(b"red")
    assert labels(ask_json({"image": red})) == ["red"]
    assert labels(ask_json({"images": encoded(b"red", b"blue", b"green")})) == ["red", "blue", "green"]
    assert labels(ask_json({"image": f"data:image/jpeg;base64,{red}"})) == ["red"]
    assert labels(ask_json({"images": encoded(b"red", b"bad")})) == ["red", None]


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"{", b"\xff", b"[" * 200, b'{"image": ' * 50, b'{"image": NaN}', {}, [], "red", None, 3),
        *({"image": 3}, {"image": None}, {"image": ["cmVk"]}, {"images": "cmVk"}, {"images": []}, {"images": [3]}),
        *({"image": "cm"}, {"image": "c m V k"}, {"image": ""}, {"image": "/etc/passwd"}, {"image": "http://x/a.jpg"}),
        *({"image": "cmVk", "images": ["cmVk"]}, {"url": "cmVk"}, {"images": ["cmVk"] * 5}, {"image": "é"}),
        *({"image": "\ud800"}, {"image": "data:image/jpeg,cmVk"}, [1] * 300),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_without_photos_is_refused(value):
    client = Client()
    reply = ask_json(value, client)
    assert (reply.status, bool(reply.json["error"])) == (400, True)
    assert client.pool.asked == []
    assert client.metrics()["regraft_buffered_bytes"] == 0


def test_json_of_many_small_things_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was read"))
    reply = Client(limits=Limits()).ask(
        "POST", "/v1/predict", ("content-type", "application/json"), body=b"[" + b"[]," * 2**20
    )
    assert reply.status == 400


def answers_of_every_kind() -> dict[str, Reply]:
    closed, failing = Client(token=TOKEN), Client(FakePool(fails=RuntimeError("secret")))
    open_ = Client()
    asked = {
        **{
            path: open_.ask("GET", path) for path in ("/", "/page.js", "/page.css", "/v1/model", "/healthz", "/metrics")
        },
        "openapi": open_.ask("GET", "/openapi.json"),
        "200": open_.predict(b"red"),
        "200 slash": open_.ask("GET", "/v1/model/"),
        "400": open_.predict(b"bad"),
        "400 host": open_.ask("GET", "/", host="evil.example"),
        "401": closed.ask("GET", "/v1/model"),
        "403": open_.predict(b"red", headers=(("origin", "https://evil.example"),)),
        "404": open_.ask("GET", "/nothing"),
        "405": open_.ask("GET", "/v1/predict"),
        "408": open_.ask("POST", "/v1/predict", RAW, body=[b"", 30.0]),
        "413": open_.ask("POST", "/v1/predict", RAW, body=bytes(1001)),
        "415": open_.ask("POST", "/v1/predict"),
        "503": Client(FakePool(fails=Busy(3))).predict(b"red"),
        "503 health": Client(FakePool(is_healthy=False)).ask("GET", "/healthz"),
    }
    with pytest.raises(RuntimeError, match="secret"):  # which goes to the log
        failing.predict(b"red")
    assert all(reply.status == int(name[:3]) for name, reply in asked.items() if name[0].isdecimal())
    return asked


def test_every_answer_bears_the_headers_that_keep_browsers_safe():
    for name, reply in answers_of_every_kind().items():
        found = [(key, value) for key, value in reply.headers if key in {h.lower() for h in HEADERS}]
        assert sorted(found) == sorted((key.lower(), value) for key, value in HEADERS.items()), name


def test_the_policy_lets_a_page_load_nothing_from_elsewhere():
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert not [value for value in policy.values() if re.search(r"http|\*|unsafe", value)]


def test_no_other_site_is_allowed_to_read_an_answer():
    origin = ("origin", "https://evil.example")
    preflight = (origin, ("access-control-request-method", "POST"))
    replies = [*answers_of_every_kind().values(), Client().ask("GET", "/v1/model", origin)]
    replies.append(Client().ask("OPTIONS", "/v1/predict", *preflight))
    assert not [name for reply in replies for name, _ in reply.headers if name.startswith("access-control")]


def test_no_answer_tells_of_the_server_within():
    for reply in answers_of_every_kind().values():
        assert not {"server", "x-powered-by"} & {name for name, _ in reply.headers}
        assert b"Traceback" not in reply.body


def test_an_error_of_ours_is_told_without_its_reason():
    client = Client(FakePool(fails=RuntimeError("secret")))
    told = []

    async def send(message):
        told.append(message)

    async def receive():
        return {"type": "http.request", "body": b"red", "more_body": False}

    headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "headers": headers}
    with pytest.raises(RuntimeError, match="secret"):
        asyncio.run(client.app(scope, receive, send))
    assert told[0]["status"] == 500
    assert json.loads(told[1]["body"]) == {"error": "something went wrong here; the server's log says what"}
    assert {name.lower().encode() for name in HEADERS} <= {name for name, _ in told[0]["headers"]}
    assert client.metrics()["regraft_buffered_bytes"] == 0


@pytest.mark.parametrize("error", [Busy(7), TimeoutError()])
def test_a_server_with_too_much_to_do_says_when_to_come_again(error):
    reply = Client(FakePool(fails=error)).predict(b"red")
    assert reply.status == 503
    assert reply["retry-after"] == ("7" if isinstance(error, Busy) else "5")
    assert reply.json["error"]


def test_bodies_take_no_more_memory_than_all_may():
    client, pause = Client(limits=Limits(max_bytes=1000, buffered=1500)), asyncio.Event()

    async def at_once():
        waiting = [asyncio.create_task(client.send("POST", "/v1/predict", RAW, body=[bytes(700), pause, b""]))]
        waiting.append(asyncio.create_task(client.send("POST", "/v1/predict", RAW, body=[bytes(600), pause, b"red"])))
        await asyncio.sleep(0.01)
        refused = await client.send("POST", "/v1/predict", RAW, body=bytes(201))
        fits = await client.send("POST", "/v1/predict", RAW, body=bytes(197))
        pause.set()
        return [refused, fits, *await asyncio.gather(*waiting)]

    replies = asyncio.run(at_once())
    assert [reply.status for reply in replies] == [503, 400, 400, 400]
    assert replies[0]["retry-after"] == "1"
    assert "too much is being sent" in replies[0].json["error"]
    assert client.metrics()["regraft_buffered_bytes"] == 0


FAILURES = {
    "too large": (RAW, [b"x" * 900, b"x" * 900]),
    "too late": (RAW, [b"x" * 900, 30.0, b"x"]),
    "a client that leaves": (RAW, [b"x" * 900, None]),
    "no photo": (RAW, b"x" * 900),
    "no form": (TYPED, b"x" * 900),
    "a photo": (RAW, b"red"),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("fails", [None, Busy(1), TimeoutError()])
def test_memory_is_given_back_however_a_request_ends(name, fails):
    client = Client(FakePool(fails=fails))
    kind, body = FAILURES[name]
    for _ in range(3):
        client.ask("POST", "/v1/predict", kind, body=body)
    assert client.metrics()["regraft_buffered_bytes"] == 0


def test_metrics_count_requests_and_photos():
    client = Client(FakePool(num_waiting=3))
    client.predict(b"red", b"bad", b"blue")
    client.predict(b"bad")
    client.ask("GET", "/v1/model")
    for path in ("/secret/1", "/secret/2"):
        client.ask("GET", path)
    found = client.metrics()
    assert found["regraft_photos_waiting"] == 3
    assert found["regraft_photos_total{'outcome': 'answered'}"] == 2
    assert found["regraft_photos_total{'outcome': 'failed'}"] == 2
    assert found["regraft_requests_total{'path': '/v1/predict', 'status': '200'}"] == 1
    assert found["regraft_requests_total{'path': '/v1/predict', 'status': '400'}"] == 1
    assert found["regraft_requests_total{'path': 'other', 'status': '404'}"] == 2
    assert found["regraft_predict_seconds_count"] == 2
    assert not [name for name in found if "secret" in name]


def test_health_tells_whether_all_workers_are_there():
    assert Client().ask("GET", "/healthz").json == {"status": "ok"}
    reply = Client(FakePool(is_healthy=False)).ask("GET", "/healthz")
    assert (reply.status, reply.json["status"]) == (503, "a worker is being started")


def test_the_model_is_told_as_its_bundle_has_it(bundle):
    told = about_model(bundle, Limits())
    assert told["classes"] == ["blue", "green", "red"]
    assert told["input"] == {"height": bundle.preprocessing.height, "width": bundle.preprocessing.width}
    assert told["accuracy"]["n"] == sum(row["n"] for row in told["per_class"]) == 6
    assert told["limits"] == {"max_bytes": 32 * 2**20, "max_photos": 64, "max_pixels": 2**27}
    assert told["num_params"] == bundle.manifest["backbone"]["num_params"] > 0
    assert len(told["sha256"]) == 64
    assert Client().ask("GET", "/v1/model").json == ABOUT
    json.dumps(told, allow_nan=False)


def test_the_page_comes_in_three_files_of_ours():
    client = Client()
    page = client.ask("GET", "/")
    assert page["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())
    assert sorted(links) == ["data:,", "openapi.json", "page.css", "page.js"]
    for link, kind in {"/page.css": "text/css", "/page.js": "text/javascript"}.items():
        assert client.ask("GET", link)["content-type"] == f"{kind}; charset=utf-8"
    assert not re.search(r"<script>|<style|\son\w+=|style=", page.body.decode())


KINDS = {"object": dict, "array": list, "string": str, "number": (int, float), "boolean": bool, "null": type(None)}
KINDS["integer"] = int


def problems(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """Where a value is not as its schema says, or the schema does not speak of it."""
    if "anyOf" in schema:
        return min((problems(value, one, at) for one in schema["anyOf"]), key=len)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if (
        kinds
        and not isinstance(value, tuple(KINDS[kind] for kind in kinds if kind != "null") or ())
        and (value is not None or "null" not in kinds)
    ):
        return [f"{at}: {value!r} is no {kinds}"]
    if isinstance(value, list):
        return [one for i, item in enumerate(value) for one in problems(item, schema.get("items", {}), f"{at}[{i}]")]
    if isinstance(value, dict) and schema:
        known, more = schema.get("properties", {}), schema.get("additionalProperties")
        missing = [f"{at}: {name} is missing" for name in schema.get("required", []) if name not in value]
        unknown = [f"{at}: nothing is said of {name}" for name in value if name not in known and more is None]
        inner = [
            one for name, item in value.items() for one in problems(item, known.get(name, more or {}), f"{at}.{name}")
        ]
        return missing + unknown + inner
    return []


def schemas(node: Any) -> list[dict[str, Any]]:
    own = [node["schema"]] if isinstance(node, dict) and "schema" in node else []
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return own + [one for item in inner for one in schemas(item)]


@pytest.mark.parametrize("token", [None, TOKEN])
def test_the_description_is_an_openapi_document(token):
    document = Client(token=token).ask("GET", "/openapi.json", BEARER).json
    assert re.fullmatch(r"3\.1\.\d", document["openapi"])
    assert set(document) <= {"openapi", "info", "paths", "components", "security"}
    assert {"title", "version"} <= set(document["info"])
    for path, item in document["paths"].items():
        assert path.startswith("/")
        for method, operation in item.items():
            assert method in ("get", "post")
            assert set(operation) <= {"summary", "parameters", "requestBody", "responses", "security"}
            for parameter in operation.get("parameters", []):
                assert {"name", "in", "schema"} <= set(parameter)
                assert parameter["in"] == "query"
            for status, response in operation["responses"].items():
                assert re.fullmatch(r"[2-5]\d\d", status)
                assert response["description"]
                assert all("/" in kind and "schema" in content for kind, content in response["content"].items())
    kinds = [one.get("type", "object") for one in schemas(document)]
    assert all(set([kind] if isinstance(kind, str) else kind) <= set(KINDS) for kind in kinds)
    assert bool(document.get("security")) is (token is not None)
    for scheme in document.get("security", []):
        assert set(scheme) <= set(document["components"]["securitySchemes"])


def test_every_path_answers_as_it_is_described(bundle):
    paths = Client(token=TOKEN).ask("GET", "/openapi.json", BEARER).json["paths"]
    busy, closed = Client(FakePool(fails=Busy(1), is_healthy=False)), Client(token=TOKEN)
    asked = {
        ("/v1/predict", "post"): [
            Client().predict(b"red", b"bad", query="?top=2&heatmap=1"),
            Client().predict(b"bad"),
            Client().predict(b"red", query="?top=x"),
            Client().ask("POST", "/v1/predict", RAW, body=[30.0]),
            Client().ask("POST", "/v1/predict", RAW, body=bytes(1001)),
            Client().ask("POST", "/v1/predict"),
            Client().predict(b"red", headers=(("origin", "https://evil.example"),)),
            busy.predict(b"red"),
            closed.predict(b"red"),
        ],
        ("/v1/model", "get"): [Client().ask("GET", "/v1/model"), closed.ask("GET", "/v1/model")],
        ("/healthz", "get"): [Client().ask("GET", "/healthz"), busy.ask("GET", "/healthz")],
        ("/metrics", "get"): [Client().ask("GET", "/metrics"), closed.ask("GET", "/metrics")],
    }
    described = {(path, method): operation for path, item in paths.items() for method, operation in item.items()}
    assert asked.keys() == described.keys()
    for place, replies in asked.items():
        responses = described[place]["responses"]
        assert {str(reply.status) for reply in replies} == set(responses), place
        for reply in replies:
            ((kind, content),) = responses[str(reply.status)]["content"].items()
            assert reply["content-type"].startswith(kind)
            if kind == "application/json":
                assert problems(reply.json, content["schema"]) == [], place


def test_the_description_names_the_limits_that_are_in_force():
    responses = Client().ask("GET", "/openapi.json").json["paths"]["/v1/predict"]["post"]["responses"]
    assert "1000 bytes" in responses["413"]["description"]
    assert "0.2 s" in responses["408"]["description"]
