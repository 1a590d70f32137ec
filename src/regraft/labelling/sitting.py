"""A sitting: what is shown next, and what was said of it.

Each answer is in the journal before the call returns, and the head is solved again on another thread.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.core.errors import ConfigError, DataError
from regraft.labelling.cards import KINDS, PAGE_SIZE, Answer, Card, Conflict, Page, Status
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.journal import Journal
from regraft.labelling.labels import Labels, Verdict, checked_name
from regraft.run_dir import now

FOLDER = "folder"  # who says what the folder of a photo says


class Sitting:
    """Photos, what is known of them, and what people say of them. Every method may be called from any thread.

    Args:
        heap: The photos.
        journal: Where answers are kept; what it holds already counts.
        contents: What is known of the photos; whoever computes features calls its `put`, then `features_arrived`.
    """

    def __init__(self, heap: Heap, journal: Journal, contents: Contents | None = None) -> None:
        self.heap = heap
        self.contents = contents or Contents(len(heap))
        self._journal = journal
        self._lock = threading.RLock()
        self._labels = Labels()
        self._is_audited = heap.audited
        for entry in journal.entries:
            self._labels.apply(entry)
        if new := [name for name in heap.classes if name not in self._labels.classes]:
            self._keep({"kind": "classes", "names": new})

    def close(self) -> None:
        """End the sitting: its journal is closed."""
        self._journal.close()

    def features_arrived(self) -> None:
        """Take notice of photos that were made known to `contents`: labels of their folders count, guesses follow."""
        with self._lock:
            known = ((i, self.contents.hashes[i], name) for i, name in enumerate(self.heap.given) if name)
            fresh = {content: (i, name) for i, content, name in known if content and not self._was_answered(content)}
            if fresh:
                said = [
                    {"sha256": content, "path": self.heap.paths[i], "label": name}
                    for content, (i, name) in fresh.items()
                ]
                self._keep({"kind": "answer", "person": FOLDER, "at": now(), "answers": said})

    def status(self) -> Status:
        """Return how far the sitting is."""
        with self._lock:
            verdicts = self._verdicts()
            labelled = [one for one in verdicts.values() if one.label >= 0]
            num_aside = sum(one.is_set_aside for one in verdicts.values())
            classes = tuple(self._labels.classes)
            counts = np.bincount([one.label for one in labelled], minlength=len(classes))
            ready = int(self.contents.is_ready.sum())
            num_photos = len(self.heap) - len(self.contents.copies) - len(self.contents.unreadable)
            return Status(
                num_photos=num_photos,
                num_featured=ready,
                num_unreadable=len(self.contents.unreadable),
                num_labelled=len(labelled),
                num_set_aside=num_aside,
                num_audit_left=sum(self._is_for_audit(i) for i in self._open()),
                classes=classes,
                counts={name: int(count) for name, count in zip(classes, counts, strict=True)},
                version=self._labels.version,
                solved_version=-1,
                accuracy=None,
                curve=(),
                expected_gain=None,
                is_done=len(labelled) + num_aside == num_photos,
            )

    def page(self, kind: str, size: int = PAGE_SIZE, class_name: str | None = None) -> Page:
        """Return photos to look at next.

        Args:
            kind: "groups", "guesses", "questions", "doubts" or "audit".
            size: How many at most.
            class_name: For guesses, the class that is wanted; None for the surest.

        Raises:
            ConfigError: The kind is unknown.
            DataError: There is no such class.
        """
        if kind not in KINDS:
            raise ConfigError(f"Unknown kind of page {kind!r}. Expected one of: {', '.join(KINDS)}.")
        with self._lock:
            chosen = [i for i in self._open() if self._is_for_audit(i) == (kind == "audit")]
            return Page(kind, None, tuple(map(self._card, chosen[:size])), len(chosen), self._labels.version)

    def answer(self, answers: Sequence[Answer], *, person: str, seen_version: int | None = None) -> int:
        """Keep answers: they are on disk when this returns. One call is one step, which `undo` takes back.

        Args:
            answers: At most one for a photo.
            person: Who gives them.
            seen_version: Of the page that they are about; None to overwrite whatever was said since.

        Returns:
            The version that has them.

        Raises:
            Conflict: A photo was answered, otherwise, since `seen_version`. Nothing is applied.
            DataError: There is no such photo or class.
            OutputError: They could not be written, and do not count.
        """
        with self._lock:
            said = [self._entry(one) for one in answers]
            if len({one["sha256"] for one in said}) < len(said):
                raise DataError("A photo is answered twice in one call. Expected one answer for each photo.")
            self._refuse_conflicts(answers, seen_version)
            if not said:
                return self._labels.version
            return self._keep({"kind": "answer", "person": person, "at": now(), "answers": said})

    def undo(self, *, person: str) -> int:
        """Take back the last step of a person that is not taken back yet.

        Returns:
            The version without it; the same as before where there is no step.

        Raises:
            OutputError: It could not be written, and the step stays.
        """
        with self._lock:
            step = self._labels.last_step(person)
            if step is None:
                return self._labels.version
            return self._keep({"kind": "undo", "person": person, "at": now(), "undoes": step})

    def add_class(self, name: str) -> str:
        """Add a class.

        Returns:
            Its name as it is kept.

        Raises:
            DataError: It cannot be the name of a class, or is that of one.
        """
        with self._lock:
            kept = checked_name(name, self._labels.classes)
            self._keep({"kind": "classes", "names": [kept]})
            return kept

    def rename_class(self, old: str, new: str) -> str:
        """Give a class another name.

        Returns:
            The new name as it is kept.

        Raises:
            DataError: There is no class `old`, or `new` cannot be its name.
        """
        with self._lock:
            self._labels.index(old)
            kept = checked_name(new, [name for name in self._labels.classes if name != old])
            self._keep({"kind": "rename", "old": old, "new": kept})
            return kept

    def photo_path(self, photo: int) -> Path:
        """Return the file of a photo, which is only ever read.

        Raises:
            DataError: There is no such photo.
        """
        self._check_photo(photo)
        return self.heap.root / self.heap.paths[photo]

    def train(self) -> None:
        """Start the training of a model on the labels that there are; `status` says how far it is."""
        raise NotImplementedError

    def _keep(self, entry: Mapping[str, Any]) -> int:
        """Write an entry to the journal, then let it count."""
        self._journal.append(entry)
        self._labels.apply(entry)
        return self._labels.version

    def _entry(self, answer: Answer) -> dict[str, Any]:
        """Write an answer as the journal keeps it."""
        self._check_photo(answer.photo)
        content = self.contents.hashes[answer.photo]
        if not content:
            raise DataError(
                f"{self.heap.paths[answer.photo]} was not read yet, or cannot be. Answer it when it is shown."
            )
        if answer.label is not None:
            self._labels.index(answer.label)
        label = None if answer.set_aside else answer.label
        entry: dict[str, Any] = {"sha256": content, "path": self.heap.paths[answer.photo], "label": label}
        if answer.set_aside:
            entry["set_aside"] = True
        if answer.is_audit and self._is_for_audit(answer.photo) and not self._was_answered(content):
            entry["is_audit"] = True
        return entry

    def _refuse_conflicts(self, answers: Sequence[Answer], seen_version: int | None) -> None:
        """Raise Conflict for photos that have another answer since a version."""
        if seen_version is None:
            return
        since = [one for one in answers if self._labels.changed_at(self.contents.hashes[one.photo]) > seen_version]
        others = tuple(one.photo for one in since if not self._is_said(one))
        if others:
            raise Conflict(others, tuple(self.heap.paths[photo] for photo in others))

    def _is_said(self, answer: Answer) -> bool:
        """Return whether a photo has this very answer already: a call whose reply was lost may be made again."""
        now_said = self._labels[self.contents.hashes[answer.photo]]
        label = -1 if answer.label is None or answer.set_aside else self._labels.index(answer.label)
        return now_said is not None and (now_said.label, now_said.is_set_aside) == (label, answer.set_aside)

    def _was_answered(self, content: str) -> bool:
        return self._labels.changed_at(content) > 0

    def _verdicts(self) -> dict[int, Verdict]:
        """Return the verdicts on the photos that are known, in the order in which they were given."""
        found = ((self.contents.index_of(content), verdict) for content, verdict in self._labels.in_order())
        return {index: verdict for index, verdict in found if index is not None}

    def _open(self) -> list[int]:
        """Return the photos that are ready and have neither label nor were set aside."""
        said = {index for index, one in self._verdicts().items() if one.label >= 0 or one.is_set_aside}
        return [int(i) for i in np.flatnonzero(self.contents.is_ready) if int(i) not in said]

    def _is_for_audit(self, photo: int) -> bool:
        return bool(self._is_audited[photo]) and not self._labels.is_audit_over

    def _card(self, photo: int) -> Card:
        verdict = self._labels[self.contents.hashes[photo]]
        label = None if verdict is None or verdict.label < 0 else self._labels.classes[verdict.label]
        is_set_aside = verdict is not None and verdict.is_set_aside
        return Card(photo, self.heap.paths[photo], None, None, label, is_set_aside)

    def _check_photo(self, photo: int) -> None:
        if not 0 <= photo < len(self.heap):
            raise DataError(f"There is no photo {photo}. Expected 0 to {len(self.heap) - 1}.")
