"""A process that shows the page of a sitting until it is told to stop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from starlette.types import ASGIApp

from regraft.core.files import writable_cache
from regraft.core.progress import QUIET, Progress
from regraft.labelling.app import create_app
from regraft.labelling.entrance import ENTER, Entrance
from regraft.labelling.sitting import Sitting
from regraft.labelling.thumbnails import Thumbnails
from regraft.serving.access import Access
from regraft.serving.limits import Limits
from regraft.serving.server import known_hosts, serve_app

PORT = 8010
LIMITS = replace(Limits(), max_bytes=4 * 2**20, drain_s=2.0)


def serve_sitting(
    sitting: Sitting,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    names: tuple[str, ...] = (),
    folder: Path | None = None,
    on_address: Callable[[str], None],
    progress: Progress = QUIET,
) -> None:
    """Show the page until SIGTERM or Ctrl-C.

    Args:
        sitting: What is labelled.
        host: Address to listen on; this machine alone by default.
        port: 0 for any that is free.
        names: Under which it may be called, besides this machine's usual ones.
        folder: Where thumbnails are kept; None for regraft's cache.
        on_address: Is told the page's address, with a token that lets one browser in; and another address each time
            that one was used.
        progress: Says if nothing can be kept in the cache.

    Raises:
        ServeError: The address is taken.
    """
    kept = folder if folder is not None else writable_cache("thumbnails", progress)
    thumbnails = Thumbnails(sitting.photo_path, len(sitting.heap), kept)
    first: list[str] = []

    def make(base: str, listening_port: int) -> ASGIApp:
        def tell(token: str) -> None:
            on_address(f"{base}{ENTER.removeprefix('/')}?token={token}")

        entrance = Entrance(Access(hosts=known_hosts(host, names)), listening_port, tell)
        first.append(entrance.token)
        return create_app(sitting, thumbnails, entrance)

    thumbnails.start()
    try:
        serve_app(
            make,
            host=host,
            port=port,
            limits=LIMITS,
            on_ready=lambda base: on_address(f"{base}{ENTER.removeprefix('/')}?token={first[0]}"),
        )
    finally:
        thumbnails.close()
