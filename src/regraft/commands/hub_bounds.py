"""What a hub may send: as much as it said beforehand, and nothing that unpacks to more."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from regraft.core.errors import HubError

ANSWER_BYTES = 16 * 2**20  # of answers about a repository, together
SLACK_BYTES = 2**20  # of redirects and errors beside a file
TRIES = 3  # of a file that is cut: its bytes may come so often


@dataclass
class Allowance:
    """How many bytes a hub may still send.

    Attributes:
        endpoint: Address of the hub, for messages.
        left: Bytes, of the bodies of all answers together.
    """

    endpoint: str
    left: int = ANSWER_BYTES

    def of_file(self, size: int) -> None:
        """Allow a file of so many bytes, and no more than that."""
        self.left = TRIES * size + SLACK_BYTES

    @contextmanager
    def over(self, client: Any) -> Iterator[None]:
        """Hold for all that an HTTP client (httpx) is answered until the block ends."""
        before = dict(client.event_hooks)
        client.event_hooks = {
            "request": [*before.get("request", ()), _ask_unpacked],
            "response": [*before.get("response", ()), self._hold],
        }
        try:
            yield
        finally:
            client.event_hooks = before

    def _hold(self, response: Any) -> None:
        """Count a body while it is read. Raises HubError for one that is packed."""
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise HubError(
                f"{self.endpoint} sends an answer packed as {coding[:40]!r}, expected one that is not. Nothing was "
                "kept. Check the address of the hub."
            )
        pieces = response.iter_raw
        response.iter_raw = lambda chunk_size=None: self._counted(pieces(chunk_size))

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.left -= len(piece)
            if self.left < 0:
                raise HubError(
                    f"{self.endpoint} sends more than it said, and was cut off. Nothing was kept. Check the address of "
                    "the hub."
                )
            yield piece


def _ask_unpacked(request: Any) -> None:
    request.headers["accept-encoding"] = "identity"
