"""Who may ask a server: by which name, from which pages, with which token."""

import hmac
import re
from dataclasses import dataclass, field

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Scope

from regraft.core.errors import ServeError

HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")  # name, and port
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#@\s]+", re.IGNORECASE)
PROBES = ("/healthz", "/metrics")  # asked by address, of whatever name: Kubernetes, load balancers, Prometheus
OPEN_PATHS = ("/healthz",)  # without the token, as the page is
READING = ("GET", "HEAD", "OPTIONS")
HEADERS = ("authorization", "content-type", "content-encoding")
MAX_AGE_S = 600  # that a browser remembers a preflight


@dataclass(frozen=True)
class Refused:
    """Why a request may not be made.

    Attributes:
        status: HTTP status of the answer.
        why: What the answer says.
        headers: Further ones of the answer.
    """

    status: int
    why: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: Names under which the server may be called.
        origins: Pages elsewhere that may ask, such as `https://shop.example`; `*` for all.
        token: What requests have to bear; None for nothing.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    token: str | None = None

    def check(self) -> None:
        """Make sure that these rules can be applied.

        Raises:
            ServeError: The token is empty, or an origin is not one.
        """
        if self.token is not None and not self.token.strip():
            raise ServeError("The token is empty, so it would keep nobody out. Give one, or unset REGRAFT_TOKEN.")
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise ServeError(
                    f"{origin[:100]!r} is no origin. Expected scheme and host, such as https://shop.example."
                )

    def refusal(self, scope: Scope, *, is_open: bool) -> Refused | None:
        """Say why a request may not be made; None where it may.

        Args:
            scope: Of the request.
            is_open: Whether it needs no token.
        """
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return Refused(400, "it has two lengths: Content-Length and Transfer-Encoding", {"Connection": "close"})
        if scope["path"] not in PROBES and not self._is_called(headers):
            return Refused(400, "it is called by a name that it does not know; --allow-host NAME adds one")
        if scope["method"] not in READING and not self._is_asked_from_here(headers):
            return Refused(403, "a page of another site asks; --allow-origin ORIGIN lets it")
        if not is_open and not self._has_token(headers):
            return Refused(401, "expected Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        return None

    def _is_called(self, headers: dict[bytes, bytes]) -> bool:
        """Return whether Host is one of the names: another belongs to a page elsewhere that made its name lead here."""
        host = HOST.fullmatch(_text(headers, b"host").lower())
        return host is not None and host[1] in {name.lower() for name in self.hosts}

    def _is_asked_from_here(self, headers: dict[bytes, bytes]) -> bool:
        """Return whether no browser asks, or one for a page of ours, or for a page that may."""
        site, origin = _text(headers, b"sec-fetch-site"), _text(headers, b"origin").lower()
        if site in ("same-origin", "none"):  # a browser says so, and no page can make it
            return True
        if origin and ("*" in self.origins or origin in {one.lower() for one in self.origins}):
            return True
        if site:
            return False
        return not origin or origin.partition("://")[2] == _text(headers, b"host").lower()

    def _has_token(self, headers: dict[bytes, bytes]) -> bool:
        if self.token is None:
            return True
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        return hmac.compare_digest(sent, self.token.encode()) and scheme.lower() == b"bearer"


def with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Return the application with answers that pages of these other origins may read; unchanged for none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=HEADERS,
        expose_headers=("X-Model", "Retry-After"),
        max_age=MAX_AGE_S,
    )


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")
