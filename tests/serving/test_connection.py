"""Between a client and the parser: pieces, turns and deadlines, with a small application and no model."""

import asyncio
import json
import re
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from regraft.serving import connection as module
from regraft.serving.connection import announced, connections
from regraft.serving.limits import Limits

LIMITS = Limits(header_s=0.3, body_s=0.5)
END = b"\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def app() -> Starlette:
    async def read(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body())})

    async def unread(_: Request) -> JSONResponse:
        return JSONResponse({"bytes": None})

    async def large(_: Request) -> JSONResponse:
        return JSONResponse({"bytes": "x" * 2**20})

    routes = [
        Route("/large", large),
        Route("/read", read, methods=["POST"]),
        Route("/unread", unread, methods=["POST"]),
    ]
    return Starlette(routes=[*routes, Route("/healthz", unread), Route("/large", large)])


@asynccontextmanager
async def served(limits: Limits = LIMITS, application=None):
    """The address of a server that runs in this loop."""
    config = uvicorn.Config(
        announced(application or app()), http=connections(limits), ws="none", lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    listening = socket.create_server(("127.0.0.1", 0))
    await server.startup(sockets=[listening])
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        await server.shutdown(sockets=[listening])


@asynccontextmanager
async def talking(address, *parts: bytes):
    """What a client that has sent something reads from and writes to."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        for part in parts:
            writer.write(part)
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of the next answer; status 0 where there is none."""
    try:
        head = await asyncio.wait_for(reader.readuntil(END), 20)
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, b"", b""
    length = re.search(rb"(?i)content-length: (\d+)", head)  # uvicorn's own refusals have none
    return int(head.split(b" ")[1]), head, await reader.readexactly(int(length[1]) if length else 0)


async def asked(address, *parts: bytes) -> tuple[int, bytes, bytes]:
    async with talking(address, *parts) as (reader, _):
        return await answer_of(reader)


async def endless(writer: asyncio.StreamWriter, data: bytes, pause_s: float) -> None:
    while True:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(pause_s)


def chunks(size: int, count: int) -> bytes:
    return (b"%x\r\n" % size + b"x" * size + b"\r\n") * count


@pytest.mark.parametrize(("size", "count"), [(1, 100), (500, 4000), (65_536, 64), (2_000_000, 1)])
def test_a_body_in_chunks_comes_whole(size, count):
    async def ask():
        async with served() as address:
            return await asked(address, CHUNKED + chunks(size, count) + b"0\r\n\r\n")

    status, _, body = asyncio.run(ask())
    assert (status, json.loads(body)) == (200, {"bytes": size * count})


@pytest.mark.parametrize(("size", "count"), [(1, 100_000), (3, 60_000), (20, 20_000)])
def test_a_body_of_more_frame_than_picture_is_refused(size, count):
    async def ask():
        async with served() as address:
            return await asked(address, CHUNKED + chunks(size, count) + b"0\r\n\r\n")

    status, head, body = asyncio.run(ask())
    assert status == 400
    assert b"too many chunks" in body
    assert b"connection: close" in head


def test_others_have_their_turn_between_pieces(monkeypatch):
    """However much comes at once, no more than a piece is parsed before the loop goes on."""
    sizes, parser = [], module.H11Protocol

    class Noted(parser):
        def data_received(self, data):
            sizes.append(len(data))
            super().data_received(data)

    monkeypatch.setattr(module, "H11Protocol", Noted)

    async def ask(sent):
        async with served() as address:
            return await asked(address, sent)

    assert asyncio.run(ask(CHUNKED + chunks(500, 1000) + b"0\r\n\r\n"))[0] == 200
    assert max(sizes) <= module.PIECE
    sizes.clear()
    body = bytes(2**20)
    head = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert asyncio.run(ask(head + body))[0] == 200
    assert max(sizes) > module.PIECE  # nothing but body: it costs nothing to look at
    sizes.clear()
    first = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
    asyncio.run(ask(first + CHUNKED + chunks(1, 50_000)))
    ends = list(accumulate(sizes))
    assert all(end <= len(first) + module.PIECE or size <= module.PIECE for end, size in zip(ends, sizes, strict=True))


def test_requests_of_one_connection_are_answered_in_turn():
    post = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345"

    async def ask():
        async with served() as address:
            sent = GET + post + GET + CHUNKED + chunks(9, 9) + b"0\r\n\r\n" + post
            async with talking(address, sent) as (reader, writer):
                answers = [await answer_of(reader) for _ in range(5)]
                await asyncio.sleep(0.1)
                writer.write(GET)
                answers.append(await answer_of(reader))
            return [(status, json.loads(body)["bytes"]) for status, _, body in answers]

    assert asyncio.run(ask()) == [(200, None), (200, 5), (200, None), (200, 81), (200, 5), (200, None)]


UNREAD = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def test_a_body_that_nobody_reads_ends_the_connection_where_it_has_not_come():
    async def ask(sent):
        async with served() as address:
            async with talking(address, sent) as (reader, writer):
                first = await answer_of(reader)
                writer.write(GET)
                second = await answer_of(reader)
            return first[0], b"connection: close" in first[1], second[0]

    assert asyncio.run(ask(UNREAD % 5 + b"12345")) == (200, False, 200)
    assert asyncio.run(ask(UNREAD % 10**6 + b"12345")) == (200, True, 0)
    chunked = UNREAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
    assert asyncio.run(ask(chunked + b"5\r\n12345\r\n")) == (200, True, 0)
    assert asyncio.run(ask(b"POST /unread HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n")) == (200, False, 200)


@pytest.mark.parametrize("begin", [UNREAD % 10**9, CHUNKED + b"nonsense\r\n", b"nonsense\r\n\r\n"])
def test_who_sends_on_after_the_answer_hears_it_and_is_cut_off(begin):
    async def ask():
        async with served() as address, talking(address, begin + b"x" * 10_000) as (reader, writer):
            status, _, _ = await answer_of(reader)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(endless(writer, b"x" * 10_000, 0.01), 20)
            return status

    assert asyncio.run(ask()) == (200 if begin.startswith(b"POST /unread") else 400)


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost:", GET, GET + b"GET /", b"\r\n"])
def test_who_begins_no_request_in_time_is_cut_off(begin):
    async def ask():
        async with served() as address, talking(address, begin) as (reader, _), asyncio.timeout(20):
            return await reader.read()

    found = asyncio.run(ask())
    assert found.count(b"HTTP/1.1 200") == begin.count(GET)


def test_an_answer_that_nobody_fetches_is_given_up():
    async def ask():
        async with served(replace(LIMITS, header_s=30.0, body_s=0.3)) as address, talking(address) as (_, writer):
            writer.transport.pause_reading()
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(endless(writer, GET.replace(b"healthz", b"large") * 100, 0.01), 20)

    asyncio.run(ask())


def test_what_waits_does_not_grow_while_nobody_takes_it():
    """Reading stops while the application is busy."""

    async def busy(scope, receive, send):
        await receive()
        for _ in range(20):
            await asyncio.sleep(0.01)
            sizes.append(len(scope["state"][module.STATE]._backlog))
        await JSONResponse({})(scope, receive, send)

    async def ask():
        async with served(application=busy) as address, talking(address, UNREAD % 10**8) as (reader, writer):
            sender = asyncio.create_task(endless(writer, bytes(2**20), 0.0))
            await answer_of(reader)
            sender.cancel()
            return sizes

    sizes: list[int] = []
    assert max(asyncio.run(ask())) < 2**20


def test_a_request_that_is_cancelled_twice_while_it_is_answered_has_its_answer():
    """As when the server stops and its loop ends: what still comes of the body is not waited for."""
    sent = []

    async def send(message):
        sent.append(message)

    async def late(scope, receive, send):
        try:
            await receive()
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_soon(task.cancel)
            await JSONResponse({}, 503)(scope, receive, send)

    async def stopped():
        nonlocal task
        connection = SimpleNamespace(begin=lambda _: None, end=lambda _: None, num_parsed=0)
        scope = {"type": "http", "headers": [(b"content-length", b"1000")], "state": {module.STATE: connection}}
        task = asyncio.create_task(announced(late)(scope, asyncio.Event().wait, send))
        await asyncio.sleep(0)
        task.cancel()
        await task

    task = None
    asyncio.run(stopped())
    assert [message.get("status") for message in sent] == [503, None]
