"""Which columns of a list name photos and classes: as the user says, by their names, or the only ones that can."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data.list_places import PhotoPlaces
from regraft.data.list_records import column_names, records

PATHS = ("path", "file_name")  # names that can mean nothing else
NUM_TRIED = 20  # rows in which a column is seen to lead to photos


@dataclass(frozen=True)
class Columns:
    """The columns that are read, in small letters.

    Attributes:
        path: Of the photos.
        label: Of their classes.
    """

    path: str
    label: str

    def notes(self, file: Path) -> list[str]:
        """Say which columns were taken, unless they are called path and label."""
        if (self.path, self.label) == ("path", "label"):
            return []
        return [f"{file.name}: photos by the column {self.path!r}, classes by the column {self.label!r}"]

    def check(self, file: Path, names: Sequence[str]) -> None:
        """Raise DataError where a column is not there, or is there twice."""
        for name in (self.path, self.label):
            if names.count(name) > 1:
                raise DataError(f"{file} has {names.count(name)} columns {name}. Expected one. Remove one.")
            if name not in names:
                raise _lacks(file, names)


CANONICAL = Columns("path", "label")


def choose_columns(file: Path, options: FolderOptions, places: PhotoPlaces) -> Columns:
    """Choose the columns of a list.

    Args:
        file: The list.
        options: Columns that the user has named.
        places: The photos around the list.

    Raises:
        DataError: A column is not there, or none or several could be meant.
    """
    names = column_names(file)
    for given, option in ((options.path_column, "--path-column"), (options.label_column, "--label-column")):
        if given is not None and given.lower() not in names:
            raise DataError(f"{file} has no column {given!r}, which {option} names. Found {_some(names)}.")
    path = options.path_column or next((name for name in PATHS if name in names), None)
    if path is None:
        path = _leading(file, [name for name in _meaning(names) if name not in ("label", "split")], names, places)
    label = options.label_column or ("label" if "label" in names else _only(file, path.lower(), names))
    return Columns(path.lower(), label.lower())


def _leading(file: Path, candidates: Sequence[str], names: Sequence[str], places: PhotoPlaces) -> str:
    """Return the only column whose values lead to photos. Raises DataError."""
    first = [values for _, values in islice(records(file), NUM_TRIED)]
    values = {name: list(filter(None, (row.get(name, "") for row in first))) for name in candidates}
    columns = [name for name in values if places.has(values[name], as_paths=True)]
    columns = columns or [name for name in values if places.has(values[name])]
    if len(columns) > 1:
        raise DataError(f"{file} has photos in the columns {_some(columns)}. Expected one. Choose with --path-column.")
    if not columns:
        raise _lacks(file, names)
    return columns[0]


def _only(file: Path, path: str, names: Sequence[str]) -> str:
    """Return the only column that is left for the classes. Raises DataError."""
    left = [name for name in _meaning(names) if name not in (path, "split")]
    if len(left) != 1:
        raise DataError(
            f"{file} has no column label in its first line. Found {_some(names)}. Choose one with --label-column."
        )
    return left[0]


def _meaning(names: Sequence[str]) -> list[str]:
    """Return the columns without those of row numbers that pandas writes."""
    return [name for name in names if name and not name.startswith("unnamed:")]


def _lacks(file: Path, names: Sequence[str]) -> DataError:
    return DataError(
        f"{file} has no columns path and label in its first line. Found {_some(names)}. Name them so, or with "
        "--path-column and --label-column."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:6])) or "nothing"
