"""A process that serves until it is told to stop."""

import asyncio
import functools
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from regraft.bundle.bundle import Bundle, load
from regraft.bundle.doubt import usual_doubt
from regraft.core.errors import RegraftError, ServeError
from regraft.serving.access import Access
from regraft.serving.app import Served, about_model, create_app
from regraft.serving.connection import announced, connections
from regraft.serving.keeping import Keep, keeping
from regraft.serving.limits import Limits
from regraft.serving.model import SealedModel, load_options_of
from regraft.serving.pool import Pool

LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
BACKLOG = 1024  # connections that wait to be accepted
TERMINAL = "/dev/tty"


def serve(  # noqa: PLR0913  # each is another concern of whoever starts a server
    bundle: Bundle,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    access: Access | None = None,
    limits: Limits | None = None,
    keep: Keep | None = None,
    on_ready: Callable[[str], None] = lambda _: None,
    on_reload: Callable[[str], None] = lambda _: None,
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; then finish those under way. SIGHUP loads the bundle's folder anew.

    It answers with the model that it was given, whatever becomes of the folder, until it is told to reload.

    Args:
        bundle: The model.
        host: Address to listen on.
        port: 0 for any that is free.
        access: Who may ask; this machine under its usual names always may.
        limits: How much may be asked.
        keep: Which photos are kept for labelling, and how many bytes of them; None for none.
        on_ready: Is told the page's address.
        on_reload: Is told what became of a SIGHUP, a sentence.

    Raises:
        ServeError: The address is taken, the model does not answer, there is no room for a copy of it, or `access` has
            an empty token or an origin that is not one.
        OutputError: The folder for photos cannot be written, or another server uses it.
        BundleError: The bundle's folder was replaced since it was loaded.
    """
    limits, access = limits or Limits(), access or Access()
    access.check()
    _occupy_standard_streams()
    _allow_many_connections()
    listening = _listen(host, port)
    try:
        with keeping(keep) as keeper:
            models = Models(bundle, limits, on_reload)
            try:
                known = replace(access, hosts=known_hosts(host, access.hosts))
                app = create_app(lambda: models.current, limits, known, keeper)
                server = uvicorn.Server(_config(app, limits))
                with _ended_by_signals(server):  # from here on, also before uvicorn sees to them itself
                    on_ready(_address(host, listening))
                    _run(server, lambda: _serving(server, listening, models))
            finally:
                models.close()
    finally:
        listening.close()


def serve_app(
    make: Callable[[str, int], ASGIApp],
    *,
    host: str,
    port: int,
    limits: Limits,
    on_ready: Callable[[str], None],
) -> None:
    """Answer requests to any application until SIGTERM or Ctrl-C, within limits on what a client may send.

    Args:
        make: Makes it, once its address and port are known.
        host: Address to listen on.
        port: 0 for any that is free.
        limits: Of connections.
        on_ready: Is told the address, `http://host:port/`.

    Raises:
        ServeError: The address is taken.
    """
    _occupy_standard_streams()
    _allow_many_connections()
    listening = _listen(host, port)
    try:
        address = _address(host, listening)
        server = uvicorn.Server(_config(make(address, listening.getsockname()[1]), limits))
        with _ended_by_signals(server):
            on_ready(address)
            _run(server, lambda: server.serve(sockets=[listening]))
    finally:
        listening.close()


def known_hosts(host: str, others: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names by which a server may be called: this machine's usual ones, where it listens, and others."""
    return tuple(dict.fromkeys((*LOCAL, _bracketed(host), *others)))


def _address(host: str, listening: socket.socket) -> str:
    return f"http://{_bracketed(host)}:{listening.getsockname()[1]}/"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class Models:
    """The model that answers now, and how it is replaced.

    Args:
        bundle: The first.
        limits: Of the server.
        on_reload: Is told what became of a reload, a sentence.

    Attributes:
        current: What answers now.

    Raises:
        ServeError: The model does not answer, or there is no room for a copy of it.
        BundleError: The bundle's folder was replaced since it was loaded.
    """

    def __init__(self, bundle: Bundle, limits: Limits, on_reload: Callable[[str], None]) -> None:
        self._folder, self._load_options = bundle.folder, load_options_of(bundle)
        self._limits, self._on_reload = limits, on_reload
        self._lock = threading.Lock()  # one reload at a time
        self._is_wanted = threading.Event()
        self.current = self._opened(bundle)
        self._pool: Pool = self.current.pool  # type: ignore[assignment]

    def reload(self, loop: asyncio.AbstractEventLoop) -> None:
        """Load the folder anew, in the background; if it verifies and answers, all workers change at once.

        Args:
            loop: In which requests are answered: between two of them the model changes.
        """
        self._is_wanted.set()
        threading.Thread(target=self._reload, args=(loop,), daemon=True, name="regraft reload").start()

    def close(self) -> None:
        """End the workers; a reload under way comes to its end first, within the time for stopping."""
        self._lock.acquire(timeout=self._limits.drain_s)
        self._pool.close()

    def _opened(self, bundle: Bundle) -> Served:
        model = SealedModel(bundle)
        pool = Pool(model, self._limits)
        return Served(pool, about_model(bundle, self._limits), model.sha256, usual_doubt(bundle).least_sure)

    def _reload(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if not self._is_wanted.is_set():  # another has seen to it
                return
            self._is_wanted.clear()
            try:
                served = self._opened(load(self._folder, **self._load_options))
            except (RegraftError, OSError) as error:
                self._tell(f"not reloaded, the model before goes on answering: {error}")
                return
            is_changed = threading.Event()

            def change() -> None:
                self.current = served
                is_changed.set()

            old, self._pool = self._pool, served.pool  # type: ignore[assignment]
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(change)
                is_changed.wait(self._limits.drain_s)
            self._tell(f"reloaded: model {served.sha256[:12]} answers")
            old.close()  # once it has answered what it was given

    def _tell(self, sentence: str) -> None:
        with suppress(Exception):  # there may be nowhere to tell it
            self._on_reload(sentence)


async def _serving(server: uvicorn.Server, listening: socket.socket, models: Models) -> None:
    loop = asyncio.get_running_loop()
    hang_up = functools.partial(_hang_up, server, models, loop, _has_terminal())
    with suppress(ValueError, RuntimeError, NotImplementedError):  # signals come to the main thread alone
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    await server.serve(sockets=[listening])


def _hang_up(server: uvicorn.Server, models: Models, loop: asyncio.AbstractEventLoop, had_terminal: bool) -> None:
    """Handle SIGHUP: the terminal was closed, or else somebody wants a reload."""
    if had_terminal and not _has_terminal():
        server.should_exit = True
    else:
        models.reload(loop)


def _has_terminal() -> bool:
    """Return whether there is a terminal that would send SIGHUP when it is closed."""
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _run(server: uvicorn.Server, serving: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the server until it ends.

    In a notebook, where a loop runs already, it runs in a thread; interrupting the cell ends it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with suppress(KeyboardInterrupt):  # which uvicorn hands on once it has stopped
            asyncio.run(serving())
        return
    thread = threading.Thread(target=lambda: asyncio.run(serving()), name="regraft serve")
    thread.start()
    while thread.is_alive():
        thread.join(0.25)  # a signal that another thread receives wakes nobody


@contextmanager
def _ended_by_signals(server: uvicorn.Server) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the server, as uvicorn does while it serves in the main thread."""

    def end(*_: object) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, end) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _config(app: Any, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        announced(app),
        http=connections(limits),  # type: ignore[arg-type]  # what makes a protocol does as well as its class
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_level="error",
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=round(limits.drain_s),
    )


def _occupy_standard_streams() -> None:
    """Open what was closed: else a client's connection would take its number, and get what libraries print."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


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
    """Allow as many open files as the system lets this process have, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, 65_536)), hard))
