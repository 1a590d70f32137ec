"""The page of `regraft similar`: a photo, and those that look most like it."""

from collections.abc import Sequence
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data.decode import Unreadable
from regraft.data.scan import map_photos
from regraft.data.sources import read_bytes
from regraft.reporting.html_report import CARD, thumb
from regraft.reporting.page import render


def similar_html(photo: str, neighbours: Sequence[tuple[str, float, bool]], network: str) -> str:
    """Write the page.

    Args:
        photo: Path of the photo that was asked about.
        neighbours: Path of each photo that looks like it, the similarity, -1..1, and whether it is the same file again.
        network: Name of what saw them.
    """
    pictures = list(
        map_photos(lambda i: _picture([photo, *(row[0] for row in neighbours)][i]), len(neighbours) + 1, lambda _: None)
    )
    rows = [
        {"path": path, "similarity": similarity, "is_same": is_same, "thumb": picture}
        for (path, similarity, is_same), picture in zip(neighbours, pictures[1:], strict=True)
    ]
    title = f"Photos like {Path(photo).name}"
    return render(
        "similar.html", title=title, photo={"path": photo, "thumb": pictures[0]}, neighbours=rows, network=network
    )


def _picture(path: str) -> str:
    """Return a small picture; "" for a photo that is gone."""
    try:
        return thumb(read_bytes(Path(path)), CARD)
    except (OSError, Unreadable, DataError):
        return ""
