"""Which folder names the class, where class folders hold folders; what can be meant in two ways is refused."""

from collections.abc import Collection, Iterable
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data.split_names import is_container

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


def without_containers(labels: Collection[str]) -> str:
    """Find what all classes end in and no reader would call a part of a class, as `/images`.

    Args:
        labels: Folders below the class folders' folder that hold photos, as `birds/images`.

    Returns:
        The common end with its slash; "" where there is none.
    """
    tails = {label.rpartition("/")[2] for label in labels if "/" in label}
    is_one = len(tails) == 1 and all("/" in label for label in labels)
    return f"/{min(tails)}" if is_one and is_container(min(tails)) else ""


def refuse_two_readings(folder: Path, labels: Collection[str]) -> None:
    """Refuse folders in folders that could be classes as well as something else.

    Args:
        folder: Where the class folders are.
        labels: The folders below it that hold photos, as `birds/owl`.

    Raises:
        DataError: All hold folders of the same names, as splits and domains do; or most of the inner folders are
            numbered, as patients and videos are.
    """
    nested = sorted(label.split("/") for label in labels if "/" in label)
    if not nested:
        return
    top, leaf = nested[0][0], nested[0][-1]
    tops = sorted({label.split("/")[0] for label in labels})
    shared = frozenset.intersection(*(_names_in(labels, one) for one in tops))
    reading = _levels(top, leaf, "/".join(nested[0]))
    if len(tops) > 1 and len(shared) >= ALIKE:
        raise DataError(
            f"{_some(tops)} in {folder} all hold {_some(sorted(shared))}, so they could be splits or sources of one "
            "data set, or classes. If they are splits, call them train, val and test. Else name one reading: "
            f"{reading}."
        )
    for depth in range(1, max(map(len, nested))):
        inner = {parts[depth] for parts in nested if len(parts) > depth}
        if 2 * sum(map(_may_be_a_group, inner)) > len(inner):
            raise DataError(
                f"{folder} has folders in its class folders ({_some(sorted(inner))}), which could be classes, or what "
                f"photos belong with, such as patients. Expected to know which. Name one reading: {reading}. Patients "
                "and the like are kept on one side of a split by --group-by."
            )


def reading_note(folder: Path, labels: Collection[str]) -> list[str]:
    """Return a sentence about folders in folders that are read as classes of their own; [] where there are none.

    Args:
        folder: Where the class folders are.
        labels: The folders below it that hold photos, as `birds/owl`.
    """
    nested = min((label for label in labels if "/" in label), default=None)
    if nested is None:
        return []
    return [
        f"folders in the class folders of {folder} are classes of their own, such as {nested!r}; "
        "--class-level top or leaf names them by one folder"
    ]


def _names_in(labels: Collection[str], top: str) -> frozenset[str]:
    """Names of the folders in a class folder; where there is one alone, of those in it."""
    below = [label.split("/")[1:] for label in labels if label.startswith(f"{top}/")]
    while below and len({parts[0] for parts in below if parts}) == 1 and all(len(parts) > 1 for parts in below):
        below = [parts[1:] for parts in below]
    return frozenset(parts[0] for parts in below if parts)


def _may_be_a_group(name: str) -> bool:
    """Whether a folder's name is more like that of a patient or a video than like that of a class."""
    return any(letter.isdigit() for letter in name) or name.lower().startswith(GROUPS)


def _levels(top: str, leaf: str, path: str) -> str:
    return f"--class-level top (the class is {top!r}), --class-level leaf ({leaf!r}) or --class-level path ({path!r})"


def _some(names: Iterable[str], count: int = 3) -> str:
    """List the first of some names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")
