"""Links among photos: which ones are followed, and why the others are not.

Unless links are followed by wish, none leads out of the data set. With them, a link may lead anywhere, except in a
circle: to a folder around itself or around the data set, or to one that is read already. No folder is read twice.
"""

import os
from pathlib import Path

LEADS_OUT = "a link that leads out of the data folder"
AROUND = "a link to a folder around it"


def why_not_followed(path: Path, root: Path, *, anywhere: bool = False) -> str | None:
    """Why a link is not followed.

    Args:
        path: A file or folder, link or not.
        root: Of the data set.
        anywhere: Whether it may lead out of `root`.

    Returns:
        The reason, None for what is followed or no link.
    """
    if not path.is_symlink():
        return None
    target, place = path.resolve(), root.resolve()
    if not anywhere and not target.is_relative_to(place):
        return LEADS_OUT
    return AROUND if path.parent.resolve().is_relative_to(target) or place.is_relative_to(target) else None


def identity_of(path: Path) -> tuple[int, int]:
    """Device and inode of what a path leads to. Raises OSError."""
    found = os.stat(path)  # noqa: PTH116
    return found.st_dev, found.st_ino


def note_on_links(what: str, paths: list[str]) -> list[str]:
    """A sentence about links that were not followed, none where there are none.

    Args:
        what: What is with them, such as "lead out of photos".
        paths: Of the links.
    """
    return [f"{len(paths)} links {what}, such as {paths[0]}; --follow-links follows them"] if paths else []
