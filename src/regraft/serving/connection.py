"""How long, how much and in what pieces a client may send before anything looks at what it sent.

A `GuardedConnection` stands between a socket and the parser that uvicorn chooses: a protocol to asyncio's transport, a
transport to the parser. It uses what asyncio documents of both, and nothing of uvicorn's inside; what it has to know of
requests it is told by the application (`announced`), which finds it in the request's state.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from regraft.serving.limits import Limits

STATE = "connection"  # of a request's state
PIECE = 4096  # bytes that are parsed before others have their turn: at most 700 chunks, 6 ms
FREE_FRAMING = 16_384  # bytes beside the body that every request may take
FRAMING_SHARE = 1 / 16  # of the body that its chunks may take in addition


def connections(limits: Limits) -> Callable[..., asyncio.Protocol]:
    """Return what makes a protocol of each connection, for `uvicorn.Config(http=...)`.

    Args:
        limits: See GuardedConnection.
    """

    def make(
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        def parser(connection: GuardedConnection) -> asyncio.Protocol:
            return H11Protocol(config, server_state, {**app_state, STATE: connection}, _loop)

        return GuardedConnection(parser, limits)

    return make


class GuardedConnection(asyncio.Protocol):
    """One client's connection.

    Args:
        parser: Makes the protocol that parses.
        limits: `header_s` until a request has begun; `body_s` until an answer was fetched, and for a client to stop
            sending once it was answered.

    Attributes:
        num_parsed: Bytes that the parser was given.
    """

    def __init__(self, parser: Callable[["GuardedConnection"], asyncio.Protocol], limits: Limits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._parser = parser(self)
        self._outlet: _Outlet | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._backlog = bytearray()
        self._is_feed_due = False
        self._is_parser_notified = False  # that the connection is over
        self._exchange: Exchange | None = None
        self._num_unclaimed = 0  # bytes that belong to no request yet
        self.num_parsed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new client: pass it on to the parser, and wait for a request."""
        assert isinstance(transport, asyncio.Transport)
        self._outlet = _Outlet(transport, self)
        self._expect_request()
        self._parser.connection_made(self._outlet)

    def data_received(self, data: bytes) -> None:
        """Keep data for the parser; what comes after the end is dropped."""
        if not self.outlet.is_closing():
            self._backlog += data
            self._num_unclaimed += len(data)
            self._feed_soon()

    def eof_received(self) -> bool | None:
        """Tell the parser that the client sends no more."""
        return self._parser.eof_received()

    def pause_writing(self) -> None:
        """Wait, within bounds, for a client that does not fetch its answer."""
        self._set_timer("unread", self._limits.body_s, self.outlet.abort)
        self._parser.pause_writing()

    def resume_writing(self) -> None:
        """Go on with a client that fetches its answer again."""
        self._end_timer("unread")
        self._parser.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a client that is gone."""
        for name in list(self._timers):
            self._end_timer(name)
        self._backlog.clear()
        self.notify_parser(exc)

    @property
    def outlet(self) -> "_Outlet":
        """The transport as the parser has it."""
        assert self._outlet is not None
        return self._outlet

    @property
    def is_heard_out(self) -> bool:
        """Whether nothing of a request is still to come."""
        return self._exchange.is_heard_out if self._exchange else self._num_unclaimed == 0

    def begin(self, exchange: "Exchange") -> None:
        """Note that a request's headers have come."""
        self._exchange, self._num_unclaimed = exchange, 0
        self._end_timer("header")

    def end(self, exchange: "Exchange") -> None:
        """Note that a request was answered, and wait for the next."""
        if self._exchange is exchange:
            self._exchange, self._num_unclaimed = None, len(self._backlog)
            self._expect_request()

    def linger(self, transport: asyncio.Transport) -> None:
        """Let a client that is still sending come to its end, within bounds; what it sends is dropped.

        A socket that closes with bytes unread resets the connection, and the answer on its way is lost.
        """
        self._backlog.clear()
        transport.resume_reading()
        with suppress(OSError):  # it has gone
            transport.write_eof()
        self._set_timer("linger", self._limits.body_s, transport.abort)
        self._loop.call_soon(self.notify_parser, None)

    def resume(self) -> None:
        """Note that the parser takes more."""
        self._feed_soon()

    def notify_parser(self, exc: Exception | None) -> None:
        """Tell the parser that the connection is over, once."""
        if not self._is_parser_notified:
            self._is_parser_notified = True
            self._parser.connection_lost(exc)

    def _expect_request(self) -> None:
        self._set_timer("header", self._limits.header_s, self._late)

    def _late(self) -> None:
        """End a connection on which no request has begun."""
        self._set_timer("unread", self._limits.body_s, self.outlet.abort)
        self.outlet.close()

    def _feed_soon(self) -> None:
        if not self._is_feed_due:
            self._is_feed_due = True
            self._loop.call_soon(self._feed)

    def _feed(self) -> None:
        """Parse a piece; others have their turn before the next."""
        self._is_feed_due = False
        outlet = self.outlet
        if self._backlog and outlet.is_wanted and not outlet.is_closing():
            size = max(PIECE, self._exchange.num_plain if self._exchange else 0)
            piece = bytes(self._backlog[:size])
            del self._backlog[:size]
            self.num_parsed += len(piece)
            if self._exchange:
                self._exchange.num_plain -= len(piece)
            self._parser.data_received(piece)
            if self._backlog and outlet.is_wanted:
                self._feed_soon()
        outlet.set_reading(outlet.is_wanted and not self._backlog)

    def _set_timer(self, name: str, seconds: float, then: Callable[[], None]) -> None:
        self._end_timer(name)
        self._timers[name] = self._loop.call_later(seconds, then)

    def _end_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()


