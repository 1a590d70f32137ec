"""A folder to labelled files: which file is of which class and split, and what is not to be read at all.

Whatever could be read in more than one way is refused, by its path.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, filterfalse
from pathlib import Path

from regraft.core.config import AS_FOUND, FolderOptions
from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.class_level import reading_note, refuse_two_readings, without_containers
from regraft.data.class_names import refuse_twins
from regraft.data.folder_entries import (
    folders_in,
    has_photos_in_folders,
    is_folder_entry,
    is_junk,
    is_manifest,
    list_entries,
    names_below,
    only_folder,
    visible_entries,
)
from regraft.data.links import LEADS_OUT, note_on_links, why_not_entered, why_not_followed, why_not_regular
from regraft.data.sources import FolderEntry, MemberEntry
from regraft.data.split_names import find_split_folders, is_container, is_unlabelled, mentions_split, split_of

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Quarantined:
    """A file that is not used.

    Attributes:
        path: Relative to the data set's root.
        reason: Why it is not used.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file with its class and its split.

    Attributes:
        split: "train", "val" or "test"; "" where there are none.
        label: Name of its class.
        path: Relative to the data set's root.
        group: What it belongs with, such as the photo that it is cut from; "" where it stands for itself.
    """

    split: str
    label: str
    path: str
    group: str = ""


@dataclass
class Listing:
    """What was found below a folder, or by a list.

    Attributes:
        root: The folder that paths are relative to.
        splits: Names of the splits, [""] where there are none.
        files: What is to be used.
        quarantine: What is not, and why.
        notes: Sentences about what else was seen.
        loose: Files beside the class folders.
        options: How it was read.
        list_file: The list that named the files; None where folders did.
        labelled_by: "folder" or "list": what says which photo is of which class.
        walked: Device and inode of every folder that was read.
        unfollowed: Links to folders that were not followed.
    """

    root: Path
    splits: list[str] = field(default_factory=list)
    files: list[LabelledFile] = field(default_factory=list)
    quarantine: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    options: FolderOptions = AS_FOUND
    list_file: Path | None = None
    labelled_by: str = "folder"
    walked: set[tuple[int, int]] = field(default_factory=set)
    unfollowed: list[str] = field(default_factory=list)

    def as_split(self, split: str) -> "Listing":
        """Return the same files as one split."""
        return replace(self, files=[replace(one, split=split) for one in self.files], splits=[split])


def list_folder(root: Path, options: FolderOptions = AS_FOUND) -> Listing:
    """List `root/<class>/<image>`, where a class may be nested, as `a/x`; or the same below train, val and test.

    Args:
        root: The folder. One that holds nothing but another folder of classes is looked through.
        options: How folders in class folders, and links, are read.

    Returns:
        Files with their splits and classes, these as text in Unicode's normal form C.

    Raises:
        DataError: It cannot be listed, or not be read in one way only.
    """
    listing = Listing(root, options=options)
    listing.quarantine += [Quarantined(name, reason) for name, reason in sources.refused(root).items()]
    for split, folder in _split_folders(listing):
        if split == "test" and (reason := _why_unlabelled(folder, listing)):
            listing.notes.append(reason)
            continue
        listing.splits.append(split)
        refuse_twins(folder, "folders", [entry.name for entry in visible_entries(folder, []) if is_folder_entry(entry)])
        labelled = _at_one_level(folder, list(_labelled_files(folder, listing)), listing)
        listing.files += [LabelledFile(split, unicodedata.normalize("NFC", label), path) for label, path in labelled]
    listing.notes += note_on_links(f"lead out of {root}", [q.path for q in listing.quarantine if q.reason == LEADS_OUT])
    listing.notes += note_on_links(f"to folders are not followed in {root}", listing.unfollowed)
    return listing


def joined_listings(root: Path, listings: Sequence[Listing], options: FolderOptions = AS_FOUND) -> Listing:
    """Join listings into one.

    Args:
        root: A folder around all of theirs.
        listings: Of which all are split, or none.
        options: How they were read.

    Raises:
        DataError: Some are split and some are not.
    """
    whole = Listing(root, options=options)
    for one in listings:
        place = one.root.relative_to(root)
        whole.files += [replace(file, path=str(place / file.path)) for file in one.files]
        whole.quarantine += [replace(file, path=str(place / file.path)) for file in one.quarantine]
        whole.notes += one.notes
    whole.labelled_by = "list" if any(one.labelled_by == "list" for one in listings) else "folder"
    whole.splits = list(dict.fromkeys(chain.from_iterable(one.splits for one in listings)))
    if "" in whole.splits and len(whole.splits) > 1:
        raise DataError(
            f"Some of the places in {root} are split into train and val and others are not. Name them apart."
        )
    return whole


def _split_folders(listing: Listing) -> list[tuple[str, Path]]:
    """`[("train", root/train), ...]`, or `[("", root)]` when the folder is not split."""
    place = _around_splits(listing.root)
    folders = [entry for entry in list_entries(place) if is_folder_entry(entry) and not is_junk(entry.name)]
    named = find_split_folders([entry.name for entry in folders])
    only_splits = len(named) == len(folders) > 1  # then "train" is no class, even if it holds photos only
    if "train" not in named.values() or not (only_splits or folders_in(place / _folder_of("train", named))):
        return [("", _past_wrappers(listing.root, listing))]
    _check_splits(place, [entry for entry in folders if entry.name in named], named, listing.options)
    _set_aside_files(place, listing)
    _leave_others([entry.name for entry in folders if entry.name not in named], place, named, listing)
    places = [(split, place / _folder_of(split, named)) for split in SPLITS if split in named.values()]
    if place != listing.root:
        _set_aside_files(listing.root, listing)
    if _looked_through(places[0][1], listing.options) == places[0][1]:
        return places
    return [(split, _past_wrappers(folder, listing)) for split, folder in places]


def _check_splits(root: Path, folders: list[FolderEntry], named: Mapping[str, str], options: FolderOptions) -> None:
    for split in SPLITS:
        same = [name for name, meaning in named.items() if meaning == split]
        if len(same) > 1:
            raise DataError(
                f"{root} has more than one {split} folder: {', '.join(same)}. Expected one. Merge them or rename one."
            )
    for entry in folders:
        if reason := why_not_followed(Path(entry.path), root, anywhere=options.follow_links):
            raise DataError(
                f"{entry.path} is {reason}. Expected a folder. Follow links with --follow-links, or copy the photos "
                "to where the link is."
            )


def _leave_others(others: list[str], root: Path, named: Mapping[str, str], listing: Listing) -> None:
    """Leave out folders beside the splits, unless they could be splits, or train a class. Raises DataError."""
    if not others:
        return
    classes = set(folders_in(root / _folder_of("train", named)))
    alike = {name: classes & set(names_below(root / name)) for name in others}
    for name in others:
        if mentions_split(name) and alike[name]:
            raise DataError(
                f"{root} has {name} beside {', '.join(named)}, which could be a split or is to be left out. Rename it "
                "to train, val or test, or move it to another place."
            )
        if len(named) == 1 and not alike[name] and has_photos_in_folders(root / name):
            (train,) = named
            raise DataError(
                f"{root} has {train} beside {', '.join(others[:3])}, so {train} could be a split, or a class like "
                f"those. If it is the split, point regraft at {root / train}, or move the others to another place; if "
                "it is a class, rename it."
            )
    listing.notes.append(f"skipped in {root}: {', '.join(others)} (not a split: expected train, val and test)")


def _folder_of(split: str, named: Mapping[str, str]) -> str:
    return next(name for name, meaning in named.items() if meaning == split)


def _around_splits(root: Path) -> Path:
    """Return the folder of the splits: the only one in `root`, if its name says that it is nothing else, or `root`."""
    inner = only_folder(root)
    if inner is None or not is_container(inner.name) or "train" not in find_split_folders(folders_in(inner)).values():
        return root
    return inner


def _past_wrappers(folder: Path, listing: Listing) -> Path:
    """Return the folder of the classes, with a note where it is another one; files on the way to it are set aside."""
    place = _looked_through(folder, listing.options)
    if place != folder:
        listing.notes.append(f"the classes are the folders in {place}, which is alone in {place.parent}")
        for around in [one for one in place.parents if one.is_relative_to(folder)]:
            _set_aside_files(around, listing)
    return place


def _looked_through(folder: Path, options: FolderOptions) -> Path:
    """Return the folder of the classes: one that is alone in another, and holds folders but no splits, is no class."""
    place = folder
    while (inner := only_folder(place)) is not None:
        names = folders_in(inner)
        if not names or any(split_of(name) for name in names) or _is_expected(inner.name, names, options):
            break
        if options.class_level == "top" and not any(folders_in(inner / name) for name in names):
            break
        place = inner
    return place


def _is_expected(name: str, inner: Sequence[str], options: FolderOptions) -> bool:
    """Whether a folder is one of the classes that are known, or holds some."""
    return any(known in options.known_classes for known in (name, *(f"{name}/{other}" for other in inner)))


def _why_unlabelled(folder: Path, listing: Listing) -> str | None:
    """Why the model is not evaluated on a test folder: its photos are in no class folders. None where they are."""
    names, files = folders_in(folder), [e for e in visible_entries(folder, []) if not is_folder_entry(e)]
    if len(names) == 1 and not folders_in(folder / names[0]) and is_unlabelled(names[0]):
        if names[0] in {one.label for one in listing.files}:
            return None
        files += visible_entries(folder / names[0], [])
    elif names:
        return None
    if not files:
        return None
    return (
        f"left out: {folder}, whose {len(files)} files are in no class folders, so nothing can be judged on them; "
        "regraft predict names them"
    )


def _labelled_files(folder: Path, listing: Listing) -> Iterator[tuple[str, str]]:
    """`(class, path)` of one split's files."""
    entries = visible_entries(folder, listing.notes)
    class_folders = [entry for entry in entries if is_folder_entry(entry)]
    loose = [entry for entry in entries if not is_folder_entry(entry)]
    if loose and not class_folders:
        lists = [entry.path for entry in loose if is_manifest(Path(entry.path))]
        cure = f" If {lists[0]} says which is which, name that file instead." if lists else ""
        raise DataError(
            f"{folder} has no class folders. Expected {folder}/<class>/<image>; found {len(loose)} files directly "
            f"inside. Put the photos of each class in a folder of their own.{cure}"
        )
    _set_aside(loose, listing)
    for class_folder in class_folders:
        if _is_entered(class_folder, listing):
            yield from _files_of_class(Path(class_folder.path), class_folder.name, listing)


