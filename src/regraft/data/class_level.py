"""Which folder names the class, where class folders hold folders: what can be meant in two ways is refused."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from regraft.ground.errors import DataError

ALIKE = 2  # names that folders have to share to look like parts of one data set
GROUPS = (
    "patient",
    "case",
    "subject",
    "person",
    "user",
    "session",
    "video",
    "clip",
    "scene",
    "series",
    "study",
    "visit",
)


def refuse_two_readings(folder: Path, inner: Mapping[str, frozenset[str]]) -> None:
    """Refuse folders in folders that could be classes as well as something else.

    Args:
        folder: Where the class folders are.
        inner: For each of them, the names of the folders in it.

    Raises:
        DataError: All hold folders of the same names, as splits and domains do; or most of the inner folders are
            numbered, as patients and videos are.
    """
    names = sorted({name for own in inner.values() for name in own})
    if not names:
        return
    top = next(name for name, own in inner.items() if own)
    leaf = min(inner[top])
    shared = frozenset.intersection(*inner.values())
    if len(inner) > 1 and len(shared) >= ALIKE:
        raise DataError(
            f"{_some(inner)} in {folder} all hold {_some(sorted(shared))}, so they could be splits or sources of one "
            f"data set, or classes. If they are splits, call them train, val and test. Else name one reading: "
            f"{_levels(top, leaf)}."
        )
    if 2 * sum(map(_may_be_a_group, names)) > len(names):
        raise DataError(
            f"{folder / top} holds folders ({_some(sorted(inner[top]))}), which could be classes, or what photos "
            f"belong with, such as patients. Expected to know which. Name one reading: {_levels(top, leaf)}. "
            "Patients and the like are kept on one side of a split by --group-by."
        )


def reading_note(folder: Path, inner: Mapping[str, frozenset[str]]) -> str | None:
    """A sentence about folders in folders that are read as classes of their own; None where there are none."""
    top = next((name for name, own in inner.items() if own), None)
    if top is None:
        return None
    return (
        f"folders in the class folders of {folder} are classes of their own, such as {top + '/' + min(inner[top])!r}; "
        "--class-level top or leaf names them by one folder"
    )


def _may_be_a_group(name: str) -> bool:
    """Whether a folder's name is more like that of a patient or a video than like that of a class."""
    return any(letter.isdigit() for letter in name) or name.lower().startswith(GROUPS)


def _levels(top: str, leaf: str) -> str:
    return (
        f"--class-level top (the class is {top!r}), --class-level leaf ({leaf!r}) or --class-level path "
        f"({top + '/' + leaf!r})"
    )


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first of some names."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
