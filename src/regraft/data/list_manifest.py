"""A list of photos with their labels, as CSV or JSON lines, to labelled files.

    path,label,split                {"path": "a/1.jpg", "label": "ant", "split": "train"}
    a/1.jpg,ant,train

`split` may be left out of all rows. Paths are relative to the list's folder and stay inside it. Commas, semicolons or
tabs part the columns of a CSV file, as its first line says; what could be read in more than one way is refused with the
number of its line.
"""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from regraft.core.config import AS_FOUND, FolderOptions
from regraft.core.csv_cells import from_cell, to_cell
from regraft.core.errors import DataError
from regraft.data.class_names import refuse_twins
from regraft.data.folder_layout import SPLITS, Labelled, Listing, Quarantined, is_manifest
from regraft.data.links import LEADS_OUT, note_on_links
from regraft.data.split_names import split_of

MAX_BYTES = 2**30
COLUMNS = ("path", "label", "split")
DELIMITERS = (",", ";", "\t")
NOT_THERE = "the file does not exist"

Record = tuple[int, dict[str, str]]  # the line where it begins, from 1, and its values by column


@dataclass(frozen=True)
class ListRow:
    """One photo of a list.

    Attributes:
        line: Where it stands in the list, from 1.
        path: In its shortest form, `a/1.jpg` for `./a//1.jpg`.
        label: Name of its class.
        split: "train", "val" or "test"; "" where the list has none.
    """

    line: int
    path: str
    label: str
    split: str


def list_manifest(file: Path, options: FolderOptions = AS_FOUND) -> Listing:
    """List photos as a list says.

    Args:
        file: The list.
        options: Whether links are followed.

    Returns:
        Files with their labels and splits.

    Raises:
        DataError: The list cannot be read, or not in one way only, whose line is named; or no photo is where a path
            says.
    """
    rows = read_rows(file)
    listing = Listing(file.parent, splits=_splits(file, rows), options=options, list_file=file)
    seen: dict[str, ListRow] = {}
    missing: list[ListRow] = []
    for row in rows:
        first = seen.setdefault(row.path, row)
        if (first.label, first.split) != (row.label, row.split):
            raise DataError(
                f"{file} lists {row.path} twice: as {_words(first)} in line {first.line} and as {_words(row)} in line "
                f"{row.line}. Expected one. Remove one of the lines."
            )
        if first is not row:
            listing.notes.append(f"{file} lists {row.path} again in line {row.line}")
        elif reason := _why_not_used(file.parent, row.path, options):
            listing.quarantine.append(Quarantined(row.path, reason))
            missing += [row] if reason == NOT_THERE else []
        else:
            listing.files.append(Labelled(row.split, row.label, row.path))
    listing.notes += _missing_note(missing, bool(listing.files), listing)
    out = [q.path for q in listing.quarantine if q.reason == LEADS_OUT]
    listing.notes += note_on_links("lead out of the list's folder", out)
    return listing


def refuse_conflicts(listing: Listing) -> None:
    """Refuse lists that lie beside class folders and give a photo another class than its folder does.

    Args:
        listing: What was found below a folder.

    Raises:
        DataError: Names the list, the line and both classes.
    """
    labels = {one.path: one.label for one in listing.files}
    for file in listing.loose:
        try:
            rows = read_rows(file) if is_manifest(file) and file.parent == listing.root else []
        except DataError:
            continue  # a table of something else
        for row in rows:
            if labels.get(row.path, row.label) != row.label:
                raise DataError(
                    f"{file} says in line {row.line} that {row.path} is {row.label!r}, its folder that it is "
                    f"{labels[row.path]!r}. Remove {file.name}, or point regraft at it to follow it."
                )


def read_rows(file: Path) -> list[ListRow]:
    """Read the rows of a list.

    Args:
        file: A CSV or JSON-lines file in UTF-8.

    Returns:
        Every row.

    Raises:
        DataError: A row has no path or no label, or could be read in more than one way; its line is named.
    """
    rows = [_checked(file, line, values) for line, values in _records(file)]
    if not rows:
        raise DataError(f"{file} lists no photos. Expected lines with {', '.join(COLUMNS[:2])} and optionally split.")
    lines: dict[str, int] = {}
    for row in rows:
        lines.setdefault(row.label, row.line)
    refuse_twins(file, "classes", lines, lines)
    return rows


def without_others(file: Path, paths: Collection[str]) -> bytes:
    """Write a list with only some of its rows, for a copy of the photos in another folder.

    Args:
        file: The list.
        paths: Of the photos whose rows are kept, as in `ListRow.path`.

    Returns:
        The new list's bytes, in the same format and with the same columns.

    Raises:
        DataError: As for `read_rows`.
    """
    wanted = [row.path if row.path in paths else "" for row in read_rows(file)]
    text = _text_of(file)
    if file.suffix.lower() not in (".csv", ".tsv"):
        objects = [json.loads(line) for line in text.split("\n") if line.strip()]
        kept = [{**values, "path": path} for values, path in zip(objects, wanted, strict=True) if path]
        return "".join(json.dumps(values) + "\n" for values in kept).encode()
    (delimiter, names), buffer = _dialect(file, text), io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    for path, (_, values) in zip(wanted, _records(file), strict=True):
        if path:
            writer.writerow([to_cell({**values, "path": path}.get(name, "")) for name in names])
    return buffer.getvalue().encode()


