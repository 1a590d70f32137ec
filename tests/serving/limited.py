"""A server with limits of a test's own: `limited.py BUNDLE OPTIONS`, JSON: limits, token, and the file to note into.

Into that file goes, a line each, what this process and its workers open, connect to and start once they serve.
"""

import json
import os
import sys
from pathlib import Path

OPTIONS = json.loads(sys.argv[2])
WATCHED = ("open", "os.", "shutil.", "socket.connect", "socket.getaddrinfo", "subprocess.", "tempfile.", "urllib.")


def watch(path: str) -> None:
    """Note from now on."""
    notes = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(WATCHED):
            os.write(notes, (json.dumps([event, *map(str, arguments)]) + "\n").encode())

    sys.addaudithook(note)


if OPTIONS.get("notes"):
    watch(OPTIONS["notes"])  # in the workers too: they begin by running this file

if __name__ == "__main__":
    from regraft.bundle.bundle import load
    from regraft.core import signals
    from regraft.serving.limits import Limits
    from regraft.serving.server import serve

    signals.install()
    serve(
        load(Path(sys.argv[1])),
        port=0,
        token=OPTIONS.get("token"),
        limits=Limits(**OPTIONS.get("limits", {})),
        on_ready=lambda address: print(f"serving at {address}", file=sys.stderr, flush=True),
    )
