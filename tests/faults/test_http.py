"""The server among hostile, slow and vanishing clients, all of them on this machine. (Rows H1 to H11.)"""

import base64
import io
import json
import os
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import COLOURS, serving
from faults.processes import IS_LONG, TRIALS, free_port, mostly_long, record
from faults.test_corpus import bombs, damaged_and_odd
from regraft.serving.app import HEADERS
from regraft.serving.limits import MEGA

pytestmark = pytest.mark.slow
SHORT = {"header_s": 1.0, "body_s": 2.0, "waiting": 16}
END = b"\r\n\r\n"
CLOSE = 1e-5


def photo(seed: int) -> bytes:
    """Blotches that no other seed has, so that no other photo has the same probabilities."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def head(*lines: str, path: str = "/v1/predict", method: str = "POST") -> bytes:
    """A request up to its body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines]).encode("latin-1") + END


def form(*parts: bytes, edge: bytes = b"edge") -> bytes:
    """Each part with its own headers."""
    return b"".join(b"--%b\r\n%b\r\n" % (edge, part) for part in parts) + b"--%b--\r\n" % edge


def file_part(data: bytes, name: str = "a.jpg") -> bytes:
    return b'Content-Disposition: form-data; name="photo"; filename="%b"\r\n\r\n%b' % (name.encode(), data)


def posted(body: bytes, kind: str = "image/jpeg") -> bytes:
    return head(f"Content-Type: {kind}", f"Content-Length: {len(body)}") + body


def posted_form(body: bytes) -> bytes:
    return posted(body, "multipart/form-data; boundary=edge")


def is_whole(answer: bytes) -> bool:
    """Whether a final answer is there up to the end of its body."""
    start, _, body = answer.partition(END)
    length = re.search(rb"(?i)\ncontent-length: (\d+)", start)
    return bool(length) and len(body) >= int(length[1]) and not start.startswith(b"HTTP/1.1 1")


def exchange(served, *parts: bytes, endless: bytes = b"", timeout: float = 60.0) -> bytes:
    """What is answered, from first to last byte, while it is being sent to. endless: sent again and again."""
    answer, left = b"", list(parts)
    deadline = time.monotonic() + timeout
    with served.connect() as connection, selectors.DefaultSelector() as selector:
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        with suppress(ConnectionError):
            while not is_whole(answer):
                assert time.monotonic() < deadline, (answer, [part[:200] for part in parts])
                ((_, ready),) = selector.select(1.0) or [(None, 0)]
                if ready & selectors.EVENT_READ:
                    received = connection.recv(2**16)
                    if not received:
                        break
                    answer += received
                elif ready & selectors.EVENT_WRITE:
                    left = rest_of(connection, left or [endless])
                    if not left and not endless:
                        selector.modify(connection, selectors.EVENT_READ)
    return answer


def rest_of(connection: socket.socket, parts: list[bytes]) -> list[bytes]:
    """What of the parts is still to be sent, after some of the first was."""
    count = 0
    with suppress(ConnectionError):  # nobody reads any more, but what was answered before can still be read
        count = connection.send(parts[0])
    return [parts[0][count:], *parts[1:]] if count < len(parts[0]) else parts[1:]


def status(answer: bytes) -> int | None:
    """None where the connection was ended without an answer."""
    return int(answer.split(b" ", 2)[1]) if answer else None


def megabytes(*pids: int) -> float:
    """In memory."""
    page = os.sysconf("SC_PAGESIZE")
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in pids) / MEGA


