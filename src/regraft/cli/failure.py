"""How a command ends that has done its work, and found that something is wrong."""

import sys
from typing import NoReturn

from regraft.core.progress import talk


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, and exit.

    Args:
        message: One line, without an end.
        code: Of the process.
    """
    talk(message)
    sys.exit(code)
