"""A data set as others read it: class folders, a zip archive of them, Parquet of the library `datasets`, WebDataset."""

import io
import json
import os
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from regraft.core.errors import DataError, MissingExtra
from regraft.core.files import make_folder, write_atomic
from regraft.data.file_endings import ending_of
from regraft.data.folder_entries import is_junk
from regraft.data.scan import Dataset
from regraft.data.sorting import safe_name

Kind = Literal["folder", "zip", "parquet", "webdataset"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GROUP = 256  # photos of a row group, which a reader takes into memory at once
SHARD_BYTES = 10**9
EARLIEST = (1980, 1, 1, 0, 0, 0)  # the time of every file in a zip archive: the same photos give the same bytes
UNSPLIT = "photos"  # what files of photos without a split are called


def write_dataset(dataset: Dataset, place: Path, kind: Kind, advance: Callable[[int], None] = lambda _: None) -> None:
    """Write photos with their classes and splits.

    Args:
        dataset: The photos, all of which can be read.
        place: A folder that exists and is empty, or the file to be: a `.zip`, or for photos that are not split a
            `.parquet` or a `.tar`.
        kind: How they are written. In a folder, Parquet and WebDataset have files of their own for each split.
        advance: Is told of each photo.

    Raises:
        DataError: A class has a name that no folder can have, or a photo has changed or is gone.
        MissingExtra: Parquet is asked for, and pyarrow is not installed.
        OSError: It cannot be written.
    """
    if kind == "folder":
        _write_folder(dataset, place, advance)
    elif kind == "zip":
        _write_zip(dataset, place, advance)
    else:
        write = _write_parquet if kind == "parquet" else _write_shards
        for split in dict.fromkeys(dataset.splits):
            part = dataset.subset(i for i, one in enumerate(dataset.splits) if one == split)
            write(part.in_order_of_content(), place, split or UNSPLIT, advance)


def _members(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """Yield each photo with a path of its own, `split/class/name`, or `class/name`. Raises DataError."""
    for name in dataset.classes:
        parts = name.split("/")
        if [safe_name(part) for part in parts] != parts or any(map(is_junk, parts)):
            raise DataError(
                f"The class {name!r} has a name that a folder cannot have everywhere. Rename it, or write "
                "--format parquet or webdataset, which take any name."
            )
    taken: set[str] = set()
    for i, path in enumerate(dataset.paths):
        name = PurePosixPath(path).name
        name = dataset.hashes[i][:16] + PurePosixPath(name).suffix.rstrip("~") if is_junk(name) else name
        folder = "/".join(filter(None, (dataset.splits[i], dataset.classes[dataset.labels[i]])))
        yield i, _free(folder, name, taken)


def _free(folder: str, name: str, taken: set[str]) -> str:
    path, number = PurePosixPath(name), 1
    while (key := unicodedata.normalize("NFC", f"{folder}/{path}").casefold()) in taken:
        number += 1
        path = PurePosixPath(name).with_name(f"{PurePosixPath(name).stem}-{number}{PurePosixPath(name).suffix}")
    taken.add(key)
    return f"{folder}/{path}"


def _write_folder(dataset: Dataset, folder: Path, advance: Callable[[int], None]) -> None:
    """Write class folders of hard links, or of copies where links cannot be."""
    for i, member in _members(dataset):
        target = folder / member
        make_folder(target.parent)
        try:
            os.link((dataset.root / dataset.paths[i]).resolve(), target)
        except OSError:  # another disk, a file system without links, or a photo in an archive
            write_atomic(target, dataset.read(i))
        advance(1)


def _write_zip(dataset: Dataset, file: Path, advance: Callable[[int], None]) -> None:
    """Write class folders into an archive; photos are packed already, so that they are stored as they are."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for i, member in _members(dataset):
            info = zipfile.ZipInfo(member, EARLIEST)
            info.external_attr = 0o644 << 16
            archive.writestr(info, dataset.read(i))
            advance(1)


def _write_shards(dataset: Dataset, place: Path, name: str, advance: Callable[[int], None]) -> None:
    """Write tar archives of samples, `00000017.jpg` and `00000017.json`, in the order of the data set."""
    shard: tarfile.TarFile | None = None
    number = size = 0
    try:
        for i in range(len(dataset)):
            data = dataset.read(i)
            if shard is None or (size and size + len(data) > SHARD_BYTES and place.is_dir()):
                if shard is not None:
                    shard.close()
                file = place / f"{name}-{number:06d}.tar" if place.is_dir() else place
                shard, number, size = tarfile.open(file, "w", format=tarfile.PAX_FORMAT), number + 1, 0  # noqa: SIM115
            about = {
                "label": dataset.classes[dataset.labels[i]],
                "class_index": int(dataset.labels[i]),
                "path": dataset.paths[i].encode(errors="backslashreplace").decode(),
                "sha256": dataset.hashes[i],
            }
            _add(shard, f"{i:08d}{ending_of(data) or '.img'}", data)
            _add(shard, f"{i:08d}.json", json.dumps(about, ensure_ascii=False).encode())
            size += len(data)
            advance(1)
    finally:
        if shard is not None:
            shard.close()


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))


def _write_parquet(dataset: Dataset, place: Path, name: str, advance: Callable[[int], None]) -> None:
    """Write a table with the columns image and label, and what the library `datasets` says of such columns."""
    arrow = _pyarrow()
    file = place / f"{name}-00000-of-00001.parquet" if place.is_dir() else place
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": list(dataset.classes), "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = arrow.schema([("image", image), ("label", arrow.int64())], metadata=about)
    with arrow.parquet.ParquetWriter(file, schema, compression="none") as writer:
        for start in range(0, len(dataset), GROUP):
            chosen = range(start, min(start + GROUP, len(dataset)))
            rows = [_row(dataset, i) for i in chosen]
            labels = [int(dataset.labels[i]) for i in chosen]
            writer.write_table(arrow.table({"image": arrow.array(rows, image), "label": labels}, schema=schema))
            advance(len(chosen))


def _row(dataset: Dataset, index: int) -> dict[str, Any]:
    data = dataset.read(index)
    path = PurePosixPath(dataset.paths[index]).name.encode(errors="backslashreplace").decode()
    return {"bytes": data, "path": path}


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet") from error
    return pyarrow