class Peak:
    """How many megabytes more than at its start a process has had."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")
        (self.folder / "clear_refs").write_text("5")
        self.start = megabytes(pid)

    @property
    def more(self) -> float:
        return int(re.search(r"VmHWM:\s+(\d+)", (self.folder / "status").read_text())[1]) / 1024 - self.start


def num_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def metric(served, name: str) -> float:
    return float(re.search(rf"(?m)^{name} (\S+)$", served.ask("GET", "/metrics").body.decode())[1])


def is_at_rest(served) -> bool:
    return metric(served, "regraft_buffered_bytes") == metric(served, "regraft_photos_waiting") == 0


@pytest.fixture(scope="module")
def server(bundle):
    """One that waits for seconds only."""
    with serving(bundle.folder, options={"limits": SHORT}) as served:
        assert served.predict(photo(0), "?heatmap=1").status == 200
        yield served


CHUNKED = head("Content-Type: image/jpeg", "Transfer-Encoding: chunked")
TYPED = "Content-Type: image/jpeg"
OVER = 40 * MEGA
BODIES = {
    "a length over the limit": (head(TYPED, f"Content-Length: {OVER}"), b""),
    "a length over the limit, and all of it": (head(TYPED, f"Content-Length: {OVER}"), bytes(OVER)),
    "a length of twenty digits": (head(TYPED, f"Content-Length: {'9' * 20}"), bytes(2**16)),
    "a length of a thousand digits": (head(TYPED, f"Content-Length: {'9' * 1000}"), bytes(2**16)),
    "a negative length": (head(TYPED, "Content-Length: -1"), bytes(2**16)),
    "a length with a sign": (head(TYPED, "Content-Length: +5"), b"12345"),
    "a length in hexadecimal": (head(TYPED, "Content-Length: 0x10"), bytes(16)),
    "a length that is no number": (head(TYPED, "Content-Length: many"), bytes(2**16)),
    "an empty length": (head(TYPED, "Content-Length: "), bytes(2**16)),
    "two lengths": (head(TYPED, "Content-Length: 5", "Content-Length: 6"), b"123456"),
    "a length too small": (head(TYPED, "Content-Length: 10"), bytes(OVER)),
    "a length too large": (head(TYPED, "Content-Length: 1000"), b"12345"),
    "no length": (head(TYPED), bytes(OVER)),
    "a form over the limit": (
        head("Content-Type: multipart/form-data; boundary=edge", "Transfer-Encoding: chunked"),
        b"%x\r\n%b\r\n" % (OVER, form(file_part(bytes(OVER)))[:OVER]),
    ),
    "one chunk over the limit": (CHUNKED, b"%x\r\n%b\r\n0\r\n\r\n" % (OVER, bytes(OVER))),
    "a chunk of impossible size": (CHUNKED, b"F" * 16 + b"\r\n" + bytes(OVER)),
    "a chunk of negative size": (CHUNKED, b"-5\r\n12345\r\n0\r\n\r\n"),
    "a chunk without an end": (CHUNKED, b"5\r\n123456789\r\n0\r\n\r\n"),
    "chunked in two ways": (head(TYPED, "Transfer-Encoding: gzip, chunked"), b"0\r\n\r\n"),
}
ENDLESS = {
    "chunks": (CHUNKED, b"%x\r\n%b\r\n" % (2**16, bytes(2**16))),
    "tiny chunks": (CHUNKED, b"1\r\nx\r\n" * 5000),
    "a chunk's extension": (CHUNKED + b"5;", b"x" * 2**16),
    "trailers": (CHUNKED + b"0\r\n", b"a: b\r\n" * 5000),
    "headers": (head(TYPED)[:-2], b"a: b\r\n" * 5000),
    "one header": (head(TYPED)[:-2] + b"a: ", b"x" * 2**16),
    "a path": (b"GET /", b"x" * 2**16),
}


def test_bodies_that_lie_or_never_end_take_no_memory_and_no_time(server, record_property):
    good, answers, more = photo(1), {}, {}
    cases = {name: (*parts, b"") for name, parts in BODIES.items()}
    cases |= {f"endless {name}": (start, b"", again) for name, (start, again) in ENDLESS.items()}
    for name, (start, body, endless) in cases.items():
        peak = Peak(server.process.pid)
        answers[name] = status(exchange(server, start, body, endless=endless))
        assert server.predict(good).status == 200, name
        more[name] = peak.more
    assert len(cases) >= 20
    assert {name: code for name, code in answers.items() if code not in (400, 408, 413)} == {}
    assert Counter(answers.values())[413] >= 5
    assert answers["a length too large"] == 408
    assert max(more.values()) <= 32 + 32, more
    server.wait_until(lambda: is_at_rest(server))
    record(record_property, "H1", passed=len(cases), failed=0, largest_growth_mb=round(max(more.values()), 1))


def test_who_does_not_stop_sending_is_cut_off(server):
    """Several at once: each of them has its own seconds to come to an end."""

    def send(name: str) -> None:
        start, again = ENDLESS[name]
        deadline = time.monotonic() + 60
        with server.connect() as connection, pytest.raises(ConnectionError):  # noqa: PT012  # whichever is cut off
            connection.sendall(start)
            while time.monotonic() < deadline:
                connection.sendall(again)
                time.sleep(0.001)  # the others, and the server, have their turn

    with ThreadPoolExecutor(3) as pool:
        for one in [pool.submit(send, name) for name in ("chunks", "tiny chunks", "trailers")]:
            one.result()
    server.wait_until(lambda: is_at_rest(server))


@pytest.mark.parametrize("body", [bytes(OVER), b"5\r\n123456789" + bytes(OVER)], ids=["too much", "nonsense"])
def test_who_is_still_sending_hears_why_the_connection_ends(server, body):
    framing = "Transfer-Encoding: chunked" if body[0] else f"Content-Length: {len(body)}"
    with server.connect() as connection:
        connection.sendall(head(TYPED, "Connection: close", framing) + body)
        assert status(connection.recv(2**16)) == (400 if body[0] else 413)
        while connection.recv(2**16):
            pass
    server.wait_until(lambda: is_at_rest(server))


@dataclass
class Slow:
    """A connection that sends a byte now and then."""

    kind: str
    connection: socket.socket
    answer: bytes = b""
    has_ended: bool = False

    def step(self) -> None:
        with suppress(BlockingIOError):
            try:
                if self.kind != "idle":
                    self.connection.send(b"x")
                received = self.connection.recv(2**16)
            except ConnectionError:
                received = b""
            self.answer += received
            if not received:
                self.has_ended = True
                self.connection.close()


BEGINNINGS = {"idle": b"", "headers": b"GET / HTTP/1.1\r\nHost: ", "body": head(TYPED, "Content-Length: 100000")}


def test_slow_and_idle_connections_are_ended_and_others_are_answered_meanwhile(server, record_property):
    count = 200 if IS_LONG else 30
    before, slow, answered = num_files(server.process.pid), [], []
    for kind, beginning in BEGINNINGS.items():
        for _ in range(count):
            slow.append(Slow(kind, server.connect()))
            slow[-1].connection.sendall(beginning)
            slow[-1].connection.setblocking(False)
    is_over = threading.Event()

    def good_client():
        while not is_over.is_set():
            assert server.predict(photo(2)).status == 200
            answered.append(sum(not one.has_ended for one in slow))

    with ThreadPoolExecutor(1) as pool:
        good = pool.submit(good_client)
        deadline = time.monotonic() + 60
        while (alive := [one for one in slow if not one.has_ended]) and time.monotonic() < deadline:
            for one in alive:
                one.step()
            time.sleep(0.1)
        is_over.set()
        good.result()
    assert Counter(one.kind for one in slow if one.has_ended) == dict.fromkeys(BEGINNINGS, count)
    for one in slow:
        assert status(one.answer) == (408 if one.kind == "body" else None)
    assert max(answered) > 0, "others are answered while slow ones are open"
    server.wait_until(lambda: num_files(server.process.pid) <= before)
    record(record_property, "H2", closed=len(slow), good_requests=len(answered))


def test_answers_that_nobody_fetches_are_given_up(server, record_property):
    """Many requests in a row, and not one answer is read."""
    before, many = num_files(server.process.pid), []
    request = head(method="GET", path="/page.js")
    for _ in range(10):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(2000):
                connection.send(request)
        many.append(connection)
    assert num_files(server.process.pid) > before
    server.wait_until(lambda: num_files(server.process.pid) <= before)
    assert server.predict(photo(3)).status == 200
    for connection in many:
        connection.close()
    record(record_property, "H2-unread", closed=len(many))


def told(answer) -> np.ndarray:
    """Probabilities in the order of the classes, and novelty."""
    return np.array([*(answer.probabilities[name] for name in sorted(answer.probabilities)), answer.novelty])


@pytest.mark.timeout(3600 if IS_LONG else 300)
def test_each_of_many_clients_gets_the_answer_to_its_own_photo(bundle, server, record_property):
    """Those that are sent away because too many wait come again."""
    count, found, tries = (5000 if IS_LONG else 300), {}, Counter()
    photos = [photo(1000 + number) for number in range(count)]
    expected = np.array([told(bundle.predict(data)) for data in photos])

    def client(number: int) -> None:
        for _ in range(100):
            reply = server.predict(photos[number])
            tries[reply.status] += 1
            if reply.status != 503:
                (row,) = reply.json["predictions"]
                found[number] = [*(row["probabilities"][name] for name in sorted(row["probabilities"])), row["novelty"]]
                return
            wait = int(reply.headers["retry-after"])
            assert 1 <= wait < 60
            time.sleep(min(wait, 1) * (0.5 + number / count))

    with ThreadPoolExecutor(100) as pool:
        list(pool.map(client, range(count)))
    assert set(tries) <= {200, 503}
    assert tries[200] == len(found) == count
    wrong, alike = [], 0
    for number, answer in found.items():
        distances = np.abs(expected - answer).max(axis=1)
        if distances[number] > CLOSE:
            wrong.append((number, answer, expected[number]))
        alike += int((distances <= CLOSE).sum()) - 1
    assert wrong == []
    assert alike < 1e-4 * count**2  # of two answers that were exchanged, so few would be seen by nothing
    record(record_property, "H3", requests=sum(tries.values()), answered=tries[200], sent_away=tries[503], failed=0)


PATHS = [
    *("/v1/predict", "/v1/model", "/", "/page.js", "/healthz", "/metrics", "/openapi.json", "/v1/predict/", "//", "*"),
    *("/v1/../etc/passwd", "/%00", "/%ff%fe", "/..%2f..%2fetc%2fpasswd", "http://example.com/", "?", "/v1/predict;a"),
]
QUERIES = [
    *("?top=1", "?heatmap=1", "?top=%00", "?top=-1&top=2", "?heatmap=%ff", "?&&==", "?" + "a=b&" * 500, "?top[]=1"),
    *(
        "?top=1&heatmap=true",
        "?top=\u0665".encode().decode("latin-1"),
        "?top=%D9%A5",
        "?heatmap=1&heatmap=x",
        "?url=/etc",
    ),
]
NAMES = [
    *("a.jpg", "../../x", "/etc/passwd", "C:\\x", "a\0b", "a\r\nX-Injected: 1", 'a"b', "a\\", "", "\u202e", "é" * 300),
    *("=cmd|' /C calc'!A0", "<script>alert(1)</script>", "{{7*7}}", "%s%n", "\ud7ff", "x" * 2000, "+2AA-", "\\ud800"),
]
FORM = "multipart/form-data; boundary=edge"
KINDS = [
    *("image/jpeg", "image/", "application/octet-stream", "text/html", "*/*", "", "image/jpeg\0", "é/é"),
    *(f"{FORM}; charset={name}" for name in ("utf-7", "idna", "undefined", "unicode_escape", "utf-16", "hex", '"\t"')),
    *("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary*=utf-8''edge"),
    *("multipart/form-data; boundary=" + "e" * 500, 'multipart/form-data; boundary="e\\"dge"', f"{FORM}; boundary=x"),
]
METHODS = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "X" * 100, "P OST", "\0"]
FIELDS = [
    *("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Host: evil", "Expect: 100-continue", "Upgrade: websocket"),
    *("Range: bytes=0-", "Connection: upgrade, close", "Cookie: a=b", "Content-Encoding: gzip", "Accept: \xff", ": b"),
    *("A b: c", "A" * 300 + ": b", "Authorization: Bearer \xe9", "Origin: null", "Host: evil", " folded"),
    *("X: " + "y" * 5000, "Transfer-Encoding: x", "Content-Length: 3", "Connection: close", "Trailer: X"),
]


def mostly(usual: object, others: list, times: int = 3) -> st.SearchStrategy:
    return st.sampled_from([usual] * times * len(others) + others)


text = st.text(max_size=40).map(lambda value: value.encode(errors="replace"))
part_lines = st.sampled_from(
    [
        *(f'Content-Disposition: form-data; name="photo"; filename="{name}"'.encode() for name in NAMES),
        b'Content-Disposition: form-data; name="x"',
        b"Content-Disposition: form-data; filename=a",
        b"Content-Disposition: form-data; name=a; filename*=utf-8''%00%ff",
        b"Content-Disposition: attachment",
        b"Content-Type: image/jpeg; charset=idna",
        b"Content-Transfer-Encoding: base64",
        b"",
        b"no colon",
        b": ",
        b"\xff\xfe: \x00",
    ]
)
contents = st.one_of(
    st.just(photo(5)), st.sampled_from([b"", b"--edge", b"\r\n--edge--", b"GIF89a", bytes(3000)]), text
)
good_part = st.builds(file_part, contents, st.sampled_from(NAMES))
parts = st.builds(
    lambda lines, end, data: b"\r\n".join(lines) + end + data,
    st.lists(part_lines, max_size=3),
    mostly(END, [b"\r\n", b"\n\n", b""]),
    contents,
)
forms = st.builds(
    lambda found, edge, cut: form(*found, edge=edge)[: cut or None],
    st.one_of(st.lists(good_part, min_size=1, max_size=3), st.lists(parts, max_size=5)),
    mostly(b"edge", [b"other", b""]),
    mostly(0, [-2, -5, -9, -40]),
)


@st.composite
def requests(draw) -> tuple[bytes, bool]:
    """A request, and whether it is whole: an answer is then due."""
    is_form = draw(st.booleans())
    body = draw(forms if is_form else contents)
    lines = [f"Content-Type: {draw(mostly(FORM if is_form else 'image/png', KINDS, times=1))}"]
    lines += draw(mostly([], [[one] for one in FIELDS]))
    framing = draw(mostly("length", ["chunked", "none", "short", "long", "both"]))
    if framing in ("chunked", "both"):
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    if framing not in ("none", "chunked"):
        lines.append(f"Content-Length: {len(body) + {'short': -1, 'long': 1}.get(framing, 0)}")
    hosts = draw(mostly(["Host: localhost"], [[], ["Host: evil.example"], ["Host: \xff"], ["Host:"]]))
    address = draw(mostly("/v1/predict", PATHS)) + draw(mostly("", QUERIES))
    start = f"{draw(mostly('POST', METHODS))} {address} HTTP/{draw(mostly('1.1', ['1.0', '0.9', '2', '']))}"
    return "\r\n".join([start, *hosts, *lines]).encode("latin-1", errors="replace") + END + body, framing != "long"


def assert_civil(answer: bytes) -> int | None:
    """No error of the server's own, and nothing of its inside. Gives the status."""
    if not answer:
        return None
    start, _, body = answer.partition(END)
    assert re.match(rb"HTTP/1\.1 (1|2|3|4)\d\d |HTTP/1\.1 503 ", start), answer[:300]
    assert b"Traceback" not in body
    assert b'File "' not in body
    assert b"\nx-injected" not in start.lower()
    return status(answer)


