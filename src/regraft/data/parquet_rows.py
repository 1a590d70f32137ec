"""Parquet files as the library `datasets` writes them: a column of images with their bytes, and one of labels.

A row is the member `17.jpg` of the file: its number, and the ending of the path that the image had. A table of photos
on disk has their paths alone, until `push_to_hub` puts the bytes in; such photos are read in the table's own folder.
"""

import json
import threading
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError, MissingExtra
from regraft.data.decode import MAX_BYTES, Unreadable, read_open
from regraft.data.member_names import is_bomb

MAX_GROUP_BYTES = 2**31  # of images in one row group, which is read at once
NUM_KEPT = 2  # row groups in memory
BATCH_BYTES, BATCH_ROWS = 2**26, 2**16  # that are unpacked at a time: a value may stand once for a million rows
ENDINGS = 8  # characters of a path's ending at most


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file with a column of images.

    Attributes:
        file: The file.
        column: Of the images.
        rows: The number of each member's row.
        starts: The first row of each row group, and behind the last one the number of all.
        refused: Why each row that is not read is not.
    """

    file: Path
    column: str
    rows: Mapping[str, int] = field(repr=False)
    starts: np.ndarray = field(repr=False)
    refused: Mapping[str, str] = field(default_factory=dict, repr=False)

    def names(self) -> list[str]:
        """Return the rows by their names."""
        return list(self.rows)

    def read(self, name: str) -> bytes:
        """Read the image of a row.

        Raises:
            Unreadable: The row has none, or the file is damaged there.
            KeyError: There is no such row.
        """
        row = self.rows[name]
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        image, path = self._group.image(self, group, row - int(self.starts[group]))
        if image is None and path:
            return self._beside(path)
        if image is None:
            raise Unreadable("the row has no image")
        if len(image) > MAX_BYTES:
            raise Unreadable(f"larger than {MAX_BYTES // 2**20} MB")
        return image

    def _beside(self, path: str) -> bytes:
        """Read a photo that a row names. Raises Unreadable where it lies outside the table's folder."""
        place, around = (self.file.parent / path).resolve(), self.file.parent.resolve()
        if not place.is_relative_to(around):
            advice = "put the table into the folder that the photos are in, or write their bytes into it"
            raise Unreadable(f"the row has no image but the path {path}, outside the table's folder; {advice}")
        if not place.is_file():
            raise Unreadable(f"the row has no image, and there is no file at its path {path}")
        with open(place, "rb") as opened:
            return read_open(opened)

    @cached_property
    def _group(self) -> "_GroupReader":
        return _GroupReader()


class _GroupReader:
    """The row groups that were read last, for all threads: photos are mostly read in order."""

    def __init__(self) -> None:
        self._kept: dict[int, Any] = {}  # of each group its images, or why there are none
        self._lock = threading.Lock()

    def image(self, source: ParquetSource, group: int, place: int) -> tuple[bytes | None, str | None]:
        with self._lock:
            if group not in self._kept:
                for old in list(self._kept)[: 1 - NUM_KEPT]:
                    del self._kept[old]
                self._kept[group] = _images_or_reason(source, group)
            images = self._kept[group]
        if isinstance(images, str):
            raise Unreadable(images)
        value = images[place].as_py()
        return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)


def _images_or_reason(source: ParquetSource, group: int) -> Any:
    """Read the images of a row group, or return why they cannot be read."""
    arrow, size, parts = _pyarrow(), 0, []
    try:
        with arrow.parquet.ParquetFile(source.file) as file:
            packed = sum(leaf.total_compressed_size for leaf in _leaves(file, group, source.column))
            for part in _batches(file, group, source.column):
                size += part.nbytes
                if is_bomb(size, packed):
                    return f"a decompression bomb: {packed} bytes of a row group become {size} and more"
                parts.append(part)
            return arrow.chunked_array(parts)
    except (arrow.ArrowException, OSError) as error:
        return f"damaged: {_first_line(error)}"


