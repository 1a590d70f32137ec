"""Answers as a table: columns by name, as CSV, JSON lines or Parquet, all from the same values."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Literal

from regraft.core.csv_cells import to_cell
from regraft.core.errors import ConfigError, MissingExtra, nearest

Format = Literal["text", "csv", "jsonl", "parquet"]
Record = Mapping[str, Any]  # what `to_json` of an answer gives
Columns = dict[str, Callable[[Record], Any]]  # by their names
EACH = "probabilities"  # stands for a column for each class
OF_CLASS = "p_"
FIELDS = ("label", "probability", "unsure", "looks_new", "novelty", "labels", "error", "sorted_into")
OF_PHOTO = ("path", "id", "name")
OF_GROUP = ("group", "photos", "failed")


def columns_of(
    spec: str | None, classes: Sequence[str], *, is_group: bool, is_sorted: bool, has_labels: bool
) -> Columns:
    """Make the columns of a table.

    Args:
        spec: Names separated by commas, each perhaps with `=FIELD` where the column's name is another than the
            field's, such as "image=id,target=label"; None for all there is.
        classes: Of the model.
        is_group: Whether answers are about groups of photos.
        is_sorted: Whether photos are sorted into folders.
        has_labels: Whether answers name several classes.

    Raises:
        ConfigError: There is no such field, or a name comes twice.
    """
    identifying = OF_GROUP if is_group else OF_PHOTO
    if spec is None:
        usual = [name for name in FIELDS if (name != "labels" or has_labels) and (name != "sorted_into" or is_sorted)]
        pairs = [(name, name) for name in (*(identifying if is_group else identifying[:1]), *usual)]
        pairs += [(OF_CLASS + name, OF_CLASS + name) for name in classes]
    else:
        pairs = [_pair(part.strip(), classes, identifying) for part in spec.split(",")]
        pairs = [one for pair in pairs for one in ([(n, OF_CLASS + n) for n in classes] if pair[1] == EACH else [pair])]
    if twice := sorted({name for name, _ in pairs if [one for one, _ in pairs].count(name) > 1}):
        raise ConfigError(f"--columns names {twice[0]!r} twice. Give one of them another name, as in NAME=FIELD.")
    return {name: _getter(value) for name, value in pairs}


def _pair(part: str, classes: Sequence[str], identifying: Sequence[str]) -> tuple[str, str]:
    """Return the name and the field of a column."""
    name, _, value = part.partition("=")
    value = value or name
    known = (*identifying, *FIELDS, EACH, *(OF_CLASS + one for one in classes))
    if value not in known:
        fields = ", ".join((*identifying, *FIELDS, EACH, f"{OF_CLASS}CLASS"))
        raise ConfigError(
            f"--columns has {part!r}, which is no field.{nearest(value, known)} Expected some of: {fields}; "
            "NAME=FIELD gives a column another name."
        )
    return name, value


def _getter(value: str) -> Callable[[Record], Any]:
    if value == "id":
        return lambda record: PurePath(record["path"]).stem
    if value == "name":
        return lambda record: PurePath(record["path"]).name
    if value.startswith(OF_CLASS):
        return lambda record: record.get("probabilities", {}).get(value.removeprefix(OF_CLASS))
    return lambda record: record.get(value)


def csv_lines(records: Iterable[Record], columns: Columns) -> Iterator[str]:
    """Yield the lines of a CSV file, the header first; numbers have all their digits.

    Text that a spreadsheet would take for a formula is marked (`core.csv_cells`).
    """
    yield _line(map(to_cell, columns))
    for record in records:
        yield _line(_cell(get(record)) for get in columns.values())


def _line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(cells)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return to_cell(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def json_lines(records: Iterable[Record], columns: Columns | None) -> Iterator[str]:
    """Yield a JSON object a line: the columns, or all that is known where there are none."""
    for record in records:
        row = record if columns is None else {name: get(record) for name, get in columns.items()}
        text = json.dumps(row, ensure_ascii=False)
        yield "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text) + "\n"


def check_parquet() -> None:
    """Make sure that Parquet can be written.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error


def parquet_bytes(records: Iterable[Record], columns: Columns) -> bytes:
    """Return the content of a Parquet file: text, numbers and truth values in columns of their kind.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    values: dict[str, list[Any]] = {name: [] for name in columns}
    for record in records:
        for name, get in columns.items():
            values[name].append(_utf8(get(record)))
    sink = io.BytesIO()
    table = pyarrow.table({_utf8(name): _column(pyarrow, column) for name, column in values.items()})
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _column(pyarrow: Any, values: list[Any]) -> Any:
    """Return a column; one without any value is text."""
    return pyarrow.array(values) if any(one is not None for one in values) else pyarrow.array(values, pyarrow.string())


def _utf8(value: Any) -> Any:
    """Return text as every program can read it: bytes of file names that are no UTF-8 are escaped."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value
