"""A server with limits of a test's own: `limited.py BUNDLE OPTIONS`.

OPTIONS, JSON. limits: of the server.  token: wanted.  clock: whether the time of day jumps to and fro.
is_full: whether no file can be written once it serves.
"""

import json
import random
import resource
import sys
import time
from pathlib import Path

from regraft.bundle.bundle import load
from regraft.core import signals
from regraft.serving.access import Access
from regraft.serving.limits import Limits
from regraft.serving.server import serve

OPTIONS = json.loads(sys.argv[2])


def ready(address: str) -> None:
    print(f"serving at {address}", file=sys.stderr, flush=True)
    if OPTIONS.get("clock"):
        rng, begin = random.Random(0), time.time()
        time.time = lambda: begin + rng.uniform(-1e9, 1e9)
    if OPTIONS.get("is_full"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


signals.install()
serve(
    load(Path(sys.argv[1])),
    port=0,
    access=Access(token=OPTIONS.get("token")),
    limits=Limits(**OPTIONS.get("limits", {})),
    on_ready=ready,
)
