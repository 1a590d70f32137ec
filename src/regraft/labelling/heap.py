"""The photos of a sitting: which files there are, and what becomes known of them while their features are computed."""

import threading
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from regraft.data.feature_cache import empty_table
from regraft.data.folder_entries import natural_key
from regraft.data.split_names import is_unlabelled
from regraft.data.video_frames import group_of, is_video

AUDIT_SHARE, MOST_AUDITED = 0.1, 300  # of the photos that are kept for the audit


@dataclass(frozen=True)
class Heap:
    """Files that may be photos.

    Attributes:
        root: The folder.
        paths: N paths relative to it, with "/" between names.
        given: N names of the classes whose folders they lie in; "" for none.
        classes: Names that were given, by folders or by the user.
    """

    root: Path
    paths: tuple[str, ...] = field(repr=False)
    given: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def order(self) -> np.ndarray:
        """Indices `(N,)` int64 in the order in which features are computed: random, so that the first ones show all."""
        return np.random.default_rng(0).permutation(len(self.paths))

    @property
    def audited(self) -> np.ndarray:
        """`(N,)` bool, the photos kept for the audit: drawn at random from those that have no label.

        Of a video, all frames are kept or none, since they look alike; one that is too long for the audit is left out.
        """
        unlabelled = np.array([not name for name in self.given], bool)
        order = np.random.default_rng(1).permutation(len(self.paths))
        order = order[unlabelled[order]]
        kept, room = np.zeros(len(self.paths), bool), min(MOST_AUDITED, int(AUDIT_SHARE * len(order)))
        together: dict[str, list[int]] = {}
        for i in order:
            together.setdefault(group_of(self.paths[i]) or self.paths[i], []).append(int(i))
        for members in together.values():
            if len(members) <= room:
                kept[members] = True
                room -= len(members)
        return kept


def heap_of(root: Path, files: Sequence[Path], classes: Sequence[str] = ()) -> Heap:
    """Make a heap of files, with the labels that their folders give.

    With names of classes, a photo is labelled by the innermost of its folders that has such a name. Without, the outer
    folders are the classes where other photos lie loose beside them, or in a folder whose name says nothing, such as
    `unlabelled`: then some are sorted already. Where all photos lie in folders, or none, no folder labels anything.

    Args:
        root: The folder.
        files: Below it.
        classes: Names of the classes; () where they are not known.
    """
    paths = [file.relative_to(root).as_posix() for file in files]
    known = tuple(classes) or _class_folders(paths)
    number = set(known)
    given = tuple(next((name for name in reversed(_folders(path)) if name in number), "") for path in paths)
    return Heap(root, tuple(paths), given, known)


def _class_folders(paths: Sequence[str]) -> tuple[str, ...]:
    """Return the outer folders that are classes, where some photos are sorted and others are not."""
    outer = {folders[0] if (folders := _folders(path)) else "" for path in paths}
    rest = {name for name in outer if not name or is_unlabelled(name)}
    return tuple(sorted(outer - rest, key=natural_key)) if rest else ()


def _folders(path: str) -> list[str]:
    """Names of the folders that a path leads through, in Unicode's normal form C; a frame's video is none."""
    names = unicodedata.normalize("NFC", path).split("/")[:-1]
    return names[:-1] if names and is_video(Path(names[-1])) else names


class Contents:
    """What is known of the photos of a heap so far. Every method may be called from any thread.

    Copies of one content are one photo: the first that was met stands for all of them.

    Args:
        num_photos: Number N of files in the heap.

    Attributes:
        hashes: N SHA-256 of contents; "" for what is not known yet, or cannot be read.
        copies: For an index, the first index of the same content.
        unreadable: Why a file is not used, by index.
        features: `(N, D)` float32; rows of photos that are not ready hold anything. `(0, 0)` before the first.
        is_ready: `(N,)` bool, photos whose features are there, copies left out.
        closer: `(N, R)` float32, projected features of larger photos, for the rows that are ready; None before that.
        num_changes: Grows with every call of `put`.
    """

    def __init__(self, num_photos: int) -> None:
        self.hashes = [""] * num_photos
        self.copies: dict[int, int] = {}
        self.unreadable: dict[int, str] = {}
        self.features = np.empty((0, 0), np.float32)
        self.is_ready = np.zeros(num_photos, bool)
        self.closer: np.ndarray | None = None
        self.num_changes = 0
        self._first: dict[str, int] = {}
        self._looked_at: list[int] = []
        self._lock = threading.Lock()

    def put(
        self,
        indices: Sequence[int],
        hashes: Sequence[str],
        rows: np.ndarray,
        unreadable: Mapping[int, str] | None = None,
    ) -> None:
        """Make photos known.

        Args:
            indices: Of n photos.
            hashes: Their n content hashes.
            rows: Their features `(n, D)`.
            unreadable: Why other files cannot be used, by index.
        """
        with self._lock:
            if not self.features.size and len(rows):
                self.features = empty_table(len(self.hashes), rows.shape[1])
            for index, content, row in zip(indices, hashes, rows, strict=True):
                self.hashes[index] = content
                first = self._first.setdefault(content, index)
                if first != index:
                    self.copies[index] = first
                else:
                    self.features[index] = row
                    self.is_ready[index] = True
            self.unreadable.update(unreadable or {})
            self._looked_at += [*indices, *(unreadable or {})]
            self.num_changes += 1

    def put_closer(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """Make known what was found in larger photos.

        Args:
            indices: `(n,)` int64, all photos that are ready.
            rows: Their projected features `(n, R)`.
        """
        closer = np.zeros((len(self.hashes), rows.shape[1]), np.float32)
        closer[indices] = rows
        self.closer = closer

    def new_since(self, num_known: int) -> list[tuple[int, str]]:
        """Return index and content hash of photos that have become known, once `num_known` files were looked at.

        Args:
            num_known: As it was when this was asked before.
        """
        with self._lock:
            return [(i, self.hashes[i]) for i in self._looked_at[num_known:] if self.is_ready[i]]

    def index_of(self, content: str) -> int | None:
        """Return the photo with a content; None where none is known yet."""
        return self._first.get(content)

    @property
    def num_known(self) -> int:
        """Number of files that were looked at."""
        return len(self._looked_at)