class _Outlet(asyncio.Transport):
    """The transport that a parser is given.

    Attributes:
        is_wanted: Whether the parser takes more.
    """

    def __init__(self, transport: asyncio.Transport, connection: GuardedConnection) -> None:
        super().__init__()
        self._transport, self._connection = transport, connection
        self._is_lingering = False
        self.is_wanted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._is_lingering:
            self._transport.write(data)

    def pause_reading(self) -> None:
        self.is_wanted = False
        self.set_reading(False)

    def resume_reading(self) -> None:
        self.is_wanted = True
        self._connection.resume()

    def set_reading(self, is_on: bool) -> None:
        """Say whether more is taken from the socket."""
        if not self._is_lingering:
            (self._transport.resume_reading if is_on else self._transport.pause_reading)()

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._connection.is_heard_out:
            self._transport.close()
            return
        self._is_lingering = True
        self._connection.linger(self._transport)

    def abort(self) -> None:
        self._transport.abort()


class Exchange:
    """A request and its answer, as its connection has to know them.

    Attributes:
        is_heard_out: All of the body has come, or there is none.
        num_plain: Bytes to come that are body and nothing else.
    """

    def __init__(self, connection: GuardedConnection, scope: Scope, receive: Receive, send: Send) -> None:
        self._connection, self._receive, self._send = connection, receive, send
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        is_chunked = b"transfer-encoding" in headers
        self.num_plain = int(length) if length.isdigit() and len(length) < 18 and not is_chunked else 0
        self.is_heard_out = not is_chunked and self.num_plain == 0
        self._is_asked_for = b"expect" in headers  # a client waits for 100 Continue, which receiving sends
        self._num_body, self._begin = 0, connection.num_parsed

    async def receive(self) -> Message:
        """Receive a part of the body.

        Raises:
            HTTPException: 400 where its chunks take up more than they hold.
        """
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_body += len(message.get("body", b""))
            self.is_heard_out = self.is_heard_out or not message.get("more_body", False)
            framing = self._connection.num_parsed - self._begin - self._num_body
            if framing > FREE_FRAMING + FRAMING_SHARE * self._num_body:
                raise HTTPException(400, "the body comes in too many chunks: send larger ones, or its length")
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer; a client that has not sent everything by then is told that the connection ends."""
        if message["type"] == "http.response.start":
            await self._take_what_is_there()
            if not self.is_heard_out:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)

    async def _take_what_is_there(self) -> None:
        """Take the rest of a body that is answered unread, as far as it has come and is not asked for first.

        Not while the server stops: the request may be cancelled a second time at any wait, and then has no answer.
        """
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return
        with suppress(TimeoutError, HTTPException):
            async with asyncio.timeout(0):
                while not self.is_heard_out and not self._is_asked_for:
                    if (await self.receive())["type"] == "http.disconnect":
                        return


def announced(app: ASGIApp) -> ASGIApp:
    """Let the application tell each request's connection when it begins and when it was answered."""

    async def announcing(scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("state", {}).get(STATE) if scope["type"] == "http" else None
        if connection is None:
            await app(scope, receive, send)
            return
        exchange = Exchange(connection, scope, receive, send)
        connection.begin(exchange)
        try:
            await app(scope, exchange.receive, exchange.send)
        finally:
            connection.end(exchange)

    return announcing