@pytest.fixture(scope="module")
def confined(bundle, tmp_path_factory):
    """A server whose working folder, home and folder for temporary files are empty, and these folders."""
    root = tmp_path_factory.mktemp("confined")
    folders = {name: root / name for name in ("cwd", "home", "temporary", "cache")}
    for folder in folders.values():
        folder.mkdir()
    env = {"HOME": folders["home"], "TMPDIR": folders["temporary"], "REGRAFT_CACHE": folders["cache"]}
    env = {name: str(path) for name, path in env.items()}
    with serving(bundle.folder, options={"limits": SHORT}, cwd=folders["cwd"], **env) as served:
        yield served, root


def files_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.timeout(3600 if IS_LONG else 300)
def test_no_request_whatever_is_an_error_of_the_server(confined, record_property):
    served, root = confined
    before, workers, seen = files_below(root), served.workers(), Counter()

    @settings(
        max_examples=50_000 if IS_LONG else 600,
        deadline=None,
        database=None,
        derandomize=not IS_LONG,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def ask(request):
        sent, is_complete = request
        if is_complete:
            answer = exchange(served, sent)
            assert answer, sent[:2000]
        else:
            with served.connect() as connection:
                connection.sendall(sent)
                connection.settimeout(0.01)
                answer = b""
                with suppress(TimeoutError, ConnectionError):
                    answer = connection.recv(2**16)
        seen[assert_civil(answer)] += 1

    ask()
    assert served.ask("GET", "/healthz").status == 200
    assert served.predict(photo(6)).status == 200
    assert served.workers() == workers
    assert files_below(root) == before
    assert "Traceback" not in served.said.read_text()
    assert min(seen[code] for code in (200, 400, 404, 405, 415)) >= 20, seen
    figures = {str(code): number for code, number in sorted(seen.items(), key=str)}
    record(record_property, "H4", passed=sum(seen.values()), failed=0, by_status=figures)


MONSTERS = {
    "a header of a megabyte": head("Content-Type: image/jpeg", f"X: {'y' * MEGA}"),
    "a kind of a megabyte": posted(b"x", "image/" + "y" * MEGA),
    "100,000 headers": head(*(f"X{number}: y" for number in range(100_000))),
    "a path of a megabyte": head(path="/" + "x" * MEGA, method="GET"),
    "10,000 files": posted_form(form(*[file_part(b"x")] * 10_000)),
    "10,000 fields": posted_form(form(*[b"Content-Disposition: form-data; name=x" + END] * 10_000)),
    "10,000 parts without a name": posted_form(form(*[b"\r\n"] * 10_000)),
    "a part with 10,000 headers": posted_form(form(b"a: b\r\n" * 10_000 + b"\r\nx")),
    "a part with a header of a megabyte": posted_form(form(b"a: " + b"x" * MEGA + END)),
    "a file name of a megabyte": posted_form(form(file_part(photo(7), "n" * MEGA))),
    "a field of eight megabytes": posted_form(
        form(b'Content-Disposition: form-data; name="x"\r\n\r\n' + bytes(8 * MEGA))
    ),
    "near boundaries": posted_form(form(file_part(b"\r\n--edg" * MEGA))),
    "line ends": posted_form(form(file_part(b"\r\n" * 4 * MEGA))),
    "64 photos": posted_form(form(*[file_part(photo(8))] * 64)),
    "65 photos": posted_form(form(*[file_part(photo(8))] * 65)),
    "no request": b"\r\n" * 1000,
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "the next version": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two requests at once": posted(photo(9)) + posted(photo(10)),
}


@pytest.mark.parametrize("name", MONSTERS)
def test_requests_of_absurd_size_are_answered_and_leave_nothing(confined, name):
    served, root = confined
    before = files_below(root)
    answered = assert_civil(exchange(served, MONSTERS[name]))
    assert answered in (200, 400, 404, 413, 503, None)
    assert (answered == 200) is (name == "two requests at once") or name == "64 photos"
    assert served.predict(photo(11)).status == 200
    assert files_below(root) == before
    assert "Traceback" not in served.said.read_text()


def corpus() -> dict[str, tuple[bytes, str]]:
    """Files by name, with the colour that each shows."""
    colours = list(COLOURS.items())[: 3 if IS_LONG else 1]
    files = {
        f"{colour}/{name}": (data, colour)
        for number, (colour, pixels) in enumerate(colours)
        for name, data in damaged_and_odd(pixels, number).items()
    }
    return files | {f"bombs/{name}": (data, "") for name, data in bombs().items()}


def test_hostile_images_are_answered_or_refused_and_workers_live_on(server, bundle, record_property):
    files = corpus()
    pids = [server.process.pid, *server.workers()]

    def ask(name: str) -> tuple[str, int, dict]:
        data, _ = files[name]
        if len(name) % 2:
            reply = server.ask("POST", "/v1/predict", data, "application/octet-stream")
        else:
            body = form(file_part(data, name))
            reply = server.ask("POST", "/v1/predict", body, "multipart/form-data; boundary=edge")
        return name, reply.status, reply.json

    memory, replies = [], []
    for _ in range(3 if IS_LONG else 2):
        with ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(ask, files))
        memory.append(megabytes(*pids))
    assert {code for _, code, _ in replies} <= {200, 400, 413}
    assert server.workers() == pids[1:]
    assert server.ask("GET", "/healthz").status == 200
    wrong = [
        (name, told)
        for name, code, told in replies
        if "/whole." in name
        and (code, told["predictions"][0].get("label")) != (200, bundle.predict(files[name][0]).label)
    ]
    assert wrong == []
    reasons = [row["error"] for _, code, told in replies if code != 200 for row in told.get("predictions", [told])]
    assert all(0 < len(reason) < 300 for reason in reasons)
    assert memory[-1] - memory[0] <= 16 * len(pids), memory
    by_status = Counter(str(code) for _, code, _ in replies)
    record(record_property, "H5", files=len(files), by_status=by_status, growth_mb=round(memory[-1] - memory[0], 1))