def _at_one_level(folder: Path, labelled: list[tuple[str, str]], listing: Listing) -> list[tuple[str, str]]:
    """Files with classes named by the folders that were meant; refused where these are not clear. Raises DataError."""
    labels = {label for label, _ in labelled}
    if listing.options.class_level is not None or labels & set(listing.options.known_classes):
        return labelled
    if tail := without_containers(labels):
        listing.notes.append(f"the classes of {folder} are named without {tail}, which is in all of them")
        return [(label.removesuffix(tail), path) for label, path in labelled]
    refuse_two_readings(folder, labels)
    if not any(note.startswith("folders in the class folders") for note in listing.notes):
        listing.notes += reading_note(folder, labels)
    return labelled


def _files_of_class(folder: Path, name: str, listing: Listing) -> Iterator[tuple[str, str]]:
    """Files of one class, or of the classes nested in it, which are called `name/inner` or as the options say."""
    entries, is_inner = visible_entries(folder, listing.notes), partial(_is_inner_folder, listing.options)
    inner, files = list(filter(is_inner, entries)), list(filterfalse(is_inner, entries))
    level = listing.options.class_level
    if level is None:
        _refuse_mixed(folder, inner, files)
    if not entries:
        listing.notes.append(f"class folder {folder} is empty")
    if level != "top":
        refuse_twins(folder, "folders", [entry.name for entry in inner])
    for entry in inner:
        if _is_entered(entry, listing):
            label = {"top": name, "leaf": entry.name}.get(level or "path", f"{name}/{entry.name}")
            yield from _files_of_class(Path(entry.path), label, listing)
    place = folder.relative_to(listing.root)
    for entry in files:
        if reason := why_not_regular(entry, listing.root, anywhere=listing.options.follow_links):
            listing.unfollowed += [f"{place}/{entry.name}"] if is_folder_entry(entry) and reason != LEADS_OUT else []
            listing.quarantine.append(Quarantined(f"{place}/{entry.name}", reason))
        else:
            yield name, f"{place}/{entry.name}"