def _batches(opened: Any, group: int, column: str) -> Iterator[Any]:
    """Yield the values of some rows of a row group at a time, as arrays."""
    largest = max(1, sum(leaf.total_uncompressed_size for leaf in _leaves(opened, group, column)))
    rows = min(BATCH_ROWS, max(1, BATCH_BYTES // largest))
    for batch in opened.iter_batches(rows, row_groups=[group], columns=[column]):
        yield batch.column(0)


def _values(opened: Any, column: str) -> Iterator[Any]:
    """Yield the values of a column, those that are equal as one object."""
    known: dict[Any, Any] = {}
    for group in range(opened.metadata.num_row_groups):
        for part in _batches(opened, group, column):
            for value in part.to_pylist():
                one = value.get("path") if isinstance(value, dict) else value
                yield known.setdefault(one, one)


def _leaves(opened: Any, group: int, column: str) -> list[Any]:
    row_group = opened.metadata.row_group(group)
    leaves = (row_group.column(i) for i in range(row_group.num_columns))
    return [leaf for leaf in leaves if leaf.path_in_schema == column or leaf.path_in_schema.startswith(f"{column}.")]


def open_parquet(file: Path) -> ParquetSource:
    """Find the images of a Parquet file.

    Raises:
        DataError: It is damaged, or has no column of images, or several.
        MissingExtra: pyarrow is not installed.
        OSError: It cannot be read.
    """
    with _Opened(file) as opened:
        schema, metadata = opened.schema_arrow, opened.metadata
        column = _image_column(file, schema)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        for number in range(len(groups)):
            size = sum(leaf.total_uncompressed_size for leaf in _leaves(opened, number, column))
            if size > MAX_GROUP_BYTES:
                raise DataError(
                    f"{file} has {size} bytes in a row group. Expected at most {MAX_GROUP_BYTES}. Divide it."
                )
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        names = _names(opened, column, int(starts[-1]))
    return ParquetSource(file, column, {name: row for row, name in enumerate(names)}, starts)


def read_labels(file: Path, options: FolderOptions) -> tuple[list[str], str]:
    """Read the class of every row.

    Args:
        file: A Parquet file.
        options: The column of the classes, where the user has named it.

    Returns:
        Names of classes in the order of the rows, "" where a row has none; and the column.

    Raises:
        DataError: It is damaged, or its classes could be in no column or in several.
        MissingExtra: pyarrow is not installed.
    """
    with _Opened(file) as opened:
        schema, features = opened.schema_arrow, _features(opened.schema_arrow)
        column = _label_column(file, schema, features, options.label_column)
        names = features.get(column, {}).get("names")
        values = list(_values(opened, column))
    if isinstance(names, list):
        values = [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in values]
    return [unicodedata.normalize("NFC", str(value)).strip() if _is_label(value) else "" for value in values], column


def _is_label(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _image_column(file: Path, schema: Any) -> str:
    """Return the column of the images, as its features say or its type. Raises DataError."""
    declared = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    columns = declared or [one.name for one in schema if _holds_bytes(one.type)]
    if len(columns) != 1:
        what = f"the columns {', '.join(columns)} of images" if columns else "no column of images with their bytes"
        raise DataError(f"{file} has {what}. Expected one, as the library datasets writes it; found {schema.names}.")
    return str(columns[0])


def _holds_bytes(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _label_column(file: Path, schema: Any, features: dict[str, Any], given: str | None) -> str:
    types = _pyarrow().types
    if given is not None:
        columns = [name for name in schema.names if name.lower() == given.lower()]
        if not columns:
            raise DataError(f"{file} has no column {given!r}, which --label-column names. Found {schema.names}.")
        return str(columns[0])
    columns = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    columns = columns or [name for name in schema.names if name.lower() == "label"]
    if len(columns) != 1:
        columns = [one.name for one in schema if types.is_string(one.type) or types.is_integer(one.type)]
    if len(columns) != 1:
        raise DataError(f"{file} has no column label. Found {schema.names}. Choose one with --label-column.")
    return str(columns[0])


def _features(schema: Any) -> dict[str, Any]:
    """What the library `datasets` says of the columns; {} where it has not written the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _names(opened: Any, column: str, count: int) -> list[str]:
    """Names of the rows: their numbers, with the endings of the images' paths."""
    kind = opened.schema_arrow.field(column).type
    paths: list[str | None] = [None] * count
    if _pyarrow().types.is_struct(kind) and any(kind.field(i).name == "path" for i in range(kind.num_fields)):
        paths = list(_values(opened, f"{column}.path"))
    endings = (PurePosixPath(path or "").suffix[:ENDINGS] for path in paths)
    return [f"{row:0{len(str(count))}d}{ending}" for row, ending in enumerate(endings)]


class _Opened:
    """A Parquet file while it is read; what is wrong with it becomes a DataError."""

    def __init__(self, file: Path) -> None:
        self._path, self._file = file, None  # type: tuple[Path, Any]

    def __enter__(self) -> Any:
        arrow = _pyarrow()
        try:
            self._file = arrow.parquet.ParquetFile(self._path)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(
                f"{self._path} is damaged, or no Parquet file: {_first_line(error)}. Download it again."
            ) from error
        return self._file

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        self._file.close()
        if isinstance(error, _pyarrow().ArrowException | OSError):
            raise DataError(f"{self._path} is damaged: {_first_line(error)}. Download it again.") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].removesuffix(".")


def _pyarrow() -> Any:
    """Raises MissingExtra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    return pyarrow
