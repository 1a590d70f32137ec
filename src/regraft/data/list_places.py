"""Where the photos of a list lie: at their paths, or as other programs name them, where one reading is possible.

A name may lack its extension, be a Windows path, or begin in a folder beside the list.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from regraft.core.errors import DataError
from regraft.data import sources
from regraft.data.split_names import split_of

SAMPLE = 200  # rows by which it is decided where photos lie
DRIVE = re.compile(r"[A-Za-z]:/")
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".xml")


class PhotoPlaces:
    """The photos around a list, by the names that it has for them.

    Args:
        root: The list's folder, on disk or in an archive.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stems = cache(self._read_stems)
        self._start, self._num_cut = "", 0

    def settle(self, file: Path, names: Sequence[str]) -> list[str]:
        """Decide where the photos lie: at their paths, or else in the one folder that has some, or below a drive.

        Args:
            file: The list, for its name.
            names: What it calls its photos.

        Returns:
            A sentence where photos are not at their paths; else none.

        Raises:
            DataError: Several folders have some.
        """
        some = names[:: 1 + len(names) // SAMPLE]
        if self._has_any("", 0, some):
            return []
        starts = [start for start in self._folders() if self._has_any(start, 0, some)]
        if len(starts) > 1 and (meant := split_of(file.stem)):
            starts = [start for start in starts if split_of(start) == meant] or starts
        if len(starts) > 1:
            raise DataError(
                f"{file} names photos such as {names[0]}, which are in {' and in '.join(starts[:3])}. Expected one "
                "folder. Write the folder into the paths, or move the list into it."
            )
        if starts:
            self._start = starts[0]
            return [f"the photos of {file.name} are in {self.root / starts[0]}"]
        deepest = max((_portable(name).count("/") for name in some if DRIVE.match(_portable(name))), default=0)
        cuts = [cut for cut in range(1, deepest + 1) if self._has_any("", cut, some)]
        if len(cuts) != 1:
            return []
        self._num_cut = cuts[0]
        return [f"the paths of {file.name} begin on another machine; {self.find(names[0])} is read for {names[0]}"]

    def find(self, name: str) -> str:
        """Return the path of a photo, relative to the list's folder; the name itself where there is none.

        Args:
            name: What the list calls it.

        Raises:
            DataError: Several photos have this name but for their extensions.
        """
        paths = self._paths(name)
        if len(paths) > 1:
            raise DataError(f"{name} could be {' or '.join(paths)} in {self.root}. Write the extension into the list.")
        return paths[0] if paths else name

    def has(self, names: Sequence[str], *, as_paths: bool = False) -> bool:
        """Return whether a photo of one of these names is there.

        Args:
            names: Of photos, perhaps.
            as_paths: Whether only their paths count, and not names without extension, nor folders beside the list.
        """
        if as_paths:
            return any(_portable(path) == _portable(name) for name in names for path in self._at("", 0, name))
        return any(self._has_any(start, 0, names) for start in ("", *self._folders()))

    def _paths(self, name: str) -> list[str]:
        return self._at(self._start, self._num_cut, name)

    def _has_any(self, start: str, num_cut: int, names: Sequence[str]) -> bool:
        return any(self._at(start, num_cut, name) for name in names)

    def _at(self, start: str, num_cut: int, name: str) -> list[str]:
        for text in dict.fromkeys((name, _portable(name))):
            path = "/".join(filter(None, (start, *text.split("/")[num_cut:]))) if start or num_cut else text
            folder, _, last = path.rpartition("/")
            if not last or path.startswith("/") or ".." in path.split("/"):
                continue
            stems = self._stems(folder)
            if path in stems.get(last, ()):
                return [path]
            if same := [one for one in stems.get(last, ()) if not one.lower().endswith(LISTS)]:
                return same
        return []

    def _folders(self) -> list[str]:
        try:
            return sorted(entry.name for entry in sources.entries(self.root) if entry.is_dir())
        except OSError:
            return []

    def _read_stems(self, folder: str) -> dict[str, list[str]]:
        """Paths of the files in a folder by their names, and by these without their extensions."""
        stems: dict[str, list[str]] = defaultdict(list)
        try:
            entries = sources.entries(self.root / folder)
        except (OSError, ValueError):
            return {}
        for entry in entries:
            if not entry.is_dir():
                path = f"{folder}/{entry.name}" if folder else entry.name
                for name in {entry.name, entry.name.rpartition(".")[0] or entry.name}:
                    stems[name].append(path)
        return dict(stems)


def _portable(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")
