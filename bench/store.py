"""Photos in an object store beside the same photos in a folder, and what becomes of them when the store fails.

    pip install 'moto[server]'
    python bench/store.py [--photos 2000] [--rounds 3] [--rclone PROGRAM]

The store runs on this machine, in a process of its own: `rclone serve s3` where the program is named, whose share of
the cores is small as that of a real store is, else moto, which takes several milliseconds of them for an object.
`regraft train --mode frozen` runs as a whole process on the folder and on the store in turn, each time from nothing but
the backbone's graph; of several rounds the fastest counts, and the processor's time in regraft's process, which is
without the store's own.
Then once with moto of which every twentieth answer fails, by a status or by hanging up, and which is killed
and started anew when it has given half of the photos: every photo must have arrived once. Writes
bench/results/store.json.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limits import timed, versions
from record import HERE, machine, real_or_drawn
from regraft.data.remote import copy_of
from regraft.data.scan import list_photos

BUCKET, FAILING = "photos", 20


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rclone", metavar="PROGRAM")
    parser.add_argument("--serve", nargs=3, metavar=("PORT", "FOLDER", "FAILING"), help="be the store")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(int(arguments.serve[0]), Path(arguments.serve[1]), int(arguments.serve[2]))
        return
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        scratch = Path(folder)
        os.environ |= {"REGRAFT_CACHE": str(scratch / "cache"), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        photos = versions(real_or_drawn("hymenoptera", scratch), scratch / "photos", arguments.photos)
        with store(photos, arguments.rclone) as port:
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            rounds = speeds(photos, scratch, arguments.rounds)
        survived = restarted(photos, scratch / "cache", port)
    server = "rclone serve s3" if arguments.rclone else "moto"
    result = {"command": "python bench/store.py", **machine(), "num_photos": arguments.photos, "server": server}
    result |= {"rounds": rounds}
    least = {name: {kind: min(one[kind] for one in rounds[name]) for kind in rounds[name][0]} for name in rounds}
    result |= {"of_folder": {kind: least["folder"][kind] / least["store"][kind] for kind in least["store"]}}
    result |= {"failing": survived}
    (HERE / "results" / "store.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"of_folder": result["of_folder"], "failing": survived, "rounds": rounds}, indent=1))


def speeds(photos: Path, scratch: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Seconds of whole trainings, and of the processor in them."""
    found: dict[str, list[dict[str, float]]] = {"folder": [], "store": []}
    trained(photos, scratch)  # what is made once
    for _ in range(rounds):
        for name, place in (("folder", photos), ("store", f"s3://{BUCKET}")):
            found[name].append(trained(place, scratch))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    return found


def trained(place: str | Path, scratch: Path) -> dict[str, float]:
    """A training on photos whose features are not known."""
    for kind in ("features", "remote"):
        shutil.rmtree(scratch / "cache" / kind, ignore_errors=True)
    shutil.rmtree(scratch / "run", ignore_errors=True)
    words = ["train", str(place), "--mode", "frozen", "--no-report", "--quiet", "--out", str(scratch / "run")]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "regraft", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, status
    return {"seconds": time.perf_counter() - began, "processor": used.ru_utime + used.ru_stime}


def restarted(photos: Path, cache: Path, port: int) -> dict[str, float]:
    """Copy from a store that fails and is killed once; what has arrived is compared file by file."""
    shutil.rmtree(cache / "remote", ignore_errors=True)
    copy, ended = copy_of(Path(f"s3://{BUCKET}")), threading.Event()
    paths = sorted(path.relative_to(photos) for path in photos.rglob("*.jpg"))
    failing = [sys.executable, __file__, "--serve", port, photos, FAILING]
    running = [_start(failing, port)]

    def kill() -> None:
        while not ended.is_set() and sum(1 for _ in copy.rglob("*.jpg")) < len(paths) / 2:
            time.sleep(0.02)
        running[0].kill()
        running[0].wait()
        running.append(_start(failing, port))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        took = timed(lambda: list_photos(f"s3://{BUCKET}"))
    finally:
        ended.set()
        killer.join()
        for one in running:
            one.kill()
            one.wait()
    arrived = sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    differing = [path for path in arrived if (copy / path).read_bytes() != (photos / path).read_bytes()]
    assert arrived == paths, (len(arrived), len(paths))
    assert not differing, differing[:3]
    return {"num_photos": len(arrived), "seconds": took, "fails_one_of": FAILING, "starts": len(running)}


@contextmanager
def store(photos: Path, rclone: str | None) -> Iterator[int]:
    """Provide a store that holds the photos of a folder, on this port, while the block lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = [sys.executable, __file__, "--serve", port, photos, 0]
    other = [rclone, "serve", "s3", "--quiet", "--addr", f"127.0.0.1:{port}", photos.parent]
    process = _start(other if rclone else own, port)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def _start(command: list[object], port: int) -> subprocess.Popen[bytes]:
    """Start a store, and wait until it is there."""
    process = subprocess.Popen([*map(str, command)])
    while process.poll() is None:
        with socket.socket() as there:
            if not there.connect_ex(("127.0.0.1", port)):
                return process
        time.sleep(0.05)
    raise SystemExit("the store did not start; moto[server] has to be installed, or rclone named")


def serve(port: int, photos: Path, failing: int) -> None:
    """Be a store; one of `failing` objects asked for is answered by a failure."""
    import logging

    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    backend = s3_backends["123456789012"]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    for path in sorted(photos.rglob("*.jpg")):
        backend.put_object(BUCKET, path.relative_to(photos).as_posix(), path.read_bytes())
    inner, asked = DomainDispatcherApplication(create_backend_app), iter(range(1, 10**9))

    def answer(environ: dict, start: object) -> object:
        number = next(asked) if failing and environ["PATH_INFO"].endswith(".jpg") else 1
        if failing and number % (2 * failing) == 0:
            raise ConnectionAbortedError
        if failing and number % failing == 0:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return inner(environ, start)

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    run_simple("127.0.0.1", port, answer, threaded=True)


if __name__ == "__main__":
    main()
