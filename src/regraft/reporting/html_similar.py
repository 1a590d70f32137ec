"""The page of `regraft similar`: a photo, and those that look most like it."""

from collections.abc import Sequence
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data.decode import Unreadable
from regraft.data.scan import map_photos
from regraft.data.sources import read_bytes
from regraft.reporting.html_report import CARD, thumb
from regraft.reporting.page import render


def similar_html(photo: str, file: Path, neighbours: Sequence[tuple[str, Path, float, bool]], network: str) -> str:
    """Write the page.

    Args:
        photo: Name of the photo that was asked about.
        file: Where it is read.
        neighbours: Name of each photo that looks like it, where it is read, the similarity, -1..1, and whether it is
            the same file again.
        network: Name of what saw them.
    """
    files = [file, *(row[1] for row in neighbours)]
    pictures = list(map_photos(lambda i: _picture(files[i]), len(files), lambda _: None))
    rows = [
        {"path": path, "similarity": similarity, "is_same": is_same, "thumb": picture}
        for (path, _, similarity, is_same), picture in zip(neighbours, pictures[1:], strict=True)
    ]
    title = f"Photos like {Path(photo).name}"
    return render(
        "similar.html", title=title, photo={"path": photo, "thumb": pictures[0]}, neighbours=rows, network=network
    )


def _picture(file: Path) -> str:
    """Return a small picture; "" for a photo that is gone."""
    try:
        return thumb(read_bytes(file), CARD)
    except (OSError, Unreadable, DataError):
        return ""
