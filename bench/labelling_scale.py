"""How quick the page of a sitting is, with the photos of a phone and with those of a camera trap.

    python bench/labelling_scale.py              10,000 photos from their files, then 10,000 and 100,000 already read
    python bench/labelling_scale.py --only read  only the latter

Photos are drawn, of 20 classes. A script that knows them names groups until there are guesses, then answers pages of
24: a page turn is the answer, on disk, and the page that follows. The machine may be busy, so that seconds of the
processor stand beside those of the clock wherever nothing else runs. Writes bench/results/labelling.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from labelling import keep

NUM_CLASSES, SIDE, PAGES, PAGE, SOLUTIONS = 20, 128, 60, 24, 40
BLOCK = 4096  # photos drawn at a time
PATIENCE_S = 600  # for photos to be read
TICK = os.sysconf("SC_CLK_TCK")


class Client:
    """A browser without a screen.

    Args:
        process: The program, which prints its address.
        named: Where it prints it.
    """

    def __init__(self, process: subprocess.Popen[str], named: Path) -> None:
        self.process, began = process, time.monotonic()
        while "token=" not in named.read_text():
            assert process.poll() is None, named.read_text()
            assert time.monotonic() - began < 300
            time.sleep(0.02)
        address = next(word for word in named.read_text().split() if "token=" in word)
        self._parts, self._cookie = urlsplit(address), ""
        self._connection = HTTPConnection("127.0.0.1", self._parts.port, timeout=120)
        self._connection.request("GET", f"{self._parts.path}?{self._parts.query}")
        reply = self._connection.getresponse()
        reply.read()
        self._cookie = reply.headers["set-cookie"].partition(";")[0]

    def ask(self, path: str, content: Any = None) -> Any:
        """A request as the page makes it."""
        headers = {"Cookie": self._cookie, "X-Tab": "bench0001", "Content-Type": "application/json"}
        body = None if content is None else json.dumps(content)
        self._connection.request("GET" if content is None else "POST", path, body, headers)
        reply = self._connection.getresponse()
        data = reply.read()
        self._connection.close()  # the server ends one that is idle for long
        assert reply.status == 200, data
        return json.loads(data)

    def processor_s(self) -> float:
        """Seconds that the program has computed so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def is_idle(self) -> bool:
        """Return, after two seconds, whether the program has computed next to nothing in them."""
        before = self.processor_s()
        time.sleep(2)
        return self.processor_s() - before < 0.1

    def peak_mb(self) -> int:
        """The most memory that the program has used."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) // 1024


@contextmanager
def program(command: list[str], folder: Path) -> Iterator[Client]:
    """A program that shows the page of a sitting, until the block ends."""
    named = folder / "said.txt"
    with named.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, text=True)
    try:
        yield Client(process, named)
    finally:
        process.terminate()
        process.wait()


def class_of(name: str) -> str:
    """The class of a drawn photo, which its name tells the script."""
    return f"class{int(Path(name).stem) * 7919 % NUM_CLASSES:02}"


def draw(folder: Path, number: int) -> Path:
    """Photos that share a coarse pattern with others of their class, and have one of their own; new ones each time, so
    that none has features in the cache."""
    rng, shared = (
        np.random.default_rng(time.time_ns()),
        np.random.default_rng(99).integers(0, 256, (NUM_CLASSES, 8, 8, 3)),
    )
    folder.mkdir()
    for i in range(number):
        pixels = (shared[i * 7919 % NUM_CLASSES] + rng.integers(0, 256, (8, 8, 3))) // 2
        image = Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:06}.jpg")
    return folder


def answered(client: Client, page: dict[str, Any]) -> dict[str, Any]:
    """Say of each photo of a page what it is."""
    known = set(client.ask("/api/status")["classes"])
    for name in sorted({class_of(card["name"]) for card in page["cards"]} - known):
        client.ask("/api/classes", {"name": name})
    answers = [{"photo": card["photo"], "label": class_of(card["name"])} for card in page["cards"]]
    return client.ask("/api/answers", {"answers": answers, "version": page["version"] + NUM_CLASSES})


def first_guesses(client: Client) -> None:
    """Name groups until the model guesses."""
    deadline = time.monotonic() + 300
    while not client.ask(f"/api/page?kind=guesses&size={PAGE}")["cards"]:
        assert time.monotonic() < deadline
        if client.ask("/api/status")["solved_version"] < 0:
            page = client.ask(f"/api/page?kind=groups&size={PAGE}")
            answered(client, page) if page["cards"] else time.sleep(0.05)


def turns(client: Client) -> dict[str, float]:
    """Answer pages, and take the time of each turn; a person looks at a page for a while."""
    for name in {f"class{i:02}" for i in range(NUM_CLASSES)} - set(client.ask("/api/status")["classes"]):
        client.ask("/api/classes", {"name": name})
    seconds, processor, page = [], client.processor_s(), client.ask(f"/api/page?kind=guesses&size={PAGE}")
    for _ in range(PAGES):
        answers = [{"photo": card["photo"], "label": class_of(card["name"])} for card in page["cards"]]
        time.sleep(0.2)
        began = time.perf_counter()
        client.ask("/api/answers", {"answers": answers, "version": page["version"]})
        page = client.ask(f"/api/page?kind=guesses&size={PAGE}")
        seconds.append(time.perf_counter() - began)
    others = [client.ask(f"/api/page?kind={kind}&size={PAGE}") and None for kind in ("groups", "questions", "doubts")]
    assert len(others) == 3
    return {
        "median_s": round(float(np.median(seconds)), 4),
        "p95_s": round(float(np.quantile(seconds, 0.95)), 4),
        "processor_s_a_page_with_all_that_follows": round((client.processor_s() - processor) / PAGES, 4),
    }


def solutions(client: Client) -> dict[str, float]:
    """From an answer to the head that knows it: each page is answered when the last one is learned from."""
    seconds = []
    for _ in range(SOLUTIONS):
        page = client.ask(f"/api/page?kind=questions&size={PAGE}")
        said = [{"photo": card["photo"], "label": class_of(card["name"])} for card in page["cards"]]
        began = time.perf_counter()
        version = client.ask("/api/answers", {"answers": said, "version": page["version"]})["version"]
        while client.ask("/api/status")["solved_version"] < version:
            time.sleep(0.01)
        seconds.append(time.perf_counter() - began)
    return {"median_s": round(float(np.median(seconds)), 4), "p95_s": round(float(np.quantile(seconds, 0.95)), 4)}


def from_files(number: int) -> dict[str, Any]:
    """The command on files: when the first guesses come, and page turns while photos are read."""
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as scratch:
        folder, photos = Path(scratch), draw(Path(scratch) / "photos", number)
        command = [sys.executable, "-m", "regraft", "label", photos, "--out", folder / "run", "--port", "0"]
        began = time.perf_counter()
        with program([*map(str, command)], folder) as client:
            address = time.perf_counter() - began
            first_guesses(client)
            guesses = time.perf_counter() - began
            found: dict[str, Any] = {"address_s": round(address, 2), "first_guesses_s": round(guesses, 2)}
            found["first_guesses_processor_s"] = round(client.processor_s(), 2)
            found["photos_read_by_then"] = client.ask("/api/status")["num_featured"]
            found |= {"turns_while_reading": turns(client)}
            print(found, flush=True)
            while (
                read := client.ask("/api/status")["num_featured"]
            ) < number and time.perf_counter() - began < PATIENCE_S:
                time.sleep(1)
            found |= {"photos_read": read, "turns_while_looking_again": turns(client)}
            while not client.is_idle() and time.perf_counter() - began < 2 * PATIENCE_S:
                pass
            found["looked_again_s"] = round(time.perf_counter() - began, 1)
            return {**found, "turns": turns(client), "peak_mb": client.peak_mb()}


def already_read(number: int) -> dict[str, Any]:
    """A sitting on photos whose features are there."""
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as scratch:
        command = [sys.executable, __file__, "--serve", str(number), "--folder", scratch]
        with program(command, Path(scratch)) as client:
            began = time.perf_counter()
            first_guesses(client)
            found: dict[str, Any] = {"first_guesses_s": round(time.perf_counter() - began, 2), "turns": turns(client)}
            found["answer_to_new_head"] = solutions(client)
            time.sleep(5)  # doubts come once nobody answers
            for kind in ("groups", "guesses", "questions", "doubts", "audit"):
                began = time.perf_counter()
                page = client.ask(f"/api/page?kind={kind}&size={PAGE}")
                found[f"{kind}_s"] = round(time.perf_counter() - began, 4)
                assert page["cards"] or kind == "doubts"
            began = time.perf_counter()
            client.ask("/api/status")
            return {**found, "status_s": round(time.perf_counter() - began, 4), "peak_mb": client.peak_mb()}


def serve(number: int, folder: Path) -> None:
    """Show the page of a sitting on drawn features, as the program that is measured."""
    from regraft.labelling.heap import Contents, Heap
    from regraft.labelling.journal import Journal
    from regraft.labelling.server import serve_sitting
    from regraft.labelling.sitting import Sitting

    heap, contents = Heap(folder, tuple(f"{i:06}.jpg" for i in range(number)), ("",) * number), Contents(number)
    rng = np.random.default_rng(0)
    centres, turn = rng.normal(size=(NUM_CLASSES, 512)), rng.normal(size=(512, 1280)).astype(np.float32) / 20
    for start in range(0, number, BLOCK):
        photos = range(start, min(start + BLOCK, number))
        cloud = centres[np.array(photos) * 7919 % NUM_CLASSES] + 1.5 * rng.normal(size=(len(photos), 512))
        contents.put(photos, [f"{i:064x}" for i in photos], cloud.astype(np.float32) @ turn)
    with Journal(folder / "journal.jsonl") as journal:
        sitting = Sitting(heap, journal, contents)
        (folder / "thumbnails").mkdir()
        serve_sitting(sitting, port=0, folder=folder / "thumbnails", on_address=lambda one: print(one, flush=True))
        sitting.close()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["files", "read"])
    parser.add_argument("--numbers", default="10000,100000")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.serve:
        serve(wanted.serve, wanted.folder)
        return
    if wanted.only != "read":
        keep("scale", from_files(10_000), "10000 from files")
    if wanted.only != "files":
        for number in map(int, wanted.numbers.split(",")):
            keep("scale", already_read(number), f"{number} read")


if __name__ == "__main__":
    main()
