"""Boxes that annotation programs have drawn, to photos of their own: COCO, Label Studio and CVAT.

A box becomes a crop, whose group is the photo that it is from: the crops of one photo are never parted. Label Studio's
choices are labels of whole photos.
"""

import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from PIL import Image

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.crops import Box
from regraft.data.decode import EmptyFile, Unreadable, decoded_size
from regraft.data.folder_layout import LabelledFile, Listing, Quarantined
from regraft.data.list_places import SAMPLE, PhotoPlaces

ENDINGS = (".json", ".xml")
DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, OverflowError)


class Drawn(NamedTuple):
    """What an annotation says of a photo.

    Attributes:
        photo: What it calls the photo.
        label: Name of the class.
        box: Where the thing is, in pixels, or in shares of the photo's sides; None for the whole photo.
        is_share: Whether the box is in shares.
    """

    photo: str
    label: str
    box: Box | None
    is_share: bool = False


def is_annotation(file: Path) -> bool:
    """Return whether a file may hold annotations, by its name."""
    return file.suffix.lower() in ENDINGS


def list_annotations(file: Path, options: FolderOptions) -> Listing:
    """List the boxes of an annotation file as photos.

    Args:
        file: JSON of COCO or of Label Studio, or XML of CVAT for images; the photos are beside it or in a folder there.
        options: The margin around boxes.

    Returns:
        A file for each box, or for each photo that has a class as a whole; annotations of no photo are quarantined.

    Raises:
        DataError: It is neither, damaged, or its photos could be in several places.
    """
    text = read_utf8(file)
    try:
        drawn = list(_from_xml(file, text) if file.suffix.lower() == ".xml" else _from_json(file, json.loads(text)))
    except DAMAGED as error:
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise DataError(
            f"{file} is no annotation file of COCO, Label Studio or CVAT that can be read ({what}). Export it again."
        ) from error
    root = _root_of(file, [one.photo for one in drawn])
    return replace(listing_of(root, file, drawn, options), list_file=file)


def _root_of(file: Path, photos: list[str]) -> Path:
    """Return the folder that holds the photos, which COCO has beside its folder `annotations`, or in `images` there."""
    around = file.parent.parent
    places = (file.parent, around, around / "images") if file.parent.name.lower() == "annotations" else ()
    return next((place for place in places if PhotoPlaces(place).has(photos[:SAMPLE])), file.parent)


def listing_of(root: Path, named: Path, drawn: list[Drawn], options: FolderOptions) -> Listing:
    """List what was drawn as photos.

    Args:
        root: The folder around the photos.
        named: Where the boxes are from, for messages.
        drawn: The boxes.
        options: The margin around boxes.

    Returns:
        A file for each box, or for each photo that has a class as a whole; what is of no photo is quarantined.

    Raises:
        DataError: The photos could be in several places.
    """
    places, listing = PhotoPlaces(root), Listing(root, splits=[""], options=options, labelled_by="list")
    listing.notes += places.settle(named, [one.photo for one in drawn] or [""])
    labels: dict[str, str] = {}
    sizes = _Sizes(root)
    for number, one in enumerate(drawn):
        photo = places.find(one.photo)
        label = unicodedata.normalize("NFC", one.label).strip()
        path, reason = photo, _why_not(root, photo, label)
        if reason is None:
            path, reason = _path_of(photo, one, options.margin, sizes)
        if reason is None and labels.get(path, label) != label:
            reason = f"the same box is of class {labels[path]!r} too"
        if reason is not None:
            listing.quarantine.append(Quarantined(f"{photo}#{number}" if one.box else photo, reason))
        elif path not in labels:
            labels[path] = label
            listing.files.append(LabelledFile("", label, path, group=f"={photo}" if one.box else ""))
        else:
            listing.notes.append(f"{named.name} has a box of {photo} twice")
    return listing


