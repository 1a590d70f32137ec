"""Put on PYTHONPATH of processes that tests start: no sockets but local ones, and no packages that are forbidden.

REGRAFT_TEST_FORBID: names of packages, separated by commas, that raise on import.
REGRAFT_TEST_WATCH: a file into which goes, a line each, what the process opens, connects to and starts.
"""

import json
import os
import socket
import sys
from importlib.abc import MetaPathFinder

_connect = socket.socket.connect


def _local_only(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise RuntimeError(f"a test tried to reach {address}")
    return _connect(self, address)


class _Forbidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ.get("REGRAFT_TEST_FORBID", "").split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return


socket.socket.connect = _local_only
sys.meta_path.insert(0, _Forbidden())

WATCHED = ("open", "os.", "shutil.", "socket.connect", "socket.getaddrinfo", "subprocess.", "tempfile.", "urllib.")


def watch(path):
    """Note from now on."""
    notes = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event, arguments):
        if event.startswith(WATCHED):
            os.write(notes, (json.dumps([event, *map(str, arguments)]) + "\n").encode())

    sys.addaudithook(note)


if os.environ.get("REGRAFT_TEST_WATCH"):
    watch(os.environ["REGRAFT_TEST_WATCH"])
