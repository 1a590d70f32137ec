"""The command `regraft data`: photos as they were read, with classes and splits, in a form that others read."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.core.config import AS_FOUND, TrainConfig
from regraft.core.errors import ConfigError, DataError, OutputError, RegraftError
from regraft.core.files import published, sha256_file, workspace
from regraft.core.ownership import put_file, refuse_foreign
from regraft.core.progress import QUIET, Progress
from regraft.data.dataset_writers import Kind, write_dataset
from regraft.data.folder_entries import MANIFESTS
from regraft.data.member_names import ARCHIVES
from regraft.data.scan import Dataset, list_photos, scan
from regraft.data.splits import split
from regraft.reporting.answer_table import check_parquet

SUFFIXES: dict[str, Kind] = {".zip": "zip", ".parquet": "parquet", ".tar": "webdataset"}
OTHER_FILES = (*ARCHIVES, *MANIFESTS, ".json", ".txt", ".arrow", ".npy", ".npz", ".h5", ".hdf5")
"""Endings of names that mean a file of a kind that is not written: a folder is hardly meant."""


@dataclass(frozen=True)
class Written:
    """A data set that was written, and read back as it was.

    Attributes:
        place: The folder or file.
        read_as: What other commands name to read it: the place, or a pattern of the files in it.
        kind: How it was written.
        dataset: What was written.
    """

    place: Path
    read_as: Path
    kind: Kind
    dataset: Dataset

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft data --json` prints."""
        counts = {name: self.dataset.splits.count(name) for name in dict.fromkeys(self.dataset.splits)}
        written = {"written": str(self.place), "read_as": str(self.read_as), "format": self.kind}
        return {**written, "splits": counts, **self.dataset.to_json()}


def write_data(
    folder: str | Path,
    to: str | Path,
    *,
    kind: Kind | None = None,
    with_split: bool = False,
    config: TrainConfig | None = None,
    progress: Progress = QUIET,
) -> Written:
    """Write photos as they were read; nothing is there in the end unless it reads back the same.

    Args:
        folder: The photos, in any form that is read.
        to: The place to be: a folder, or a file.
        kind: How they are written; None for what the place's name says: `.zip`, `.parquet`, `.tar` for WebDataset, and
            else class folders.
        with_split: Whether photos that are not split are split into train and val, as a training would do it.
        config: How the photos are read and split.
        progress: Is told what is done.

    Raises:
        DataError: The photos cannot be read, or could not be read back the same.
        ConfigError: One file is asked for, and the photos are split; or a file of a kind that is not written.
        OutputError: The place cannot be written, or something else is there, which stays.
        MissingExtra: Parquet is asked for, and pyarrow is not installed.
    """
    config, place = config or TrainConfig(), Path(to)
    kind = kind or _kind_of(place)
    if kind == "parquet":
        check_parquet()
    _check_place(Path(folder), place)
    dataset = scan(folder, min_classes=1, options=config.folder_options, progress=progress)
    if with_split:
        dataset = _split(dataset, config)
    is_file = kind == "zip" or (kind != "folder" and place.suffix.lower() in SUFFIXES)
    if is_file and kind != "zip" and any(dataset.splits):
        raise ConfigError(
            f"{place} is one file, and the photos have splits, each of which has a file of its own. "
            f"Name a folder: --to {place.with_suffix('')} --format {kind}"
        )
    if is_file:
        _write_file(dataset, place, kind, progress)
    else:
        _write_folder(dataset, place, kind, progress)
    return Written(place, place if is_file else _read_as(place, kind), kind, dataset)


def _kind_of(place: Path) -> Kind:
    """Return how photos are written by the name of the place. Raises ConfigError."""
    suffix = place.suffix.lower()
    if suffix in OTHER_FILES and suffix not in SUFFIXES:
        raise ConfigError(
            f"Photos are not written as {suffix} files, as {place} is called. Expected a folder, or a file that ends "
            "in .zip, .parquet or .tar (WebDataset). Choose another name, or say --format."
        )
    return SUFFIXES.get(suffix, "folder")


def _check_place(folder: Path, place: Path) -> None:
    """Raise OutputError where the place is taken, or lies among the photos."""
    if place.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{place} lies in {folder}, among the photos. Choose a place beside them.")
    refuse_foreign(place)


def _split(dataset: Dataset, config: TrainConfig) -> Dataset:
    """Return the data set with the splits that a training would draw; as it is where it has some."""
    if any(dataset.splits):
        return dataset
    drawn = split(dataset, val_fraction=config.val_fraction, seed=config.seed)
    held_out = set(drawn.val.paths)
    return replace(dataset, splits=tuple("val" if path in held_out else "train" for path in dataset.paths))


def _read_as(place: Path, kind: Kind) -> Path:
    return place / "*.tar" if kind == "webdataset" else place


def _write_folder(dataset: Dataset, place: Path, kind: Kind, progress: Progress) -> None:
    with published(place) as partial:
        with progress.step("write photos", total=len(dataset)) as advance:
            write_dataset(dataset, partial, kind, advance)
        _check_same(dataset, _read_as(partial, kind), progress)


def _write_file(dataset: Dataset, place: Path, kind: Kind, progress: Progress) -> None:
    with workspace(place.parent, place.name) as around:
        partial = around / place.name
        try:
            with progress.step("write photos", total=len(dataset)) as advance:
                write_dataset(dataset, partial, kind, advance)
            _check_same(dataset, partial, progress)
            put_file(partial, place, sha256_file(partial))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"Cannot write {place}: {reason}. Make room or choose another place.") from error


def _check_same(dataset: Dataset, place: Path, progress: Progress) -> None:
    """Read back what was written. Raises DataError where anything is not as it was."""
    other = DataError(
        "What was written does not read back as it was, and was not kept: folders cannot say these classes and "
        "splits. Write --format parquet or webdataset, or rename the classes."
    )
    try:
        written = list_photos(place, min_classes=1, options=AS_FOUND, progress=progress)
    except RegraftError as error:
        raise other from error
    if _content(written) != _content(dataset):
        raise other


def _content(dataset: Dataset) -> Counter[tuple[str, str, str]]:
    names = (dataset.classes[label] for label in dataset.labels)
    return Counter(zip(dataset.hashes, names, dataset.splits, strict=True))
