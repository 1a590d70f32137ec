"""Put on PYTHONPATH of processes that tests start: no sockets but local ones, and no packages that are forbidden.

REGRAFT_TEST_FORBID: names of packages, separated by commas, that raise on import.
"""

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
