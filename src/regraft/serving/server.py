"""A process that serves until it is told to stop."""

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from regraft.bundle.bundle import Bundle
from regraft.core.errors import ServeError
from regraft.serving.app import about_model, create_app
from regraft.serving.limits import Limits
from regraft.serving.pool import Pool

LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
BACKLOG = 1024  # connections that wait to be accepted
LINGER_S = 2.0  # for a client to stop sending once it was answered


def serve(
    bundle: Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    hosts: tuple[str, ...] = (),
    token: str | None = None,
    limits: Limits | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then finish those under way.

    host, port: where it listens; port 0 for any.  hosts: further names under which it may be called.  token: that
    requests have to bear.  on_ready: is told the page's address.
    Raises ServeError where the address is taken or the model does not load.
    """
    limits = limits or Limits()
    _allow_many_connections()
    listening = _listen(host, port)
    pool = Pool(Path(bundle.folder), _promises(bundle), limits)
    try:
        shown = f"[{host}]" if ":" in host else host
        known = tuple(dict.fromkeys((*LOCAL, shown, *hosts)))
        app = create_app(pool, about_model(bundle.manifest, limits), limits, known, token)
        server = uvicorn.Server(_config(app, limits))
        on_ready(f"http://{shown}:{listening.getsockname()[1]}/")
        asyncio.run(server.serve(sockets=[listening]))
    except KeyboardInterrupt:  # which uvicorn hands on once it has stopped
        pass
    finally:
        pool.close()
        listening.close()


def _promises(bundle: Bundle) -> dict[str, Any]:
    return {"precision": bundle.wanted_precision, "max_error": bundle.max_error, "coverage": bundle.coverage}


def _config(app: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_timed(limits),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_level="error",
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=round(limits.drain_s),
    )


def _timed(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which by itself waits for ever for a request's headers and for an answer to be fetched."""

    class Timed(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(_Patient(transport, self._is_heard_out, self.loop))  # type: ignore[arg-type]
            self._due = self.loop.call_later(limits.header_s, self._late)

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)

        def on_response_complete(self) -> None:
            self._due.cancel()
            self._due = self.loop.call_later(limits.header_s, self._late)
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.body_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._unread.cancel()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._due.cancel()
            super().connection_lost(exc)

        def _is_heard_out(self) -> bool:
            """Whether all of the request has come; what has not is now read for nobody."""
            if self.conn.their_state not in (h11.SEND_BODY, h11.ERROR):
                return True
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            return False

        def _late(self) -> None:
            """No request is under way: its headers have not come, or an answer is not fetched."""
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()
                self._due = self.loop.call_later(limits.body_s, self.transport.abort)

    return Timed


class _Patient:
    """A transport that lets a client which is still sending come to its end, within bounds, before it closes.

    A socket that closes with bytes unread resets the connection, and the answer on its way is lost.
    """

    def __init__(
        self, transport: asyncio.Transport, is_heard_out: Callable[[], bool], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._transport, self._is_heard_out, self._loop = transport, is_heard_out, loop
        self._is_lingering = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._is_heard_out():
            self._transport.close()
            return
        self._is_lingering = True
        self._transport.resume_reading()
        with suppress(OSError):  # it has gone
            self._transport.write_eof()
        self._loop.call_later(LINGER_S, self._transport.abort)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves TCP_NODELAY out
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: no host name
        listening.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ServeError(f"Cannot listen on {host}:{port}: {why.lower()}. Choose another --port or --host.") from error
    return listening


def _allow_many_connections() -> None:
    """As many open files as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, 65_536)), hard))
