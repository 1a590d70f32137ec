"""Where a run goes: the folder that the user names, or one below `runs` that holds no run on other photos."""

import re
from collections.abc import Iterable
from pathlib import Path

from regraft.core.errors import OutputError
from regraft.core.progress import QUIET, Progress
from regraft.data.remote import absolute, shown
from regraft.run_dir import RESULT, read_summary


def place(folder: Path, out: str | Path | None, name: str = "", progress: Progress = QUIET) -> Path:
    """Choose the folder of a run.

    Args:
        folder: The photos: a folder or a list.
        out: What the user chose; None for a folder below `runs`, named after the photos. Where that holds a run on
            other photos, a number is added: `runs/photos-2`.
        name: Of the folder below `runs`; "" for the photos' own.
        progress: Where it is said that a folder holds another run.

    Raises:
        OutputError: The folder lies among the photos.
    """
    chosen = Path(out) if out else _free(Path("runs") / (name or run_name(folder)), folder, progress)
    if chosen.resolve().is_relative_to(absolute(folder)):
        raise OutputError(
            f"{chosen} lies inside the photos' folder {folder}, where it would be taken for a class. "
            "Choose another place with --out."
        )
    return chosen


def run_name(photos: Path) -> str:
    """Return what a run on photos is called: the name of their folder, or of their archive or list without its ending.

    Args:
        photos: A folder, an archive, a list, or a pattern of them.
    """
    place = absolute(photos)
    name = place.name if place.is_dir() else place.name.partition(".")[0]
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or place.parent.name or "photos"


def _free(first: Path, folder: Path, progress: Progress) -> Path:
    """Return the first of `photos`, `photos-2`, ... that holds no run on other photos."""
    number, place = 1, first
    while others := [other for other in _trained_on(place) if not _is_same(other, folder)]:
        number, taken = number + 1, place
        place = first.with_name(f"{first.name}-{number}")
        progress.say(f"{taken} holds a run on {others[0]}; this one goes to {place}")
    return place


def _trained_on(place: Path) -> Iterable[str]:
    """Yield the photos of the run in a folder, or of the runs that were compared in it."""
    trained_on = (read_summary(one.parent).get("photos") for one in (place / RESULT, *place.glob(f"*/{RESULT}")))
    return (photos for photos in trained_on if photos)


def _is_same(recorded: str, folder: Path) -> bool:
    """Return whether both are one folder, by whatever path."""
    if recorded == shown(folder):
        return True
    try:
        return folder.samefile(recorded)
    except (OSError, ValueError):
        return False
