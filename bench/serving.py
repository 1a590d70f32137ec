"""A server under load, beside prediction from a folder and beside a plain FastAPI application around the same graph.

    python bench/serving.py [--photos 2400] [--rounds 3] [--fastapi PYTHON] [--soak 20000]

Photos are those of `REGRAFT_DATA/hymenoptera`, or of the orchard, 500x375, several versions of each. Each round takes
the contenders in turn: `regraft predict` on the folder, then each server with 8 clients that send photo after photo,
then with a single one. PYTHON: an interpreter with fastapi, uvicorn, python-multipart, onnxruntime, numpy and pillow.
--soak: requests after which the memory of regraft's processes is compared. Writes bench/results/serving.json.
"""

import argparse
import http.client
import itertools
import json
import os
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

from limits import SIZE, versions
from record import HERE, machine, real_or_drawn, where
from regraft.deliver.bundle import load
from regraft.deliver.predict import predict

CLIENTS = 8
QUIET = 200  # requests of the single client


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
        rows = [row for _ in range(arguments.rounds) for row in one_round(scratch, photos, bodies, arguments.fastapi)]
        soak = soaked(scratch, bodies, arguments.soak) if arguments.soak else None
    result = {"command": "python bench/serving.py", **machine(), "size": SIZE, "rows": rows, "soak": soak}
    (HERE / "results" / "serving.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def one_round(scratch: Path, photos: Path, bodies: list[bytes], fastapi: str | None) -> Iterator[dict]:
    """A row for each contender."""
    bundle = load(scratch / "run")
    _ = bundle.engine
    began = time.perf_counter()
    count = sum(answer.prediction is not None for answer in predict(bundle, [photos]))
    yield {"name": "regraft predict, a folder", "photos_per_s": count / (time.perf_counter() - began)}
    servers = {"regraft serve": [sys.executable, "-m", "regraft", "serve", str(scratch / "run"), "--port"]}
    if fastapi:
        servers["FastAPI and ONNX Runtime"] = [fastapi, str(HERE / "peer_fastapi.py"), str(scratch / "run" / "bundle")]
    for name, command in servers.items():
        with running(command) as (port, _):
            load_with(port, bodies[:100], CLIENTS)
            seconds = load_with(port, bodies, CLIENTS)
            single = load_with(port, bodies[:QUIET], 1)
        row = {"name": name, "photos_per_s": len(bodies) / sum(seconds) * CLIENTS}
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


def soaked(scratch: Path, bodies: list[bytes], count: int) -> dict[str, float]:
    """Megabytes of a server and its workers after a tenth of the requests, and after all."""
    command = [sys.executable, "-m", "regraft", "serve", str(scratch / "run"), "--port"]
    endless = itertools.cycle(bodies)
    with running(command) as (port, pid):
        load_with(port, list(itertools.islice(endless, count // 10)), CLIENTS)
        before = resident(pid)
        load_with(port, list(itertools.islice(endless, count - count // 10)), CLIENTS)
        return {"requests": count, "megabytes_early": before, "megabytes_late": resident(pid)}


def resident(pid: int) -> float:
    """Megabytes in memory, of a process and its children."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(resident(int(child)) for child in children)


def table(result: dict) -> str:
    """Medians over the rounds."""
    lines = ["| | photos/s, 8 clients | p50 | p99 | p50 of one quiet client |", "|---|---:|---:|---:|---:|"]
    for name in dict.fromkeys(row["name"] for row in result["rows"]):
        own = [row for row in result["rows"] if row["name"] == name]
        cells = [f"{statistics.median(row['photos_per_s'] for row in own):.0f}"]
        for key in ("p50_ms", "p99_ms", "single_p50_ms"):
            cells.append(f"{statistics.median(row[key] for row in own):.0f} ms" if key in own[0] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if soak := result["soak"]:
        early, late = soak["megabytes_early"], soak["megabytes_late"]
        lines += [
            "",
            f"Memory with {soak['requests']} requests: {early:.0f} MB after a tenth, {late:.0f} MB at the end.",
        ]
    return "\n".join([*lines, "", f"{where(result)}; `{result['command']}`."])


if __name__ == "__main__":
    main()
