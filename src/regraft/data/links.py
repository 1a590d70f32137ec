"""Links among photos: which ones are followed, and why the others are not.

Unless the user asks for links to be followed, none may lead out of the data set. If they are, a link may lead anywhere,
except in a circle: to a folder around itself or around the data set, or to one that is read already. No folder is read
twice.
"""

import os
import stat
from pathlib import Path

from regraft.data.sources import FolderEntry

LEADS_OUT = "a link that leads out of the data folder"
AROUND = "a link to a folder around it"


def why_not_followed(path: Path, root: Path, *, anywhere: bool = False) -> str | None:
    """Return why a link is not followed.

    Args:
        path: A file or folder, link or not.
        root: Of the data set.
        anywhere: Whether it may lead out of `root`.

    Returns:
        The reason; None for a link that is followed, or for no link.
    """
    if not path.is_symlink():
        return None
    target, place = path.resolve(), root.resolve()
    if not anywhere and not target.is_relative_to(place):
        return LEADS_OUT
    return AROUND if path.parent.resolve().is_relative_to(target) or place.is_relative_to(target) else None


def why_not_entered(path: Path, root: Path, walked: set[tuple[int, int]], *, anywhere: bool = False) -> str | None:
    """Return why a folder is not read.

    Args:
        path: The folder, or a link to one.
        root: Of the data set.
        walked: Device and inode of the folders that were read; this one's are added if it is to be read.
        anywhere: Whether links may lead out of `root`.

    Returns:
        The reason; None for a folder that is to be read.
    """
    try:
        identity = identity_of(path)
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    if reason := why_not_followed(path, root, anywhere=anywhere):
        return reason
    if anywhere and identity in walked:
        return "a folder that is read already, by a link or under another name"
    walked.add(identity)
    return None


def why_not_regular(entry: FolderEntry, root: Path, *, anywhere: bool = False) -> str | None:
    """Return why something beside photos is not opened: a pipe would hang its reader, and a link may lead anywhere.

    Args:
        entry: The file, link or whatever it is.
        root: Of the data set.
        anywhere: Whether links may lead out of `root`.

    Returns:
        The reason; None for a file that may be opened.
    """
    if entry.is_file(follow_symlinks=False):
        return None
    try:
        mode = entry.stat(follow_symlinks=True).st_mode
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    if reason := why_not_followed(Path(entry.path), root, anywhere=anywhere):
        return reason
    return None if stat.S_ISREG(mode) else "not a regular file"


def identity_of(path: Path) -> tuple[int, int]:
    """Return the device and inode of what a path leads to.

    Raises:
        OSError: It leads to nothing that can be looked at.
    """
    status = os.stat(path)  # noqa: PTH116
    return status.st_dev, status.st_ino


def note_on_links(what: str, paths: list[str]) -> list[str]:
    """Return a sentence about links that were not followed; [] where there are none.

    Args:
        what: What is with them, such as "lead out of photos".
        paths: Of the links.
    """
    return [f"{len(paths)} links {what}, such as {paths[0]}; --follow-links follows them"] if paths else []
