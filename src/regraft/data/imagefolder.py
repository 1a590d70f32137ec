"""Folders as the library `datasets` reads them: photos with a `metadata.csv` or `metadata.jsonl` of `file_name`."""

from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.folder_layout import LabelledFile, Listing, joined_listings
from regraft.data.list_columns import choose_columns
from regraft.data.list_manifest import list_manifest
from regraft.data.list_places import PhotoPlaces
from regraft.data.list_records import column_names
from regraft.data.split_names import find_split_folders

NAMES = ("metadata.csv", "metadata.jsonl")


def list_described(root: Path, options: FolderOptions) -> Listing | None:
    """List a folder whose `metadata.csv` says what its photos are, or whose splits each have one.

    Args:
        root: A folder or an archive.
        options: How lists are read.

    Returns:
        None where no such file names photos and classes.

    Raises:
        DataError: One does, and cannot be read in one way only.
    """
    if file := _metadata(root, options):
        return _split_by_path(list_manifest(file, options))
    try:
        names = [entry.name for entry in sources.entries(root) if entry.is_dir()]
    except OSError:
        return None
    splits = find_split_folders(names)
    lists = {name: file for name in splits if (file := _metadata(root / name, options))}
    if "train" not in (splits[name] for name in lists):
        return None
    return joined_listings(root, [list_manifest(file, options).as_split(splits[name]) for name, file in lists.items()])


def _metadata(folder: Path, options: FolderOptions) -> Path | None:
    for file in (folder / name for name in NAMES):
        if sources.is_photo_file(file) and "file_name" in column_names(file):
            try:
                choose_columns(file, options, PhotoPlaces(folder))
            except DataError:  # captions and the like: the folders name the classes
                return None
            return file
    return None


def _split_by_path(listing: Listing) -> Listing:
    """Return the same files, in splits where each lies in a folder that is called so."""
    tops = sorted({one.path.partition("/")[0] for one in listing.files if "/" in one.path})
    splits = find_split_folders(tops)
    if listing.splits != [""] or "train" not in splits.values():
        return listing
    if not all(one.path.partition("/")[0] in splits for one in listing.files):
        return listing
    listing.files = [LabelledFile(splits[one.path.partition("/")[0]], one.label, one.path) for one in listing.files]
    listing.splits = list(dict.fromkeys(one.split for one in listing.files))
    return listing
