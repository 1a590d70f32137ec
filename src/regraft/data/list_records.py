"""The rows of a list, as programs write them: CSV by commas, semicolons or tabs, or JSON lines; UTF-8 or UTF-16."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from regraft.core.csv_cells import from_cell
from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.decode import Unreadable

MAX_BYTES = 2**30
COLUMNS = ("path", "label", "split")
DELIMITERS = (",", ";", "\t")
UTF16 = (b"\xff\xfe", b"\xfe\xff")

Record = tuple[int, dict[str, str]]  # the line where it begins, from 1, and its values by column


class Dialect(NamedTuple):
    """How a CSV file is written.

    Attributes:
        delimiter: What parts the columns.
        names: Of the columns, in small letters.
        num_before: Lines before that of the names: Excel's `sep=;`.
    """

    delimiter: str
    names: list[str]
    num_before: int = 0


def records(file: Path) -> Iterator[Record]:
    """Read every row of a list with its values as text; what is no text is left out.

    Args:
        file: A CSV or JSON-lines file, by the ending of its name.

    Raises:
        DataError: It cannot be read, or a row could be read in more than one way; its line is named.
    """
    return _READERS[file.suffix.lower()](file, read_list_text(file))


def read_list_text(file: Path) -> str:
    """Read a list, which may lie in an archive.

    Raises:
        DataError: It cannot be read, is too long, or is neither UTF-8 nor UTF-16 with a byte order mark.
    """
    try:
        if file.is_file() and (size := file.stat().st_size) > MAX_BYTES:
            raise DataError(f"{file} has {size} bytes. Expected a list of at most {MAX_BYTES}. Divide it.")
        data = sources.read_bytes(file) if sources.is_in_source(file) else file.read_bytes()
        return data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except Unreadable as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not {error.encoding.upper()} at byte {error.start}. Save it as UTF-8.") from error


def dialect(file: Path, text: str) -> Dialect:
    """Find how a CSV file is written, in its first line, or its second where the first is Excel's `sep=;`.

    Args:
        file: The list.
        text: What it says.

    Raises:
        DataError: Two columns have one of the names that regraft knows, or the line is no CSV.
    """
    lines = io.StringIO(text, newline=None)
    first, num_before = lines.readline(), 0
    delimiters: tuple[str, ...] = DELIMITERS
    if first.lower().startswith("sep=") and len(first.rstrip("\n")) == 5:
        delimiters, first, num_before = (first[4],), lines.readline(), 1
    best = Dialect(delimiters[0], [], num_before)
    for delimiter in delimiters:
        try:
            cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error as error:
            raise DataError(f"{file} is no CSV in line {1 + num_before}: {error}.") from error
        names = [from_cell(cell).lower() for cell in cells]
        if twice := [name for name in COLUMNS if names.count(name) > 1]:
            count, line = names.count(twice[0]), 1 + num_before
            raise DataError(f"{file} has {count} columns {twice[0]} in line {line}. Expected one. Remove one.")
        if {"path", "label"} <= set(names):
            return Dialect(delimiter, names, num_before)
        if len(names) > len(best.names):
            best = Dialect(delimiter, names, num_before)
    return best


def column_names(file: Path) -> list[str]:
    """List the columns of a CSV file in small letters, or the keys of the first line of JSON lines.

    Raises:
        DataError: As for `records`.
    """
    if _READERS[file.suffix.lower()] is _rows_of_csv:
        return dialect(file, read_list_text(file)).names
    return next(([*values] for _, values in records(file)), [])


def _rows_of_csv(file: Path, text: str) -> Iterator[Record]:
    delimiter, names, num_before = dialect(file, text)
    stream = io.StringIO(text, newline="")
    for _ in range(num_before):
        stream.readline()
    reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1 + num_before
    try:
        for cells in reader:
            last = reader.line_num + num_before
            if cells and line > 1 + num_before:
                _check_cells(file, line, last, cells, names)
                yield line, {name: from_cell(cell) for name, cell in zip(names, cells, strict=False)}
            line = last + 1
    except csv.Error as error:
        raise DataError(
            f"{file} is no CSV in line {line}: {error}. Perhaps a quote is opened there that does not end; within "
            "quotes, a quote is written twice."
        ) from error


def _check_cells(file: Path, line: int, last: int, cells: list[str], names: list[str]) -> None:
    """Raise DataError for a row that its writer meant otherwise."""
    if last > line:
        raise DataError(
            f"{file} has a quote in line {line} that ends in line {last} only, and so hides the lines between. "
            "Expected one line for each photo. Remove the quote."
        )
    if len(cells) > len(names):
        example = ",".join(cells[len(names) - 1 :])
        raise DataError(
            f"{file} has {len(cells)} fields in line {line}, but {len(names)} columns in line 1. Text with what parts "
            f'the columns has to stand in quotes, such as "{example}".'
        )


def _rows_of_json_lines(file: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values = json.loads(line, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file} has no JSON object in line {number}: {error}.") from error
            given = values if isinstance(values, dict) else {}
            yield number, {name.lower(): text for name, value in given.items() if (text := _as_text(value))}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a JSON object. Raises ValueError where a key stands there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _as_text(value: object) -> str:
    """Return text and whole numbers as text, "" for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


_READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
    ".jsonl": _rows_of_json_lines,
    ".ndjson": _rows_of_json_lines,
}
