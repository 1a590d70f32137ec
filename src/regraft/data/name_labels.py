"""Labels in the names of photos: what a regular expression finds in a path is the class, as in `cat.123.jpg`."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from regraft.core.config import FolderOptions
from regraft.core.errors import ConfigError, DataError
from regraft.data import sources
from regraft.data.folder_entries import is_junk, natural_key
from regraft.data.folder_layout import LabelledFile, Listing, Quarantined
from regraft.data.links import why_not_entered, why_not_regular
from regraft.data.split_names import find_split_folders


def list_by_name(root: Path, options: FolderOptions) -> Listing:
    """List all files below a folder, each with the class that `options.label_by` finds in its path.

    Args:
        root: A folder or an archive. Where its folders are called train and val or test, they are splits.
        options: The expression, whose first bracket, or all that it finds, is the class; whether links are followed.

    Returns:
        Files with their classes; those in whose paths nothing is found are quarantined.

    Raises:
        ConfigError: The expression is none, or finds nothing at all.
        DataError: A folder cannot be listed.
    """
    pattern = options.label_by or ""
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ConfigError(f"--label-by {pattern!r} is no regular expression: {error}.") from error
    listing = Listing(root, options=options)
    listing.quarantine += [Quarantined(name, reason) for name, reason in sources.refused(root).items()]
    paths = list(_below(root, listing))
    labels = {path: match[match.re.groups and 1] for path in paths if (match := search(path))}
    if paths and not labels:
        raise ConfigError(f"--label-by {pattern!r} finds nothing in any path, such as {paths[0]!r}.")
    splits = find_split_folders(sorted({path.partition("/")[0] for path in labels if "/" in path}))
    is_split = "train" in splits.values() and all(path.partition("/")[0] in splits for path in labels)
    for path in paths:
        if label := unicodedata.normalize("NFC", labels.get(path) or "").strip():
            listing.files.append(LabelledFile(splits[path.partition("/")[0]] if is_split else "", label, path))
        else:
            listing.quarantine.append(Quarantined(path, f"--label-by {pattern!r} finds no class in its path"))
    listing.splits = list(dict.fromkeys(one.split for one in listing.files))
    return listing


def _below(folder: Path, listing: Listing) -> Iterator[str]:
    """Yield the paths of all files below a folder, in natural order. Raises DataError."""
    try:
        entries = sorted(sources.entries(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"Cannot list {folder}: {reason}. Check its permissions.") from error
    anywhere = listing.options.follow_links
    for entry in (one for one in entries if not is_junk(one.name)):
        path = str(Path(entry.path).relative_to(listing.root))
        why: str | None = None
        if not entry.is_dir() or (entry.is_symlink() and not anywhere):
            why = why_not_regular(entry, listing.root, anywhere=anywhere)
            if why is None:
                yield path
        elif not isinstance(entry, sources.MemberEntry):
            why = why_not_entered(Path(entry.path), listing.root, listing.walked, anywhere=anywhere)
        if why:
            listing.quarantine.append(Quarantined(path, why))
        elif entry.is_dir():
            yield from _below(Path(entry.path), listing)
