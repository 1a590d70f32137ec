"""Who may use a sitting's page: the browser that was given its address, and no other page in that browser."""

import hmac
import secrets
import threading
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from starlette.types import Scope

from regraft.serving.access import Access, Refused

ENTER = "/enter"
TOKEN_BYTES = 16
CROSSED = "a page of another site asks; only the page that this program shows may"
UNKNOWN_NAME = "it is called by a name that it does not know; open the address that the terminal shows"
LOCKED_OUT = "this browser was not let in; open the address that the terminal shows"


class Entrance:
    """One-time tokens, and the cookie that each of them becomes.

    A token is in an address, and addresses are kept in histories and shown on screens: so it works once. Whoever used
    it has a cookie from then on, which no script can read and no page elsewhere can send.

    Args:
        access: By which names the server may be called.
        port: On which it listens. The cookie's name has it, because browsers share cookies among a machine's ports.
        on_token: Is told the next token each time that one was used, for another browser.
    """

    def __init__(self, access: Access, port: int, on_token: Callable[[str], None] = lambda _: None) -> None:
        self._access, self._on_token = access, on_token
        self._name = f"regraft-label-{port}"
        self._session = secrets.token_urlsafe(TOKEN_BYTES)
        self._lock = threading.Lock()
        self.token = secrets.token_urlsafe(TOKEN_BYTES)

    def refusal(self, scope: Scope, *, is_open: bool) -> Refused | None:
        """Say why a request may not be made; None where it may.

        Args:
            scope: Of the request.
            is_open: Whether it needs no cookie.
        """
        refused = self._access.refusal(scope, is_open=True)
        if refused:
            why = {400: UNKNOWN_NAME, 403: CROSSED}[refused.status]
            return Refused(refused.status, why, refused.headers)
        if not is_open and not self.is_known(scope):
            return Refused(401, LOCKED_OUT)
        return None

    def is_known(self, scope: Scope) -> bool:
        """Return whether a request bears the cookie."""
        header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
        try:
            morsel = SimpleCookie(header.decode("latin-1")).get(self._name)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._session.encode())

    def exchange(self, token: str) -> str | None:
        """Take a token, which then works no more.

        Returns:
            The Set-Cookie header; None for a wrong or used token.
        """
        with self._lock:
            if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
                return None
            self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._on_token(self.token)
        return f"{self._name}={self._session}; HttpOnly; SameSite=Strict; Path=/"
