"""Shards of WebDataset: tar archives in which files of one key are one sample, `key.jpg` with `key.cls` or `key.json`.

The key of a file is its path up to the first dot of its name, as the library `webdataset` reads it.
"""

import json
import unicodedata
from collections import defaultdict
from pathlib import Path

from regraft.data import sources
from regraft.data.decode import Unreadable
from regraft.data.folder_entries import is_junk
from regraft.data.folder_layout import LabelledFile, Listing, Quarantined

LABELS = ("cls", "json")
JSON_LABELS = ("label", "cls", "class")
NO_PHOTOS = (*LABELS, "txt", "caption", "id", "index", "npy", "pyd", "pth")  # files of a sample that hold no photo


def is_shard(archive: Path) -> bool:
    """Return whether an archive is a shard.

    Args:
        archive: A zip or tar archive.

    Returns:
        Whether some photo has a `cls` beside it; or a `json`, and not all of them lie in several folders, as photos of
        classes do that a program has added to.

    Raises:
        DataError: It cannot be read.
    """
    labelled = {key: files for key, files in _samples(archive).items() if _label_of(files) and len(files) > 1}
    is_flat = len({key.rpartition("/")[0] for key in labelled}) == 1
    return is_flat or any("cls" in files for files in labelled.values())


def list_shard(archive: Path) -> Listing:
    """List the samples of a shard.

    Args:
        archive: The shard.

    Returns:
        A file for each sample; those of samples without a label, or with several photos, are quarantined.

    Raises:
        DataError: It cannot be read.
    """
    listing = Listing(archive, splits=[""], labelled_by="list")
    listing.quarantine += [Quarantined(name, reason) for name, reason in sources.refused(archive).items()]
    for files in _samples(archive).values():
        photos = [name for kind, name in files.items() if kind not in NO_PHOTOS]
        label, reason = _read_label(archive, files)
        if len(photos) > 1:
            reason = f"one of {len(photos)} files of a sample; expected one photo"
        if reason:
            listing.quarantine += [Quarantined(name, reason) for name in photos]
        else:
            listing.files += [LabelledFile("", label, name) for name in photos]
    return listing


def _samples(archive: Path) -> dict[str, dict[str, str]]:
    """Names of the files of each key, by their extensions in small letters."""
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sources.members(archive):
        around, slash, name = path.rpartition("/")
        if not any(map(is_junk, path.split("/"))):
            key, _, kind = name.partition(".")
            samples[f"{around}{slash}{key}"][kind.lower()] = path
    return samples


def _label_of(files: dict[str, str]) -> str | None:
    return next((files[kind] for kind in LABELS if kind in files), None)


def _read_label(archive: Path, files: dict[str, str]) -> tuple[str, str]:
    """Return the label of a sample, and why it has none, one of them empty."""
    name = _label_of(files)
    if name is None:
        return "", f"no {' or '.join(LABELS)} beside it"
    try:
        text = sources.read_bytes(archive / name).decode("utf-8-sig").strip()
        if name == files.get("json"):
            text = _from_json(json.loads(text))
    except (Unreadable, ValueError, RecursionError) as error:
        return "", f"its label {name} cannot be read: {error}"
    label = unicodedata.normalize("NFC", text)
    return label, "" if label else f"its label {name} is empty"


def _from_json(values: object) -> str:
    """Return what a sample's JSON says of its class. Raises ValueError where it says nothing."""
    if isinstance(values, str | int) and not isinstance(values, bool):
        return str(values)
    given = values if isinstance(values, dict) else {}
    labels = [given[name] for name in JSON_LABELS if isinstance(given.get(name), str | int)]
    if not labels:
        raise ValueError(f"expected one of the keys {', '.join(JSON_LABELS)}")
    return str(labels[0])