def _text_of(file: Path) -> str:
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise DataError(f"{file} has {size} bytes. Expected a list of at most {MAX_BYTES}. Divide it.")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from error


def _records(file: Path) -> Iterator[Record]:
    """Every row with its values as text; what is no text is left out."""
    return READERS[file.suffix.lower()](file, _text_of(file))


def _dialect(file: Path, text: str) -> tuple[str, list[str]]:
    """Find what parts the columns, and their names in small letters, in the first line. Raises DataError."""
    first = io.StringIO(text, newline=None).readline()
    found: list[str] = []
    for delimiter in DELIMITERS:
        try:
            cells = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        except csv.Error as error:
            raise DataError(f"{file} is no CSV in line 1: {error}.") from error
        names = [from_cell(cell).lower() for cell in cells]
        found = found if len(found) > len(names) else names
        if twice := [name for name in COLUMNS if names.count(name) > 1]:
            raise DataError(
                f"{file} has {names.count(twice[0])} columns {twice[0]} in line 1. Expected one. Remove one."
            )
        if {"path", "label"} <= set(names):
            return delimiter, names
    columns = ", ".join(map(repr, found[:6])) or "nothing"
    raise DataError(f"{file} has no columns path and label in its first line. Found {columns}. Name them so.")


def _rows_of_csv(file: Path, text: str) -> Iterator[Record]:
    delimiter, names = _dialect(file, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells and line > 1:
                _check_cells(file, line, reader.line_num, cells, names)
                yield line, {name: from_cell(cell) for name, cell in zip(names, cells, strict=False)}
            line = reader.line_num + 1
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
            yield number, {name: text for name, value in given.items() if (text := _as_text(value))}


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs as a JSON object. Raises ValueError where a key stands there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
    ".jsonl": _rows_of_json_lines,
    ".ndjson": _rows_of_json_lines,
}


def _checked(file: Path, line: int, values: dict[str, str]) -> ListRow:
    path, label, split = (values.get(name, "") for name in COLUMNS)
    if not path.strip() or not label.strip() or "\0" in path:
        raise DataError(f"{file} has no {'label' if path.strip() else 'path'} in line {line}. Expected both. Add it.")
    meaning = split_of(split) if split.strip() else ""
    if meaning not in ("", *SPLITS):
        raise DataError(f"{file} has the split {split!r} in line {line}. Expected train, val or test.")
    return ListRow(line, _shortest(path, file.parent), unicodedata.normalize("NFC", label), meaning or "")


def _shortest(path: str, root: Path) -> str:
    """Return a path as it is told from others: relative where it is inside `root`, and without detours."""
    place = os.path.normpath(root.absolute() / path)
    top = os.path.normpath(root.absolute())
    return os.path.relpath(place, top) if PurePosixPath(place).is_relative_to(top) else os.path.normpath(path)


def _as_text(value: object) -> str:
    """Return text and whole numbers as text, "" for anything else."""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _splits(file: Path, rows: list[ListRow]) -> list[str]:
    found = {row.split for row in rows}
    if "" in found and len(found) > 1:
        row = next(row for row in rows if not row.split)
        raise DataError(f"{file} has no split in line {row.line}, but in others. Expected all or none. Add it.")
    if found != {""} and "train" not in found:
        raise DataError(f"{file} has no photos to learn from. Expected some with split train; found {sorted(found)}.")
    return [name for name in ("", *SPLITS) if name in found]


def _why_not_used(root: Path, path: str, options: FolderOptions) -> str | None:
    place = root / path
    try:
        if PurePosixPath(path).is_absolute() or path.split("/")[0] == "..":
            return "leads out of the list's folder"
        if not options.follow_links and not place.resolve().is_relative_to(root.resolve()):
            return LEADS_OUT
        if not place.exists():
            return NOT_THERE
        return None if place.is_file() else "not a regular file"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _missing_note(missing: list[ListRow], is_any_there: bool, listing: Listing) -> list[str]:
    """Say which photos are not where the list says. Raises DataError where none is."""
    if not missing:
        return []
    row, named = missing[0], f"{listing.list_file} names {len(missing)} files that are not there"
    told = (
        f"{named}; the first, {row.path} in line {row.line}, was looked for at "
        f"{(listing.root / row.path).absolute()}, since paths are relative to the list's folder"
    )
    cure = _cure(row.path, listing.root.absolute())
    if is_any_there:
        return [f"{told}. {cure}"]
    raise DataError(f"{told}. {cure}.")


def _cure(path: str, root: Path) -> str:
    """Say what to do about a path that leads to no file."""
    if "\\" in path:
        return "Write / between folders, not \\"
    with suppress(OSError):  # where its folder is not there either
        if same := sorted(one.name for one in (root / path).parent.iterdir() if one.stem == PurePosixPath(path).name):
            return f"There is {same[0]}: paths need their extension"
    with suppress(OSError):
        if below := sorted(one.name for one in root.iterdir() if (one / path).is_file()):
            return f"It is there below {below[0]}: write {below[0]}/{path}"
    others = [place for place in (Path.cwd(), *root.parents) if (place / path).is_file()]
    return f"It is there relative to {others[0]}: move the list to that folder" if others else "Put the paths right"


def _words(row: ListRow) -> str:
    return f"{row.label!r}" + (f" of {row.split}" if row.split else "")
