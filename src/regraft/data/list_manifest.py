"""A list of photos with their labels, as CSV or JSON lines, to labelled files.

    path,label,split                {"path": "a/1.jpg", "label": "ant", "split": "train"}
    a/1.jpg,ant,train

`split` may be left out of all rows. Paths are relative to the list's folder and stay inside it.
"""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data.folder_layout import SPLIT_NAMES, Labelled, Listing, Quarantined, is_manifest

MAX_BYTES = 2**30
COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class ListRow:
    """One photo. line: where it stands in the list, from 1."""

    line: int
    path: str
    label: str
    split: str


def list_manifest(file: Path) -> Listing:
    """Photos as a list says. Raises DataError, by line, for what cannot be read in one way only."""
    rows = read_rows(file)
    listing = Listing(file.parent, splits=_splits(file, rows))
    seen: dict[str, ListRow] = {}
    for row in rows:
        first = seen.setdefault(row.path, row)
        if (first.label, first.split) != (row.label, row.split):
            raise DataError(
                f"{file} lists {row.path} twice: as {_words(first)} in line {first.line} and as {_words(row)} in line "
                f"{row.line}. Expected one. Remove one of the lines."
            )
        if first is not row:
            listing.notes.append(f"{file} lists {row.path} again in line {row.line}")
        elif reason := _why_not_used(file.parent, row.path):
            listing.quarantine.append(Quarantined(row.path, reason))
        else:
            listing.files.append(Labelled(row.split, row.label, row.path))
    return listing


def refuse_conflicts(listing: Listing) -> None:
    """Raise DataError where a list that lies beside class folders gives a photo another class than its folder."""
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
    """The rows of a list. Raises DataError, naming the line, where one has no path or no label."""
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise DataError(f"{file} has {size} bytes. Expected a list of at most {MAX_BYTES}. Divide it.")
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    rows = [_checked(file, line, values) for line, values in READERS[file.suffix.lower()](file, text)]
    if not rows:
        raise DataError(f"{file} lists no photos. Expected lines with {', '.join(COLUMNS[:2])} and optionally split.")
    return rows


def _rows_of_csv(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    names = [name.strip().lower() for name in reader.fieldnames or ()]
    if not {"path", "label"} <= set(names):
        found = ", ".join(map(repr, names[:6])) or "nothing"
        raise DataError(f"{file} has no columns path and label in its first line. Found {found}. Name them so.")
    reader.fieldnames = names
    try:
        for values in reader:
            yield reader.line_num, dict(values)
    except csv.Error as error:
        raise DataError(f"{file} is no CSV in line {reader.line_num}: {error}.") from error


def _rows_of_json_lines(file: Path, text: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file} has no JSON object in line {number}: {error}.") from error
            yield number, values if isinstance(values, dict) else {}


READERS = {
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
    ".jsonl": _rows_of_json_lines,
    ".ndjson": _rows_of_json_lines,
}


def _checked(file: Path, line: int, values: dict[str, object]) -> ListRow:
    path, label, split = (_text(values.get(name)) for name in COLUMNS)
    if not path or not label or "\0" in path:
        raise DataError(f"{file} has no {'label' if path else 'path'} in line {line}. Expected both. Add it.")
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{file} has the split {split!r} in line {line}. Expected train, val or test.")
    return ListRow(line, path, unicodedata.normalize("NFC", label), SPLIT_NAMES.get(split.lower(), ""))


def _text(value: object) -> str:
    """Text and whole numbers as text; anything else is nothing."""
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _splits(file: Path, rows: list[ListRow]) -> list[str]:
    found = {row.split for row in rows}
    if "" in found and len(found) > 1:
        row = next(row for row in rows if not row.split)
        raise DataError(f"{file} has no split in line {row.line}, but in others. Expected all or none. Add it.")
    if found != {""} and "train" not in found:
        raise DataError(f"{file} has no photos to learn from. Expected some with split train; found {sorted(found)}.")
    return [name for name in ("", "train", "val", "test") if name in found]


def _why_not_used(root: Path, path: str) -> str | None:
    place = root / path
    try:
        if not place.resolve().is_relative_to(root.resolve()):
            return "leads out of the list's folder"
        if not place.exists():
            return "the file does not exist"
        return None if place.is_file() else "not a regular file"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _words(row: ListRow) -> str:
    return f"{row.label!r}" + (f" of {row.split}" if row.split else "")