def test_sixty_four_bombs_at_once_are_refused_and_others_are_answered(server, record_property):
    found, before, good = list(bombs().values()), server.workers(), photo(17)
    codes: Counter[int | None] = Counter()

    def ask(data: bytes) -> int | None:
        for _ in range(1000):
            code = status(exchange(server, posted(data)))
            codes[code] += 1
            if code != 503:
                return code
            time.sleep(0.1)
        raise AssertionError("it was always busy")

    with ThreadPoolExecutor(64) as pool:
        bad = [pool.submit(ask, found[number % len(found)]) for number in range(64)]
        assert ask(good) == 200
        assert {one.result() for one in bad} <= {200, 400, 413}  # some are read within their bounds
    assert server.workers() == before
    assert server.ask("GET", "/healthz").status == 200
    record(record_property, "H5-at-once", bombs=64, by_status={str(code): n for code, n in codes.items()})


def test_a_clock_that_jumps_and_a_full_disk_change_nothing_under_load(bundle, record_property):
    """Years to and fro, and no file can be written, by the server or by a worker that takes the place of another."""
    count = 500 if IS_LONG else 40
    with serving(bundle.folder, options={"limits": SHORT, "clock": True, "is_full": True}) as served:
        killed = served.workers()[0]
        with ThreadPoolExecutor(4) as pool:
            replies = [pool.submit(served.predict, photo(400 + number % 20)) for number in range(count)]
            os.kill(killed, signal.SIGKILL)
            assert {one.result().status for one in replies} == {200}
        served.wait_until(lambda: killed not in served.workers() and served.ask("GET", "/healthz").status == 200)
        assert "Traceback" not in served.said.read_text()
    assert served.process.returncode == 0
    record(record_property, "H-clock-and-disk", requests=count, failed=0)


