"""A server under load, beside prediction from a folder and beside a plain FastAPI application around the same graph.

    python bench/serving.py [--photos 2400] [--rounds 3] [--fastapi PYTHON] [--soak 20000]

Photos are those of `REGRAFT_DATA/hymenoptera`, or of the orchard, 500x375, several versions of each. Each round takes
the contenders in turn: `regraft predict` on the folder, then each server with 8 clients that send photo after photo,
then with a single one. In the end each server gets the hostile files of the tests, one by one.
PYTHON: an interpreter with fastapi, uvicorn, onnxruntime, numpy and pillow. --soak: requests over which the memory of
regraft's processes is watched. Writes bench/results/serving.json, fills README.md.
"""

import argparse
import http.client
import itertools
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from limits import SIZE, versions
from record import HERE, fill, machine, real_or_drawn, where
from regraft.bundle.bundle import load
from regraft.bundle.predict import predict

sys.path.insert(0, str(HERE.parent / "tests"))

CLIENTS = 8
QUIET = 200  # requests of the single client
OVERSIZED = 64 * 2**20  # bytes of a body
PATIENCE_S = 30.0  # for an answer to a hostile file
FOLDER, OURS, PEER = "regraft predict, a folder", "regraft serve", "FastAPI and ONNX Runtime"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fastapi")
    parser.add_argument("--soak", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        source = real_or_drawn("hymenoptera", scratch)
        photos = versions(source, scratch / "photos", arguments.photos)
        run = [sys.executable, "-m", "regraft", "train", str(source), "--mode", "frozen", "--out", str(scratch / "run")]
        subprocess.run([*run, "--quiet", "--no-report"], check=True, capture_output=True)
        bodies = [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
        servers = commands(scratch / "run", arguments.fastapi)
        rows = [row for _ in range(arguments.rounds) for row in one_round(scratch, photos, bodies, servers)]
        hostile = [{"name": name, **besieged(command, bodies[0])} for name, command in servers.items()]
        soak = soaked(servers[OURS], bodies, arguments.soak) if arguments.soak else None
    result = {"command": "python bench/serving.py", **machine(), "size": SIZE, "rows": rows}
    result |= {"hostile": hostile, "soak": soak}
    (HERE / "results" / "serving.json").write_text(json.dumps(result, indent=1) + "\n")
    fill("serving", table(result))
    print(table(result))


def commands(run: Path, fastapi: str | None) -> dict[str, list[str]]:
    """How each server is started, up to its port."""
    found = {OURS: [sys.executable, "-m", "regraft", "serve", str(run), "--port"]}
    if fastapi:
        found[PEER] = [fastapi, str(HERE / "peer_fastapi.py"), str(run / "bundle")]
    return found


def one_round(scratch: Path, photos: Path, bodies: list[bytes], servers: dict[str, list[str]]) -> Iterator[dict]:
    """A row for each contender."""
    bundle = load(scratch / "run")
    _ = bundle.engine
    began = time.perf_counter()
    count = sum(answer.prediction is not None for answer in predict(bundle, [photos]))
    yield {"name": FOLDER, "photos_per_s": count / (time.perf_counter() - began)}
    for name, command in servers.items():
        with running(command) as (port, _):
            load_with(port, bodies[:100], CLIENTS)
            began = time.perf_counter()
            seconds = load_with(port, bodies, CLIENTS)
            elapsed = time.perf_counter() - began
            single = load_with(port, bodies[:QUIET], 1)
        row = {"name": name, "photos_per_s": len(bodies) / elapsed}
        row |= {"p50_ms": 1000 * statistics.median(seconds), "p99_ms": 1000 * statistics.quantiles(seconds, n=100)[98]}
        yield row | {"single_p50_ms": 1000 * statistics.median(single)}


@contextmanager
def running(command: list[str]) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: port and process number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if answers(port):
                break
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int) -> bool:
    """Whether /healthz says that all is well."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False


def load_with(port: int, bodies: list[bytes], num_clients: int) -> list[float]:
    """Seconds of each request; each client sends its share over one connection, one after the other."""
    seconds: list[float] = []

    def client(own: list[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for body in own:
            began = time.perf_counter()
            connection.request("POST", "/v1/predict", body, {"Content-Type": "image/jpeg"})
            reply = connection.getresponse()
            content = reply.read()
            assert reply.status == 200, content
            seconds.append(time.perf_counter() - began)

    threads = [threading.Thread(target=client, args=(bodies[i::num_clients],)) for i in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == len(bodies)
    return seconds


def besieged(command: list[str], good: bytes) -> dict[str, float]:
    """What a server does with hostile files: counts by kind of answer, its slowest one, and megabytes it took more."""
    from faults.test_corpus import bombs, damaged_and_odd

    files = [*damaged_and_odd((200, 40, 40), 0).values(), *bombs().values(), bytes(OVERSIZED)]
    found, slowest = dict.fromkeys(("answered", "refused", "errors", "no_answer"), 0), 0.0
    with running(command) as (port, pid):
        load_with(port, [good] * 20, 1)
        before = peak(pid)
        for data in files:
            began = time.perf_counter()
            found[kind_of(port, data)] += 1
            slowest = max(slowest, time.perf_counter() - began)
        lives = kind_of(port, good) == "answered"
        return {"files": len(files), **found, "slowest_s": slowest, "more_mb": peak(pid) - before, "lives": lives}


def kind_of(port: int, data: bytes) -> str:
    """How a file is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/v1/predict", data, {"Content-Type": "image/jpeg", "Connection": "close"})
        code = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return "no_answer"
    finally:
        connection.close()
    return "answered" if code < 400 else "refused" if code < 500 else "errors"


def soaked(command: list[str], bodies: list[bytes], count: int) -> dict[str, float]:
    """Megabytes of a server and its workers, at every twentieth of the requests; the first is not looked at."""
    endless, megabytes = itertools.cycle(bodies), []
    with running(command) as (port, pid):
        for _ in range(20):
            load_with(port, list(itertools.islice(endless, count // 20)), CLIENTS)
            megabytes.append(resident(pid))
    slope = float(np.polyfit(np.arange(1, 20), megabytes[1:], 1)[0]) * 20_000 / count * 20
    return {"requests": count, "early_mb": megabytes[1], "late_mb": megabytes[-1], "mb_per_20000": slope}


def peak(pid: int) -> float:
    """Megabytes at most in memory so far, of a process and its children."""
    own = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024
    return own + sum(peak(child) for child in children(pid))


def resident(pid: int) -> float:
    """Megabytes in memory, of a process and its children."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    return own + sum(resident(child) for child in children(pid))


def children(pid: int) -> list[int]:
    """Processes that any of its threads started."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def table(result: dict) -> str:
    """Medians over the rounds; what became of hostile files; memory over many requests."""
    lines = ["| | photos/s, 8 clients | p50 | p99 | one quiet client, p50 |", "|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        cells = [f"{median(result, name, 'photos_per_s'):.0f}"]
        cells += (
            ["", "", ""]
            if name == FOLDER
            else [f"{median(result, name, key):.0f} ms" for key in ("p50_ms", "p99_ms", "single_p50_ms")]
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    columns = "answered | refused | error 500 | no answer | slowest | memory"
    lines += ["", f"| {result['hostile'][0]['files']} hostile files, one by one | {columns} |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in result["hostile"]:
        counts = [str(row[key]) for key in ("answered", "refused", "errors", "no_answer")]
        end = "" if row["lives"] else ", dead"
        lines.append(
            f"| {row['name']} | {' | '.join(counts)} | {row['slowest_s']:.1f} s | +{row['more_mb']:.0f} MB{end} |"
        )
    share = median(result, OURS, "photos_per_s") / median(result, FOLDER, "photos_per_s")
    notes = [
        f"Photos of {SIZE[0]}x{SIZE[1]}; the server answers at {100 * share:.0f} % of the speed of `regraft predict`."
    ]
    if soak := result["soak"]:
        notes.append(
            f"Over {soak['requests']} requests its memory went from {soak['early_mb']:.0f} to {soak['late_mb']:.0f} MB."
        )
    notes.append(f"{where(result)}; `{result['command']}`.")
    return "\n".join([*lines, "", " ".join(notes)])


def median(result: dict, name: str, key: str) -> float:
    """Of a figure over the rounds."""
    return statistics.median(row[key] for row in result["rows"] if row["name"] == name)


if __name__ == "__main__":
    main()
