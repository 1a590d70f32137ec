"""`regraft label` in a process of its own, and a browser on its page."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conftest import Reply

TAB = "tab00001"


@dataclass
class Labelling:
    """A sitting's page. said: the file that its stderr goes to.  cookie: of a browser that was let in."""

    process: subprocess.Popen[str]
    said: Path
    cookie: str = ""

    @property
    def addresses(self) -> list[str]:
        """Those that the terminal has shown so far."""
        return re.findall(r"http://127\.0\.0\.1:\d+/enter\?token=[\w-]+", self.said.read_text())

    @property
    def port(self) -> int:
        port = urlsplit(self.addresses[0]).port
        assert port
        return port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A request as the page makes it, unless headers say otherwise; None leaves one out."""
        data = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        named = {"Cookie": self.cookie, "X_Tab": TAB, **({"Content_Type": "application/json"} if data else {}), **headers}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {name.replace("_", "-"): value for name, value in named.items() if value is not None}
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            return Reply(reply.status, reply.headers, reply.read())
        finally:
            connection.close()

    def enter(self) -> Reply:
        """Let this client in by the newest address."""
        address = urlsplit(self.addresses[-1])
        reply = self.ask("GET", f"{address.path}?{address.query}", Cookie=None)
        self.cookie = reply.headers["set-cookie"].partition(";")[0]
        return reply

    def status(self) -> dict[str, Any]:
        return self.ask("GET", "/api/status").json

    def cards(self) -> dict[str, dict[str, Any]]:
        """What all photos are labelled, by name."""
        photos = ",".join(map(str, range(self.status()["num_photos"])))
        return {card["name"]: card for card in self.ask("GET", f"/api/cards?photos={photos}").json["cards"]}

    def wait_until(self, condition: Any, timeout: float = 120.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.02)

    def is_all_read(self) -> bool:
        status = self.status()
        return status["num_featured"] == status["num_photos"]

    def is_solved(self) -> bool:
        """Whether guesses follow from all labels, or cannot yet."""
        status = self.status()
        return status["solved_version"] == status["version"] or sum(map(bool, status["counts"].values())) < 2


@contextmanager
def labelling(photos: Path, out: Path, *flags: object, **environment: str) -> Iterator[Labelling]:
    """`regraft label` on a free port, until the block ends."""
    said = out.with_name(f"{out.name}-said")
    command = [sys.executable, "-m", "regraft", "label", photos, "--out", out, "--port", "0", *flags]
    with said.open("w") as stream:
        process = subprocess.Popen(
            [*map(str, command)], stdout=stream, stderr=stream, text=True, env={**os.environ, **environment}
        )
    served = Labelling(process, said)
    try:
        served.wait_until(lambda: served.addresses)
        served.enter()
        yield served
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


@dataclass
class Annotator:
    """A person who knows what the photos are, and uses the page's keys.

    truth: class by name of a photo.  actions: keys and clicks so far, a typed name as one. Pointing is none.
    """

    page: Any
    served: Labelling
    truth: dict[str, str]
    actions: int = 0
    messages: list[str] = field(default_factory=list)

    def label_all(self) -> None:
        """Label to the last photo: groups until each class has a name, then guesses."""
        self.served.wait_until(self.served.is_all_read)
        while not self.served.status()["is_done"]:
            self.served.wait_until(self.served.is_solved)
            if self.page.query_selector("#on"):
                self.turn_by("Enter")
            elif not self.page.query_selector("#screen.groups"):
                self.accept_page()
            elif all(self.served.status()["counts"].get(name) for name in self.truth.values()):
                self.open("guesses")
            else:
                self.name_group()

    def open(self, screen: str) -> None:
        self.actions += 1
        self.page.click(f"[data-screen={screen}]")
        self.page.wait_for_selector(f"#screen.{screen}[data-turn]")

    def turn_by(self, key: str) -> None:
        """Press a key after which another page comes."""
        turn = self.page.get_attribute("#screen", "data-turn")
        self.press(key)
        self.page.wait_for_selector(f"#screen:not([data-turn='{turn}'])", state="attached")

    def press(self, key: str) -> None:
        self.actions += 1
        self.page.keyboard.press(key)

    def shown(self) -> dict[str, str]:
        """The truth of each photo on the page, by its number."""
        cards = self.page.evaluate(
            "[...document.querySelectorAll('.card')].map(card => [card.dataset.photo, card.title])"
        )
        return {photo: self.truth[name] for photo, name in cards}

    def keys(self) -> dict[str, str]:
        pairs = "[...document.querySelectorAll('[data-class]')].map(b => [b.dataset.class, b.lastChild.textContent])"
        return dict(self.page.evaluate(pairs))

    def name_group(self) -> None:
        """Take out what is not of the class that most are, and name the others."""
        shown = self.shown()
        names = list(shown.values())
        most = max(sorted(set(names)), key=names.count)
        for photo, name in shown.items():
            if name != most:
                self.actions += 1
                self.page.click(f".card[data-photo='{photo}'] .photo")
        if key := self.keys().get(most):
            return self.turn_by(key)
        self.page.keyboard.press("Escape")  # out of the field, where it has the focus already
        self.page.keyboard.press("n")
        self.page.keyboard.type(most)
        return self.turn_by("Enter")

    def accept_page(self) -> None:
        """Put single photos right, and accept the others."""
        suggestion = self.page.text_content("h1 .label span")
        for photo, name in self.shown().items():
            if name != suggestion:
                self.page.hover(f".card[data-photo='{photo}'] .photo")
                self.press(self.keys()[name])
                self.page.wait_for_selector(f".card.done[data-photo='{photo}']")
        self.turn_by("Enter")