def other_kinds() -> dict[str, bytes]:
    data = photo(12)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("photo.jpg", data)
    encoded = base64.b64encode(data).decode()
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/x.png"/></svg>'
    unread = {
        "image/svg+xml": svg,
        "application/octet-stream": archive.getvalue(),
        "image/png": b"",
        "image/gif": b"GIF89a",
    }
    refused = {
        "": data,
        "text/plain": data,
        "text/html": b"<img src=x>",
        "application/jsonl": json.dumps({"image": encoded}).encode(),
        "application/zip": archive.getvalue(),
        "application/x-python-pickle": b"\x80\x04.",
        "application/x-www-form-urlencoded": f"photo={encoded}".encode(),
        "application/pdf": b"%PDF-1.7",
        "application/xml": svg,
        "video/mp4": b"\0\0\0\x18ftypmp42",
        "audio/wav": b"RIFF",
        "multipart/mixed; boundary=edge": form(file_part(data)),
        "multipart/form-data-x; boundary=edge": form(file_part(data)),
        "image": data,
        "*/*": data,
        "x" * 300: data,
    }
    return {**unread, **refused}


def test_content_of_other_kinds_is_refused(server, record_property):
    kinds = other_kinds()
    assert len(kinds) >= 20
    for kind, body in kinds.items():
        headers = f"Content-Type: {kind}" if kind else "X: y"
        answer = exchange(server, head(headers, f"Content-Length: {len(body)}") + body)
        is_raw = kind.startswith(("image/", "application/octet-stream"))
        assert status(answer) == (400 if is_raw else 415), kind
        said = json.loads(answer.partition(END)[2])
        assert all(row["error"] for row in said.get("predictions", [said])), kind
    record(record_property, "H6", passed=len(kinds), failed=0)


