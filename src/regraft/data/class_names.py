"""Names of classes: which ones can be told apart by readers, file systems and programs alike."""

import shlex
import unicodedata
from collections.abc import Iterable, Mapping

from regraft.core.errors import DataError


def refuse_twins(place: object, kind: str, names: Iterable[str], lines: Mapping[str, int] | None = None) -> None:
    """Refuse names that a reader, or another file system, would take for the same name.

    Args:
        place: Folder or list that has them, for the message.
        kind: What they are called: "folders" or "classes".
        names: The names.
        lines: The line of a list where each stands first.

    Raises:
        DataError: Two of them differ only in case, in blanks or in how letters are encoded.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(" ".join(unicodedata.normalize("NFC", name).casefold().split()), name)
        if other != name:
            where = f" in lines {lines[other]} and {lines[name]}" if lines else ""
            raise DataError(
                f"{place} has the {kind} {other!r} and {name!r}{where}, which differ in case, in blanks or in how "
                "letters are encoded alone, so they could be one class or two. Merge them, or rename one."
            )


def refuse_unwritable(place: object, names: Iterable[str]) -> None:
    """Refuse names that are no text, such as those of folders that were named in Latin-1.

    A model hands its class names to programs and browsers, which take UTF-8 and nothing else.

    Args:
        place: Folder or list that has them, for the message.
        names: The names.

    Raises:
        DataError: One has bytes that are not UTF-8.
    """
    for name in names:
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            guess = name.encode("utf-8", "surrogateescape").decode("latin-1") if _is_bytes(name) else ""
            hint = (
                f", as {guess!r} if that is Latin-1 (convmv -f latin1 -t utf8 -r --notest {shlex.quote(str(place))})"
                if guess
                else ""
            )
            raise DataError(
                f"{place} has a class whose name is not UTF-8: {name!r}. Expected text that every program can read. "
                f"Rename it{hint}."
            )


def _is_bytes(name: str) -> bool:
    """Whether the name is that of a file: bytes that are no UTF-8, as Python has them in text."""
    return not any("\ud800" <= letter <= "\udc7f" or "\udd00" <= letter <= "\udfff" for letter in name)
