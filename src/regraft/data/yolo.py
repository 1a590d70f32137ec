"""Folders of YOLO, whose boxes become photos of their own: a text file for each photo, in shares of its sides.

Read are `images/` beside `labels/` (Ultralytics, Label Studio), these two in a folder for each split (Roboflow), and
photos beside their texts in `obj_train_data/` (CVAT, Darknet).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.annotations import Drawn, finite, listing_of, read_utf8
from regraft.data.crops import Box
from regraft.data.folder_layout import Listing
from regraft.data.split_names import find_split_folders, split_of

NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
DARKNET = re.compile(r"obj_(\w+)_data")


@dataclass(frozen=True)
class YoloFolder:
    """A data set of YOLO.

    Attributes:
        root: Its folder, on disk or in an archive.
        names: The file that names the classes.
        labels: Folder of the photos by that of their texts, both relative to `root`.
        splits: "train", "val" or "test" by folder of photos, where each split has one of its own.
    """

    root: Path
    names: Path
    labels: dict[str, str] = field(repr=False)
    splits: dict[str, str] = field(repr=False)


def yolo_folder(root: Path) -> YoloFolder | None:
    """Return how a folder is one of YOLO's; None where it is none.

    Args:
        root: A folder or an archive.

    Raises:
        DataError: The archive cannot be read.
    """
    names = next((root / name for name in NAMES if sources.is_photo_file(root / name)), None)
    if names is None:
        return None
    if _is_pair(root):
        inner = _folders(root / "images")
        return YoloFolder(root, names, {"labels": "images"}, _in("images", find_split_folders(inner)))
    folders = _folders(root)
    split = {name: part for name, part in find_split_folders(folders).items() if _is_pair(root / name)}
    if split:
        return YoloFolder(root, names, {f"{name}/labels": f"{name}/images" for name in split}, split)
    darknet = {name: match[1] for name in folders if (match := DARKNET.fullmatch(name))}
    parts = {name: part for name, word in darknet.items() if (part := split_of(word))}
    return YoloFolder(root, names, {name: name for name in darknet}, parts) if darknet else None


def list_yolo(folder: YoloFolder, options: FolderOptions) -> Listing:
    """List the boxes of a folder of YOLO's as photos.

    Args:
        folder: The data set's.
        options: The margin around boxes.

    Raises:
        DataError: A file cannot be read as YOLO's; its line is named.
    """
    classes = _classes(folder.names)
    drawn: list[Drawn] = []
    for labels, images in folder.labels.items():
        for path in sorted(_texts(folder.root / labels)):
            name = path.relative_to(folder.root / labels).with_suffix("").as_posix()
            drawn += _drawn(path, f"{images}/{name}", classes)
    return _split(listing_of(folder.root, folder.root / next(iter(folder.labels)), drawn, options), folder.splits)


def _is_pair(folder: Path) -> bool:
    return all(sources.is_folder(folder / name) for name in ("images", "labels"))


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in sources.entries(folder) if entry.is_dir())
    except OSError:
        return []


def _in(folder: str, splits: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": split for name, split in splits.items()}


def _texts(folder: Path) -> Iterator[Path]:
    try:
        entries = sources.entries(folder)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from _texts(Path(entry.path))
        elif entry.name.endswith(".txt") and entry.name != "classes.txt":
            yield Path(entry.path)


def _drawn(path: Path, photo: str, classes: dict[int, str]) -> Iterator[Drawn]:
    """Read the boxes of a photo: a class's number, the middle and the sides. Raises DataError."""
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, x, y, width, height = (finite(word) for word in line.split()[:5])
            box = Box(x - width / 2, y - height / 2, width, height)
            yield Drawn(photo, classes[int(index)], box, is_share=True)
        except (ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"{path} has no box in line {number}. Expected a class below {len(classes)}, x, y, width, height."
            ) from error


def _classes(file: Path) -> dict[int, str]:
    """Names by number: a line each, or `names:` of a data.yaml. Raises DataError."""
    lines = read_utf8(file).splitlines()
    if file.suffix != ".yaml":
        return dict(enumerate(line.strip() for line in lines if line.strip()))
    start = next((i for i, line in enumerate(lines) if line.startswith("names:")), None)
    if start is None:
        raise DataError(f"{file} has no names of classes. Expected a line `names:`. Add it.")
    inline = lines[start].removeprefix("names:").strip()
    if inline.startswith("["):
        return dict(enumerate(word.strip().strip("'\"") for word in inline.strip("[]").split(",")))
    names: dict[int, str] = {}
    for line in lines[start + 1 :]:
        if match := re.fullmatch(r"\s*([0-9]+):\s*(.+?)\s*|\s*-\s+(.+?)\s*", line):
            names[int(match[1]) if match[1] else len(names)] = (match[2] or match[3]).strip("'\"")
        elif line.strip() and not line.strip().startswith("#"):
            break
    return names


def _split(listing: Listing, splits: dict[str, str]) -> Listing:
    """Return the same files, in splits where the folders of all are called so."""
    parts = [_part(one.path, splits) for one in listing.files]
    if "train" not in parts or None in parts:
        return listing
    listing.files = [replace(one, split=str(part)) for one, part in zip(listing.files, parts, strict=True)]
    listing.splits = list(dict.fromkeys(one.split for one in listing.files))
    return listing


def _part(path: str, splits: dict[str, str]) -> str | None:
    return next((split for name, split in splits.items() if path.startswith(f"{name}/")), None)