@pytest.fixture
def canary():
    """An address on this machine, and how many connections it has seen."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        is_over = threading.Event()

        def listen():
            while not is_over.is_set():
                with suppress(TimeoutError):
                    seen.append(listening.accept()[0].close())

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/canary.jpg", seen
        is_over.set()
        thread.join()


def lures(url: str, path: str) -> list[bytes]:
    """Requests that have an address or a path wherever one fits."""
    data, found = photo(13), []
    exif = Image.Exif()
    exif[270] = exif[33432] = url
    tagged = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(tagged, "JPEG", exif=exif, comment=path.encode())
    for lure in (url, path, f"file://{path}"):
        body = lure.encode()
        found += [posted(body), posted(tagged.getvalue()), posted_form(form(file_part(data, lure)))]
        found += [posted(b'<svg><image href="%b"/></svg>' % body, "image/svg+xml"), posted(b"#EXTM3U\n" + body)]
        found += [
            posted(b"P6 1 1 255\n" + body),
            posted(b"%!PS-Adobe\n(" + body + b") run"),
            posted(body, "text/plain"),
        ]
        for name in ("url", "path", "file", "image", "photo"):
            field = f'Content-Disposition: form-data; name="{name}"\r\n\r\n{lure}'.encode()
            found.append(posted_form(form(field, file_part(data))))
            found.append(head(TYPED, "Content-Length: 0", path=f"/v1/predict?{name}={lure}&top=1"))
        for field in (
            "Referer",
            "Origin",
            "Content-Location",
            "X-Forwarded-Host",
            "X-Original-URL",
            "Location",
            "Link",
        ):
            found.append(head(TYPED, f"{field}: {lure}", f"Content-Length: {len(data)}") + data)
    found += [head(method="GET", path=target) for target in (url, path, f"/{url}", f"/..{path}", f"/%2e%2e{path}")]
    return found


def test_no_request_makes_the_server_open_or_call_what_it_names(bundle, canary, tmp_path, record_property):
    url, seen = canary
    file, notes = tmp_path / "canary.jpg", tmp_path / "notes"
    file.write_bytes(photo(14))
    env = {"PYTHONDONTWRITEBYTECODE": "1", "REGRAFT_TEST_WATCH": str(notes)}  # in the workers too
    with serving(bundle.folder, options={"limits": SHORT}, **env) as served:
        assert served.predict(photo(13), "?heatmap=1").status == 200
        before = notes.read_text()
        requests = lures(url, str(file))
        for request in requests:
            assert_civil(exchange(served, request))
        after = notes.read_text()[len(before) :]
    assert "model.onnx" in before
    assert len(requests) >= 50
    assert seen == []
    assert "canary" not in after
    events = [json.loads(line) for line in after.splitlines()]
    assert [event for event in events if event[0] != "open"] == []
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    assert [event for event in events if int(event[3]) & writing] == []
    record(record_property, "H7", requests=len(requests), connections=0, opened=0)


def leave(served, number: int) -> None:
    """Go away in the middle of something, gently or not."""
    data = photo(number)
    whole = [posted(data), posted_form(form(*[file_part(data)] * 3)), head(method="GET", path="/v1/model")][number % 3]
    sent = whole if number % 2 else whole[: len(whole) * (number % 7) // 7]
    with served.connect() as connection:
        connection.sendall(sent)
        if number % 5 == 0:
            connection.shutdown(socket.SHUT_WR)
        if number % 4 < 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_clients_that_leave_take_nothing_with_them(server, record_property):
    count, pid = (500 if IS_LONG else 100), server.process.pid
    large = posted(bytes(20 * MEGA))

    def at_rest() -> None:
        server.wait_until(lambda: is_at_rest(server))
        server.wait_until(lambda: num_files(pid) <= files)

    files = num_files(pid)
    for number in range(50):
        leave(server, number)
    at_rest()
    before = megabytes(pid)
    for number in range(count):
        leave(server, number)
    for _ in range(3):
        with server.connect() as connection:
            connection.sendall(large[:-1000])
    at_rest()
    after = megabytes(pid)
    assert server.predict(photo(15)).status == 200
    assert "Traceback" not in server.said.read_text()
    assert after - before <= 5, (before, after)
    record(record_property, "H8", disconnects=count + 3, failed=0, growth_mb=round(after - before, 2))


@pytest.mark.timeout(3600 if IS_LONG else 300)
def test_a_server_that_has_served_for_long_is_as_it_was(server, record_property):
    """Four clients, one request after the other; how long an answer takes then is measured by `bench/serving.py`."""
    data, codes, sizes = [photo(300 + number) for number in range(100)], Counter(), []
    rounds, of_each = (600, 200) if IS_LONG else (12, 25)  # about half an hour, and some seconds

    def ask(number: int) -> int:
        return server.predict(data[number % len(data)]).status

    with ThreadPoolExecutor(4) as pool:
        codes.update(pool.map(ask, range(200)))
        for _ in range(rounds):
            codes.update(pool.map(ask, range(of_each)))
            sizes.append(megabytes(server.process.pid, *server.workers()))
    assert codes == {200: 200 + rounds * of_each}
    growth = float(np.polyfit(np.arange(rounds), sizes, 1)[0]) * rounds
    assert growth < (30 if IS_LONG else 5), sizes  # MB
    record(record_property, "H10", requests=codes[200], failed=0, growth_mb=growth)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("trial", mostly_long(range(TRIALS // 10), 0))
def test_a_server_that_is_stopped_first_answers_those_it_has_heard(default_bundle, record_property, trial):
    """On a network so slow that all are heard before the first is answered."""
    batches = [[photo(100 * batch + number) for number in range(8)] for batch in range(6 if IS_LONG else 3)]
    bodies = [form(*map(file_part, batch)) for batch in batches]
    patient = {"drain_s": 200.0, "request_s": 200.0, "photo_s": 100.0}  # however busy the machine is
    options = {"limits": {**patient, "workers": -1 if IS_LONG else 2}}
    with serving(default_bundle.folder, options=options) as served, ThreadPoolExecutor(len(batches)) as pool:
        workers = served.workers()
        kind = "multipart/form-data; boundary=edge"
        replies = [pool.submit(served.ask, "POST", "/v1/predict?heatmap=1", body, kind) for body in bodies]
        served.wait_until(lambda: metric(served, "regraft_buffered_bytes") == sum(map(len, bodies)))
        served.process.send_signal(signal.SIGTERM if trial % 2 == 0 else signal.SIGINT)
        for batch, reply in zip(batches, replies, strict=True):
            assert reply.result().status == 200
            labels = [row["label"] for row in reply.result().json["predictions"]]
            assert labels == [default_bundle.predict(data).label for data in batch]
        assert served.process.wait(240) == 0
        assert "Traceback" not in served.said.read_text()
        served.wait_until(lambda: gone(workers))
        with pytest.raises(ConnectionError):
            served.connect()
    record(record_property, f"H9-stopped-{trial}", answered=len(replies), lost=0)


@pytest.mark.parametrize("trial", mostly_long(range(TRIALS // 10), 0))
def test_a_worker_that_is_killed_is_missed_and_replaced(server, record_property, trial):
    data, codes = photo(16), Counter()
    expected = server.predict(data).json["predictions"][0]["label"]
    before = server.workers()
    is_over = threading.Event()

    def client():
        while not is_over.is_set():
            reply = server.predict(data)
            codes[reply.status] += 1
            assert reply.json["predictions"][0]["label"] == expected

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(client) for _ in range(2)]
        os.kill(before[trial % len(before)], signal.SIGKILL)
        server.wait_until(lambda: server.ask("GET", "/healthz").status == 503)
        server.wait_until(lambda: server.ask("GET", "/healthz").status == 200)
        is_over.set()
        for one in clients:
            one.result()
    assert set(codes) == {200}
    after = server.workers()
    assert len(after) == len(before)
    assert len(set(after) & set(before)) == len(before) - 1
    record(record_property, f"H9-killed-{trial}", answered=codes[200], failed=0)


def test_photos_are_answered_though_all_workers_are_killed(server):
    data = [photo(200 + number) for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(server.predict, one, "?heatmap=1") for one in data]
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        assert [one.body for reply in replies if (one := reply.result()).status != 200] == []
    server.wait_until(lambda: server.ask("GET", "/healthz").status == 200)


def test_a_second_signal_and_a_client_that_dawdles_do_not_keep_a_server(bundle, record_property):
    with serving(bundle.folder, options={"limits": {"drain_s": 2.0, "body_s": 100.0}}) as served:
        workers = served.workers()
        with served.connect() as slow:
            slow.sendall(head(TYPED, "Content-Length: 1000") + b"x")
            served.wait_until(lambda: metric(served, "regraft_buffered_bytes") == 1)
            for _ in range(2):
                served.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            code = served.process.wait(30)
            assert assert_civil(slow.recv(2**16)) in (408, 503, None)
        assert code in (0, 143)
        served.wait_until(lambda: gone(workers))
        assert "Traceback" not in served.said.read_text()
    record(record_property, "H9-second-signal", code=code)


def test_what_keeps_a_server_from_starting_is_said_in_one_line(bundle, run, regraft_main, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", bundle.folder, "--port", port)
        assert done.stderr == (
            f"error: Cannot listen on 127.0.0.1:{port}: address already in use. Choose another --port or --host.\n"
        )
        assert done.returncode == 1
    for arguments in (
        [tmp_path / "nothing"],
        [bundle.folder, "--port", 70_000],
        [bundle.folder, "--host", "198.51.100.7"],
        [bundle.folder, "--host", "no..name"],
        [bundle.folder, "--max-error", "0.0001%"],
    ):
        done = regraft_main("serve", *arguments)
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_port_can_be_taken_again_at_once(bundle):
    port = free_port()
    for _ in range(2):
        command = [sys.executable, "-m", "regraft", "serve", str(bundle.folder), "--port", port]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            line = process.stderr.readline()
            process.terminate()
            assert process.wait(30) == 0
        assert line == f"serving {bundle.folder} at http://127.0.0.1:{port}/   (Ctrl-C ends it)\n"


def test_the_page_and_the_rest_bear_their_headers(server, record_property):
    paths = (
        "/",
        "/page.js",
        "/page.css",
        "/v1/model",
        "/healthz",
        "/metrics",
        "/openapi.json",
        "/nothing",
        "/v1/predict",
    )
    for path in paths:
        reply = server.ask("GET", path)
        assert {name: reply.headers.get_all(name) for name in HEADERS} == {
            name: [value] for name, value in HEADERS.items()
        }
        assert not [
            name for name in reply.headers if name.lower().startswith(("access-control", "server", "x-powered"))
        ]
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.", "10.0.0.1"):
        reply = server.ask("GET", "/v1/model", Host=host)
        assert (reply.status, "--allow-host" in reply.json["error"]) == (400, True)
    record(record_property, "H11", passed=len(paths) + 4, failed=0)