def _refuse_mixed(folder: Path, inner: list[FolderEntry], files: list[FolderEntry]) -> None:
    """Raise DataError for a class folder of photos and folders, or of splits."""
    names = [entry.name for entry in inner]
    if inner and files:
        raise DataError(
            f"{folder} holds photos and folders ({', '.join(names[:3])}), so it could be one class or several. "
            f"Expected one or the other. Move the photos or the folders, name {folder} itself, or take all that it "
            "holds for one class with --class-level top."
        )
    if splits := [name for name in names if split_of(name)]:
        raise DataError(
            f"{folder} holds {', '.join(splits)}, so it could be a data set of its own. Expected class folders in "
            f"{folder.parent}. Point regraft at {folder}."
        )


def _is_inner_folder(options: FolderOptions, entry: FolderEntry) -> bool:
    return is_folder_entry(entry) if options.follow_links else entry.is_dir(follow_symlinks=False)


def _is_entered(entry: FolderEntry, listing: Listing) -> bool:
    """Whether a folder is read; if it is a link that is not followed, or leads in a circle, it is quarantined."""
    if isinstance(entry, MemberEntry):
        return True
    anywhere = listing.options.follow_links
    reason = why_not_entered(Path(entry.path), listing.root, listing.walked, anywhere=anywhere)
    if reason:
        listing.quarantine.append(Quarantined(_relative(entry, listing.root), reason))
    return reason is None


def _set_aside_files(folder: Path, listing: Listing) -> None:
    _set_aside([entry for entry in visible_entries(folder, listing.notes) if not is_folder_entry(entry)], listing)


def _set_aside(loose: list[FolderEntry], listing: Listing) -> None:
    listing.loose += [Path(entry.path) for entry in loose]
    listing.quarantine += [Quarantined(_relative(entry, listing.root), "not inside a class folder") for entry in loose]


def _relative(entry: FolderEntry, root: Path) -> str:
    return str(Path(entry.path).relative_to(root))
