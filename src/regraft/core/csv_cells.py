"""Text in the cells of a CSV file, and back: what is written here is read as the same text.

A cell that a spreadsheet would take for a formula, or whose blanks at the ends would be lost, begins with an
apostrophe. One with line breaks, control characters, or bytes of a file name that are no UTF-8 begins with an
apostrophe and a backslash, and has them as Python's escapes: so no cell needs more than one line.
"""

import re

_MARKED = ("=", "+", "-", "@", "'")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
_ESCAPED = "'\\"
_ESCAPES = re.compile(r"(?:[^\\]|\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4}))*", re.ASCII)


def to_cell(text: str) -> str:
    """Write text as a cell.

    Args:
        text: Any text, such as a class name or a path.

    Returns:
        What stands in the cell; `from_cell` gives the text back.
    """
    if _UNPRINTABLE.search(text) or (_is_marked(text) and text.startswith("\\")):
        return _ESCAPED + text.encode("unicode_escape").decode("ascii")
    return f"'{text}" if _is_marked(text) else text


def from_cell(cell: str) -> str:
    """Read the text of a cell, whether `to_cell` or a person wrote it.

    Args:
        cell: What stands in the cell.

    Returns:
        The text. Blanks around it are not part of it, unless `to_cell` marked the cell with an apostrophe.
    """
    escaped = cell.removeprefix(_ESCAPED)
    if escaped != cell and escaped.isascii() and _ESCAPES.fullmatch(escaped):
        return escaped.encode("ascii").decode("unicode_escape")
    if cell.startswith("'") and _is_marked(cell[1:]):
        return cell[1:]
    return cell.strip()


def _is_marked(text: str) -> bool:
    """Whether a spreadsheet, or a reader of lists, would take the text for something else."""
    return text.startswith(_MARKED) or text != text.strip()
