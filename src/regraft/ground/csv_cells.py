"""Text in the cells of a CSV file, and back: what is written here is read as the same text.

A cell that a spreadsheet would take for a formula, or whose blanks at the ends would be lost, begins with an
apostrophe. One with line breaks, control characters, or bytes of a file name that are no UTF-8 begins with an
apostrophe and a backslash, and has them as Python's escapes: so no cell needs more than one line.
"""

import re

_MARKED = ("=", "+", "-", "@", "'")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_ESCAPED = "'\\"


def to_cell(text: str) -> str:
    """Text as a cell.

    Args:
        text: Any text, such as a class name or a path.

    Returns:
        What stands in the cell; `from_cell` gives the text back.
    """
    if _UNPRINTABLE.search(text) or (_is_marked(text) and text.startswith("\\")):
        return _ESCAPED + text.encode("unicode_escape").decode("ascii")
    return f"'{text}" if _is_marked(text) else text


def from_cell(cell: str) -> str:
    """The text of a cell, whether `to_cell` or a person wrote it; blanks around it are not part of it.

    Args:
        cell: What stands in the cell.

    Returns:
        The text.
    """
    if cell.startswith(_ESCAPED):
        try:
            return cell[len(_ESCAPED) :].encode("ascii").decode("unicode_escape")
        except UnicodeError:
            return cell.strip()
    if cell.startswith("'") and _is_marked(cell[1:]):
        return cell[1:]
    return cell.strip()


def _is_marked(text: str) -> bool:
    """Whether a spreadsheet, or a reader of lists, would take the text for something else."""
    return text.startswith(_MARKED) or text != text.strip()
