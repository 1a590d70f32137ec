"""What the user named as photos, to labelled files: a folder, an archive, shards, a list, or several by a pattern."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError, nearest
from regraft.data import sources
from regraft.data.annotations import is_annotation, list_annotations
from regraft.data.folder_entries import MANIFESTS, is_manifest
from regraft.data.folder_layout import SPLITS, LabelledFile, Listing, Quarantined, joined_listings, list_folder
from regraft.data.imagefolder import list_described
from regraft.data.list_manifest import list_manifest, refuse_conflicts
from regraft.data.name_labels import list_by_name
from regraft.data.parquet_rows import read_labels
from regraft.data.shards import is_shard, list_shard
from regraft.data.split_names import split_of
from regraft.data.video_frames import with_frames
from regraft.data.yolo import list_yolo, yolo_folder

WILD = re.compile(r"[*?\[{]")


def listed(place: Path, options: FolderOptions) -> Listing:
    """List photos with their labels and splits.

    Args:
        place: A folder, an archive, a list, or a pattern such as `shards/train-{000..009}.tar`.
        options: How they are read.

    Raises:
        DataError: There is no such thing, or it cannot be read in one way only.
    """
    return with_frames(_listed(place, options), options)


def _listed(place: Path, options: FolderOptions) -> Listing:
    if not place.exists() and WILD.search(str(place)):
        return _matched(place, options)
    if is_manifest(place) and sources.is_photo_file(place):
        return list_manifest(place, options)
    if is_annotation(place) and sources.is_photo_file(place):
        return list_annotations(place, options)
    if sources.is_folder(place):
        return _of_folder(place, options)
    if place.exists():
        raise DataError(
            f"{place} is a file. Expected the folder or archive that holds <class>/<image>, or a list of photos "
            f"({', '.join(MANIFESTS)}). Name one of these."
        )
    siblings = [entry.name for entry in place.parent.iterdir() if entry.is_dir()] if place.parent.is_dir() else []
    hint = nearest(place.name, siblings) or f" Looked in {place.parent.absolute()}. Check the path."
    raise DataError(f"There is no folder {place}. Expected a folder that holds <class>/<image>.{hint}")


def _of_folder(place: Path, options: FolderOptions) -> Listing:
    if options.label_by is not None:
        return list_by_name(place, options)
    if yolo := yolo_folder(place):
        return list_yolo(yolo, options)
    if place.is_dir() and (tables := sorted(_tables(place))):
        return _several(tables, options)
    if (described := list_described(place, options)) is not None:
        return described
    if place.is_file() and sources.kind_of(place) == "parquet":
        return list_parquet(place, options)
    if place.is_file() and is_shard(place):
        return list_shard(place)
    listing = list_folder(place, options)
    refuse_conflicts(listing)
    return listing


def list_parquet(file: Path, options: FolderOptions) -> Listing:
    """List the rows of a Parquet file.

    Args:
        file: As the library `datasets` writes it: a column of images, and one of classes.
        options: The column of the classes, where the user has named it.

    Raises:
        DataError: It is damaged, or could be read in no way or in several.
        MissingExtra: pyarrow is not installed.
    """
    listing, (labels, column) = Listing(file, splits=[""], labelled_by="list"), read_labels(file, options)
    for path, label in zip(sources.members(file), labels, strict=True):
        if label:
            listing.files.append(LabelledFile("", label, path))
        else:
            listing.quarantine.append(Quarantined(path, f"no class in the column {column}"))
    return listing


def _tables(folder: Path) -> Iterator[Path]:
    """Find Parquet files in a folder, or in its folder `data`, as repositories of data sets have them."""
    for place in (folder, folder / "data"):
        files = list(place.glob("*.parquet"))
        if files and not any(entry.is_dir() and entry != folder / "data" for entry in place.iterdir()):
            yield from files
            return


def _matched(pattern: Path, options: FolderOptions) -> Listing:
    files = sorted(set(matches(pattern)))
    if not files:
        raise DataError(f"Nothing matches {pattern}. Looked in {pattern.parent.absolute()}. Check the pattern.")
    return _several(files, options)


def _several(files: list[Path], options: FolderOptions) -> Listing:
    """List several places as one. Where the names of all say so, each is a split of its own."""
    root = _around(files)
    listings = [_listed(place, options) for place in files]
    meant = [split_of(place.name.partition(".")[0]) for place in files]
    if (
        all(meaning in SPLITS for meaning in meant)
        and "train" in meant
        and not any(any(one.splits) for one in listings)
    ):
        listings = [one.as_split(str(split)) for one, split in zip(listings, meant, strict=True)]
    return joined_listings(root, listings, options)


def matches(pattern: Path) -> Iterator[Path]:
    """Find the files and folders that a pattern names: `*`, `?`, `[ab]`, `{a,b}` and `{000..009}`.

    Args:
        pattern: A path with such parts.
    """
    for text in _without_braces(str(pattern)):
        path = Path(text)
        if not WILD.search(text):
            yield from [path] if path.exists() else []
            continue
        fixed = next(place for place in path.parents if not WILD.search(str(place)))
        yield from fixed.glob(str(path.relative_to(fixed)))


def _without_braces(text: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", text)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    return ("".join(words) for words in product(*choices))


def _choices(text: str) -> list[str]:
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", text)
    if not span:
        return text.split(",")
    first, last = span.groups()
    if int(last) - int(first) > 10**6:
        raise DataError(f"{{{text}}} names too many files. Expected at most a million.")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def _around(places: list[Path]) -> Path:
    """Return the folder that holds all."""
    return next(one for one in places[0].parents if all(place.is_relative_to(one) for place in places))
