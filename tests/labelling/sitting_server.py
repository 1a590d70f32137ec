"""A sitting that is served, by `regraft label` or in a thread of the test, and a person at its page."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from PIL import Image

from conftest import Reply
from regraft.labelling.app import create_app
from regraft.labelling.entrance import Entrance
from regraft.labelling.heap import heap_of
from regraft.labelling.journal import Journal
from regraft.labelling.server import LIMITS
from regraft.labelling.sitting import Sitting
from regraft.labelling.thumbnails import Thumbnails
from regraft.serving import server as serving
from regraft.serving.access import Access

TAB = "tab00001"


@dataclass
class Labelling:
    """A sitting's page. told: its addresses so far.  check: fails once it has ended.  cookie: of who was let in."""

    told: Callable[[], list[str]]
    check: Callable[[], None] = lambda: None
    cookie: str = ""

    @property
    def addresses(self) -> list[str]:
        """Those that were shown so far."""
        return self.told()

    @property
    def port(self) -> int:
        port = urlsplit(self.addresses[0]).port
        assert port
        return port

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A request as the page makes it, unless headers say otherwise; None leaves one out."""
        data = json.dumps(body).encode() if body is not None and not isinstance(body, bytes) else body
        named = {
            "Cookie": self.cookie,
            "X_Tab": TAB,
            **({"Content_Type": "application/json"} if data else {}),
            **headers,
        }
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

    def wait_until(self, condition: Any, timeout: float = 240.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            self.check()
            assert time.monotonic() < deadline
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

    def check() -> None:
        assert process.poll() is None, said.read_text()

    served = Labelling(lambda: re.findall(r"http://127\.0\.0\.1:\d+/enter\?token=[\w-]+", said.read_text()), check)
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


@contextmanager
def in_thread(photos: Path, place: Path, *classes: str, **options: Any) -> Iterator[Labelling]:
    """The same application in a thread, with mean colours in place of a network's features: there at once."""
    heap = heap_of(photos, sorted(photos.rglob("*.jpg")), list(classes))
    files = [heap.root / path for path in heap.paths]
    colours = [np.asarray(Image.open(file).convert("RGB").resize((3, 3))).ravel() / 255 for file in files]
    listening, addresses = serving._listen("127.0.0.1", 0), []
    port = listening.getsockname()[1]

    def tell(token: str) -> None:
        addresses.append(f"http://127.0.0.1:{port}/enter?token={token}")

    with Journal(place / "journal.jsonl") as journal:
        sitting = Sitting(heap, journal, **options)
        hashes = [sha256(file.read_bytes()).hexdigest() for file in files]
        sitting.contents.put(range(len(files)), hashes, np.array(colours, np.float32))
        sitting.features_arrived()
        (place / "thumbnails").mkdir()
        thumbnails = Thumbnails(sitting.photo_path, len(heap), place / "thumbnails")
        entrance = Entrance(Access(hosts=serving.known_hosts("127.0.0.1")), port, tell)
        server = uvicorn.Server(serving._config(create_app(sitting, thumbnails, entrance), LIMITS))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        tell(entrance.token)
        thread.start()
        try:
            served = Labelling(lambda: addresses)
            served.enter()
            yield served
        finally:
            server.should_exit = True
            thread.join(60)
            listening.close()
            sitting.close()


def shifted(key: str) -> str:
    """A class's key with Shift."""
    return f"Shift+Digit{key}" if key.isdigit() else f"Shift+Key{key.upper()}"


@dataclass
class Annotator:
    """A person who knows what the photos are, and uses the page's keys.

    truth: class by name of a photo.  actions: keys and clicks so far, a typed name as one. Pointing is none.
    """

    page: Any
    served: Labelling
    truth: dict[str, str]
    actions: int = 0

    def label_all(self) -> None:
        """Label to the last photo: groups until each class has a name, then guesses."""
        self.served.wait_until(self.served.is_all_read)
        while not self.served.status()["is_done"]:
            self.served.wait_until(self.served.is_solved)
            self.page.wait_for_selector(".card, #on")  # while photos are read there is neither
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

    def point_at(self, photo: str) -> None:
        """Move the mouse onto a photo, from elsewhere: one that comes under a mouse at rest is not pointed at."""
        self.page.locator(f".card[data-photo='{photo}'] .photo").scroll_into_view_if_needed()
        self.page.mouse.move(1, 1)
        self.page.hover(f".card[data-photo='{photo}'] .photo")

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
        """Say of each photo that is not of the class that most are what it is, and name the others."""
        shown = self.shown()
        names = list(shown.values())
        most = max(sorted(set(names)), key=names.count)
        for photo, name in shown.items():
            if name != most:
                self.page.keyboard.press("Escape")  # out of the field, where it has the focus already
                self.point_at(photo)
                self.press("Shift+Enter" if self.type_unless_known(name) else shifted(self.keys()[name]))
                self.page.wait_for_selector(f".card.done[data-photo='{photo}']")
        self.page.keyboard.press("Escape")
        self.turn_by("Enter" if self.type_unless_known(most) else self.keys()[most])

    def type_unless_known(self, name: str) -> bool:
        """Type the name of a class that there is no key for yet."""
        if name in self.keys():
            return False
        self.page.keyboard.press("n")
        self.page.keyboard.type(name)
        return True

    def accept_page(self) -> None:
        """Put single photos right, and accept the others."""
        thought = "[...document.querySelectorAll('.card')].map(card => card.querySelector('.label span').textContent)"
        for (photo, name), said in zip(self.shown().items(), self.page.evaluate(thought), strict=True):
            if name != said:
                self.point_at(photo)
                self.press(self.keys()[name])
                self.page.wait_for_selector(f".card.done[data-photo='{photo}']")
        self.turn_by("Enter")
