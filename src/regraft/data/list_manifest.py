"""A list of photos with their labels, as CSV or JSON lines, to labelled files.

    path,label,split                {"path": "a/1.jpg", "label": "ant", "split": "train"}
    a/1.jpg,ant,train

`split` may be left out of all rows. Paths are relative to the list's folder and stay inside it. Columns of other names,
and photos that are named otherwise, are found where one reading is possible, and said (`list_columns`, `list_places`);
what could be read in more than one way is refused with the number of its line.
"""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from regraft.core.config import AS_FOUND, FolderOptions
from regraft.core.csv_cells import to_cell
from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.class_names import refuse_twins
from regraft.data.folder_entries import is_manifest
from regraft.data.folder_layout import SPLITS, LabelledFile, Listing, Quarantined
from regraft.data.links import LEADS_OUT, note_on_links
from regraft.data.list_columns import CANONICAL, Columns, choose_columns
from regraft.data.list_places import PhotoPlaces
from regraft.data.list_records import COLUMNS, dialect, read_list_text, records
from regraft.data.split_names import split_of

NOT_THERE = "the file does not exist"


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
    places = PhotoPlaces(file.parent)
    columns = choose_columns(file, options, places)
    rows = read_rows(file, columns)
    listing = Listing(file.parent, splits=_splits(file, rows), options=options, list_file=file, labelled_by="list")
    listing.notes += [*columns.notes(file), *places.settle(file, [row.path for row in rows])]
    seen: dict[str, ListRow] = {}
    missing: list[ListRow] = []
    for row in (replace(row, path=_found(places, file, row)) for row in rows):
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
            listing.files.append(LabelledFile(row.split, row.label, row.path))
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


def read_rows(file: Path, columns: Columns = CANONICAL) -> list[ListRow]:
    """Read the rows of a list.

    Args:
        file: A CSV or JSON-lines file.
        columns: Those of the photos and of their classes.

    Returns:
        Every row.

    Raises:
        DataError: A row has no path or no label, or could be read in more than one way; its line is named.
    """
    if file.suffix.lower() in (".csv", ".tsv"):
        columns.check(file, dialect(file, read_list_text(file)).names)
    rows = [_checked(file, line, values, columns) for line, values in records(file)]
    if not rows:
        raise DataError(f"{file} lists no photos. Expected lines with {', '.join(COLUMNS[:2])} and optionally split.")
    lines: dict[str, int] = {}
    for row in rows:
        lines.setdefault(row.label, row.line)
    refuse_twins(file, "classes", lines, lines)
    return rows


def _found(places: PhotoPlaces, file: Path, row: ListRow) -> str:
    try:
        return places.find(row.path)
    except DataError as error:
        raise DataError(f"{file} in line {row.line}: {error}") from error


def without_others(file: Path, paths: Collection[str], options: FolderOptions = AS_FOUND) -> bytes:
    """Write a list with only some of its rows, for a copy of the photos in another folder.

    Args:
        file: The list.
        paths: Of the photos whose rows are kept, relative to the list's folder.
        options: How the list is read.

    Returns:
        The new list's bytes, in the same format and with the same columns; each photo is named by its path.

    Raises:
        DataError: As for `read_rows`.
    """
    places = PhotoPlaces(file.parent)
    columns = choose_columns(file, options, places)
    rows = read_rows(file, columns)
    places.settle(file, [row.path for row in rows])
    photo_paths = [places.find(row.path) for row in rows]
    wanted = [path if path in paths else "" for path in photo_paths]
    text = read_list_text(file)
    if file.suffix.lower() not in (".csv", ".tsv"):
        objects = [json.loads(line) for line in text.split("\n") if line.strip()]
        key = next((key for key in objects[0] if key.lower() == columns.path), columns.path)
        kept = [{**values, key: path} for values, path in zip(objects, wanted, strict=True) if path]
        return "".join(json.dumps(values) + "\n" for values in kept).encode()
    (delimiter, names, _), buffer = dialect(file, text), io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    for path, (_, values) in zip(wanted, records(file), strict=True):
        if path:
            writer.writerow([to_cell({**values, columns.path: path}.get(name, "")) for name in names])
    return buffer.getvalue().encode()


def _checked(file: Path, line: int, values: dict[str, str], columns: Columns) -> ListRow:
    path, label, split = (values.get(name, "") for name in (columns.path, columns.label, "split"))
    if not path.strip() or not label.strip() or "\0" in path:
        lacking = columns.label if path.strip() else columns.path
        raise DataError(f"{file} has no {lacking} in line {line}. Expected both. Add it.")
    meaning = split_of(split) if split.strip() else ""
    if meaning not in ("", *SPLITS):
        raise DataError(f"{file} has the split {split!r} in line {line}. Expected train, val or test.")
    return ListRow(line, _shortest(path, file.parent), unicodedata.normalize("NFC", label), meaning or "")


def _shortest(path: str, root: Path) -> str:
    """Return a path as it is told from others: relative where it is inside `root`, and without detours."""
    place = os.path.normpath(root.absolute() / path)
    top = os.path.normpath(root.absolute())
    return os.path.relpath(place, top) if PurePosixPath(place).is_relative_to(top) else os.path.normpath(path)


def _splits(file: Path, rows: list[ListRow]) -> list[str]:
    names = {row.split for row in rows}
    if "" in names and len(names) > 1:
        row = next(row for row in rows if not row.split)
        raise DataError(f"{file} has no split in line {row.line}, but in others. Expected all or none. Add it.")
    if names != {""} and "train" not in names:
        raise DataError(f"{file} has no photos to learn from. Expected some with split train; found {sorted(names)}.")
    return [name for name in ("", *SPLITS) if name in names]


def _why_not_used(root: Path, path: str, options: FolderOptions) -> str | None:
    place = root / path
    try:
        if sources.is_in_source(place):
            return None if sources.is_photo_file(place) else NOT_THERE
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
    message = (
        f"{named}; the first, {row.path} in line {row.line}, was looked for at "
        f"{(listing.root / row.path).absolute()}, since paths are relative to the list's folder"
    )
    cure = _cure(row.path, listing.root.absolute())
    if is_any_there:
        return [f"{message}. {cure}"]
    raise DataError(f"{message}. {cure}.")


def _cure(path: str, root: Path) -> str:
    """Say what to do about a path that leads to no file."""
    with suppress(OSError):
        if below := sorted(one.name for one in root.iterdir() if (one / path).is_file()):
            return f"It is there below {below[0]}: write {below[0]}/{path}"
    others = [place for place in (Path.cwd(), *root.parents) if (place / path).is_file()]
    return f"It is there relative to {others[0]}: move the list to that folder" if others else "Put the paths right"


def _words(row: ListRow) -> str:
    return f"{row.label!r}" + (f" of {row.split}" if row.split else "")
