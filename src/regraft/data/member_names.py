"""Names in an archive: which ones are read, as what path, and why others never are."""

import re
from collections.abc import Iterable
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data.decode import MAX_BYTES

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
MAX_MEMBERS = 4_000_000
MOST_PACKED = 100  # bytes that one packed byte may become, beyond FREE_BYTES: photos are hardly packed at all
FREE_BYTES = 2**24
LONGEST = 4096  # characters of a name


def normal(name: str) -> str:
    """Return a member's path as it is told from others: `a/1.jpg` for `./a//1.jpg`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def why_not_named(name: str) -> str | None:
    """Return why a member of such a name is not read; None for one that may be.

    Args:
        name: As the archive has it.
    """
    if name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name):
        return "an absolute path in an archive"
    if ".." in name.split("/"):
        return "a path that leads out of the archive"
    if len(name) > LONGEST or "\0" in name:
        return "a name that no file can have"
    return "an archive in an archive; unpack it first" if name.lower().endswith(ARCHIVES) else None


def why_not_sized(size: int, packed: int) -> str | None:
    """Return why a member of such a size is not read; None for one that may be.

    Args:
        size: Bytes that it says it has.
        packed: Bytes that it has in the archive.
    """
    if size > MAX_BYTES:
        return f"larger than {MAX_BYTES // 2**20} MB"
    if is_bomb(size, packed):
        return f"a decompression bomb: {packed} bytes that become {size}"
    return None


def is_bomb(size: int, packed: int) -> bool:
    """Return whether `packed` bytes become more than any photos do."""
    return size > FREE_BYTES + MOST_PACKED * packed


def refuse_twice(archive: Path, names: Iterable[str]) -> None:
    """Refuse an archive that has two members of one name, and one of too many members.

    Raises:
        DataError: Names the archive and the member.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{archive} has {name} twice. Expected one. Pack it again from a folder.")
        seen.add(name)
        if len(seen) > MAX_MEMBERS:
            raise DataError(f"{archive} has more than {MAX_MEMBERS} members. Divide it.")