class _Sizes:
    """Sizes of photos as they are seen, each looked up once: (width, height) in pixels, or why there is none."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[int, int] | str] = {}

    def of(self, photo: str) -> tuple[int, int] | str:
        if photo not in self._known:
            try:
                self._known[photo] = _upright_size(sources.read_bytes(self._root / photo))
            except Unreadable as error:
                self._known[photo] = str(error)
        return self._known[photo]


def _path_of(photo: str, one: Drawn, margin: float, sizes: _Sizes) -> tuple[str, str | None]:
    """Return the path of a box as a photo, and why there is none."""
    if one.box is None:
        return photo, None
    if not one.is_share:
        return one.box.named(photo, margin), None
    size = sizes.of(photo)
    if isinstance(size, str):
        return photo, size
    (width, height), box = size, one.box
    return Box(box.left * width, box.top * height, box.width * width, box.height * height).named(photo, margin), None


def _upright_size(data: bytes) -> tuple[int, int]:
    """Width and height of a photo as it is seen, in pixels. Raises Unreadable."""
    width, height = decoded_size(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(274, 1) in (5, 6, 7, 8)
    except Exception:  # what is odd in EXIF turns nothing, as in decode
        turned = False
    return (height, width) if turned else (width, height)


def _why_not(root: Path, photo: str, label: str) -> str | None:
    if not label:
        return "a box without a class"
    if photo.startswith("/") or ".." in photo.split("/"):
        return "leads out of the list's folder"
    if not sources.is_photo_file(root / photo):
        return "the file does not exist"
    return None


def _from_json(file: Path, values: Any) -> Iterator[Drawn]:
    """Raises DataError, or one of DAMAGED."""
    if isinstance(values, dict) and {"images", "annotations", "categories"} <= values.keys():
        return _of_coco(values)
    if isinstance(values, list) and all(isinstance(one, dict) and "data" in one for one in values):
        return _of_label_studio(values)
    raise DataError(
        f"{file} is neither JSON of COCO (images, annotations, categories) nor of Label Studio (a list of tasks with "
        "data and annotations). Export it as one of these."
    )


def _of_coco(values: Mapping[str, Any]) -> Iterator[Drawn]:
    names = {one["id"]: str(one["name"]) for one in values["categories"]}
    photos = {one["id"]: _of_label_studio_url(str(one["file_name"])) for one in values["images"]}
    for one in values["annotations"]:
        left, top, width, height = map(finite, one["bbox"])
        yield Drawn(photos[one["image_id"]], names[one["category_id"]], Box(left, top, width, height))


def _of_label_studio(tasks: list[dict[str, Any]]) -> Iterator[Drawn]:
    """The last annotation of each task that was not cancelled. Boxes are in percent of the photo's sides."""
    for task in tasks:
        done = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
        for result in done[-1]["result"] if done else ():
            value, photo = result["value"], task["data"].get(result.get("to_name"))
            photo = _of_url(photo if isinstance(photo, str) else _only_text(task["data"]))
            if result["type"] == "choices":
                yield Drawn(photo, _only(value["choices"]), None)
            elif result["type"] == "rectanglelabels":
                sides = [finite(value[name]) / 100 for name in ("x", "y", "width", "height")]
                yield Drawn(photo, _only(value["rectanglelabels"]), Box(*sides), is_share=True)


def _only(names: list[str]) -> str:
    return str(names[0]) if len(names) == 1 else ""


def _only_text(data: Mapping[str, Any]) -> str:
    (text,) = [value for value in data.values() if isinstance(value, str)]
    return text


def _of_label_studio_url(text: str) -> str:
    """Return the path of a photo in COCO that Label Studio has written; of another program's, as it is."""
    return _of_url(text) if text.startswith("/data/") else text


def _of_url(text: str) -> str:
    """Return the path of a photo that Label Studio calls `/data/local-files/?d=set/a.jpg` or `/data/upload/1/...`."""
    parts = urlsplit(text)
    if "d" in (query := parse_qs(parts.query)):
        return query["d"][0].lstrip("/")
    if parts.path.startswith("/data/upload/"):
        return re.sub(r"^[0-9a-f]{8}-", "", unquote(parts.path).rpartition("/")[2])
    return unquote(parts.path).lstrip("/") if parts.scheme else text.lstrip("/")


def _from_xml(file: Path, text: str) -> Iterator[Drawn]:
    """Boxes and tags of CVAT for images. Raises DataError, or one of DAMAGED."""
    if re.search(r"<!(DOCTYPE|ENTITY)", text, re.IGNORECASE):
        raise DataError(f"{file} declares entities, which CVAT does not write. Expected none. Export it again.")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  # it has no entities
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    if root.tag != "annotations":
        raise DataError(f"{file} begins with <{root.tag}>. Expected <annotations>, as CVAT for images has it.")
    for image in root.iter("image"):
        photo = image.attrib["name"]
        for box in image.iter("box"):
            left, top, right, bottom = (finite(box.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
            yield Drawn(photo, box.attrib["label"], Box(left, top, right - left, bottom - top))
        for tag in image.iter("tag"):
            yield Drawn(photo, tag.attrib["label"], None)


def finite(value: Any) -> float:
    """Return a number that a place in a photo may be. Raises ValueError for any other, and for what is none."""
    number = float(value)
    if not abs(number) < 1e9:
        raise ValueError(f"{value} is no place in a photo")
    return number


def read_utf8(file: Path) -> str:
    """Read a file of UTF-8, which may be empty. Raises DataError."""
    try:
        return sources.read_bytes(file).decode("utf-8-sig")
    except EmptyFile:
        return ""
    except Unreadable as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
