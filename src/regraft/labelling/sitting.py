"""A sitting: what is shown next, and what was said of it.

Each answer is in the journal before the call returns, and the head is solved again on another thread.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.core.errors import ConfigError, DataError
from regraft.labelling import suggestions
from regraft.labelling.audit import expected_gain
from regraft.labelling.board import Board
from regraft.labelling.cards import KINDS, PAGE_SIZE, Answer, Card, Conflict, Page, Status, Training
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.journal import Journal
from regraft.labelling.labels import Labels, checked_name
from regraft.labelling.outputs import LabelRow, rows_of
from regraft.labelling.solver import Snapshot, Solved, Solver
from regraft.labelling.suggestions import NOTHING, Chosen
from regraft.run_dir import now

FOLDER = "folder"  # who says what the folder of a photo says
Say = Callable[[str], None]


class Sitting:
    """Photos, what is known of them, and what people say of them. Every method may be called from any thread.

    Args:
        heap: The photos.
        journal: Where answers are kept; what it holds already counts.
        contents: What is known of the photos; whoever computes features calls its `put`, then `features_arrived`.
        trainer: Trains a model on rows as `rows` gives them, and says how far it is; None where nothing can be trained.
    """

    def __init__(
        self,
        heap: Heap,
        journal: Journal,
        contents: Contents | None = None,
        trainer: Callable[[list[LabelRow], Say], None] | None = None,
    ) -> None:
        self.heap = heap
        self.contents = contents or Contents(len(heap))
        self._journal, self._trainer = journal, trainer
        self._training: Training | None = None
        self._lock = threading.RLock()
        self._labels, self._board = Labels(), Board(len(heap))
        self._is_reserved = heap.audited
        for entry in journal.entries:
            self._labels.apply(entry)
        if new := [name for name in heap.classes if name not in self._labels.classes]:
            self._keep({"kind": "classes", "names": new})
        self._num_seen = 0
        self._solver = Solver(self._snapshot)
        self.features_arrived()

    def close(self) -> None:
        """End the sitting: solving stops, and the journal is closed."""
        self._solver.close()
        self._journal.close()

    def features_arrived(self) -> None:
        """Take notice of photos that were made known to `contents`: labels of their folders count, guesses follow."""
        with self._lock:
            known = {content: i for i, content in self.contents.new_since(self._num_seen)}
            self._num_seen = self.contents.num_known
            given = {content: i for content, i in known.items() if self.heap.given[i]}
            fresh = {content: i for content, i in given.items() if not self._labels.changed_at(content)}
            if fresh:
                said = [self._said(i, content, self.heap.given[i]) for content, i in fresh.items()]
                self._keep({"kind": "answer", "person": FOLDER, "at": now(), "answers": said})
            self._board.update((i, self._labels[content]) for content, i in known.items())
        self._solver.notify()

    def wait(self) -> None:
        """Wait until guesses, doubts and accuracy follow from all labels: for scripts, which are quicker than people."""
        self._solver.wait()

    def status(self) -> Status:
        """Return how far the sitting is."""
        with self._lock:
            board, solved, classes = self._board, self._solver.latest, tuple(self._labels.classes)
            counts = np.bincount(board.label[board.label >= 0], minlength=len(classes))
            num_photos = len(self.heap) - len(self.contents.copies) - len(self.contents.unreadable)
            num_labelled, num_aside = int(counts.sum()), int(board.is_set_aside.sum())
            curve = solved.curve if solved else ()
            accuracy = solved.accuracy if solved else None
            return Status(
                num_photos=num_photos,
                num_featured=int(self.contents.is_ready.sum()),
                num_unreadable=len(self.contents.unreadable),
                num_labelled=num_labelled,
                num_set_aside=num_aside,
                num_audit_left=0 if self._labels.is_audit_over else int((self._open() & self._is_reserved).sum()),
                classes=classes,
                counts={name: int(count) for name, count in zip(classes, counts, strict=True)},
                version=self._labels.version,
                solved_version=-1 if solved is None or solved.log_p is None else solved.snapshot.version,
                accuracy=accuracy,
                curve=curve,
                expected_gain=expected_gain(curve, accuracy.n if accuracy else 0),
                is_done=num_labelled + num_aside == num_photos,
                training=self._training,
            )

    def page(self, kind: str, size: int = PAGE_SIZE, class_name: str | None = None) -> Page:
        """Return photos to look at next.

        Args:
            kind: "groups", "guesses", "questions", "doubts" or "audit".
            size: How many at most.
            class_name: For guesses, the class that is wanted; None for the surest.

        Returns:
            The page; without cards where there is nothing to show, or nothing yet.

        Raises:
            ConfigError: The kind is unknown, or the size is below 1.
            DataError: There is no such class.
        """
        if kind not in KINDS or size < 1:
            raise ConfigError(
                f"There is no page {kind!r} of {size}. Expected one of {', '.join(KINDS)}, and a size of 1 or more."
            )
        self._solver.check()
        with self._lock:
            label = None if class_name is None else self._labels.index(class_name)
            solved, version = self._solver.latest, self._labels.version
            if kind == "audit":
                chosen, solved = self._for_audit(size), None
            else:
                chosen = self._chosen(kind, size, label, solved) if solved else NOTHING
            suggestion = self._labels.classes[chosen.label] if chosen.label >= 0 else None
            shows = None if kind == "groups" else solved
            cards = tuple(self._card(int(i), shows, kind) for i in chosen.photos)
            return Page(kind, suggestion, cards, chosen.left, version)

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

    def rows(self) -> list[LabelRow]:
        """Return a row for every file of the heap that was read: what is known and said of it."""
        with self._lock:
            return rows_of(self.heap, self.contents, self._labels, self._solver.latest)

    def train(self) -> None:
        """Start the training of a model on the labels that there are; `status` says how far it is.

        Raises:
            ConfigError: A training is running, or nothing can be trained here.
        """
        with self._lock:
            if self._trainer is None or (self._training and self._training.state == "running"):
                raise ConfigError("No training can be started now. Wait until the running one has ended.")
            self._training = Training("running", "begins")
            threading.Thread(target=self._train, args=(self._trainer, self.rows()), name="regraft-train").start()

    def _train(self, trainer: Callable[[list[LabelRow], Say], None], rows: list[LabelRow]) -> None:
        def say(message: str) -> None:
            self._training = Training("running", message)

        try:
            trainer(rows, say)
            self._training = Training("done", self._training.message if self._training else "")
        except Exception as error:  # told on the page, where the training was started
            self._training = Training("failed", str(error))

    def _keep(self, entry: Mapping[str, Any]) -> int:
        """Write an entry to the journal, then let it count."""
        self._journal.append(entry)
        contents = [one["sha256"] for one in entry.get("answers", ())]
        if entry["kind"] == "undo":
            contents += self._labels.step_contents(entry["person"])
        self._labels.apply(entry)
        places = ((self.contents.index_of(content), self._labels[content]) for content in contents)
        self._board.update((i, verdict) for i, verdict in places if i is not None)
        if hasattr(self, "_solver"):
            self._solver.notify()
        return self._labels.version

    def _snapshot(self) -> Snapshot:
        with self._lock:
            contents, board = self.contents, self._board
            num_changes, ready = contents.num_changes, np.flatnonzero(contents.is_ready)
            photos, audited = board.learned(contents.is_ready), board.audited(contents.is_ready)
            return Snapshot(
                version=self._labels.version,
                num_changes=num_changes,
                features=contents.features,
                ready=ready,
                photos=photos,
                y=board.label[photos],
                audited=audited,
                audited_y=board.label[audited],
                num_classes=len(self._labels.classes),
            )

    def _open(self) -> np.ndarray:
        """Return which photos are ready and have neither label nor were set aside, `(N,)` bool."""
        return np.asarray(self.contents.is_ready & (self._board.label < 0) & ~self._board.is_set_aside)

    def _for_audit(self, size: int) -> Chosen:
        """Choose photos that were drawn for the audit and have no label."""
        photos = np.flatnonzero(self._open() & self._is_reserved)
        if self._labels.is_audit_over or not len(photos):
            return NOTHING
        return Chosen(np.random.default_rng(2).permutation(photos)[:size], -1, len(photos))

    def _chosen(self, kind: str, size: int, label: int | None, solved: Solved) -> Chosen:
        """Choose photos for a page that shows, or is made by, what was solved."""
        if kind == "doubts":
            return self._doubted(size, solved)
        is_known = np.zeros(len(self.heap), bool)
        is_known[solved.snapshot.ready] = True
        is_open = self._open() & is_known
        open_photos = self._without_audit(is_open)
        if kind == "groups":
            labelled = np.flatnonzero(is_known & (self._board.label >= 0))
            return suggestions.groups(solved.clusters, solved.z, open_photos, labelled, size)
        if solved.log_p is None:
            return Chosen(NOTHING.photos, -1, len(open_photos))
        if kind == "guesses":
            return suggestions.guesses(solved.log_p, open_photos, size, label)
        return suggestions.questions(solved.log_p, solved.z, open_photos, size)

    def _without_audit(self, is_open: np.ndarray) -> np.ndarray:
        """Leave out the photos kept for the audit, until nothing else is left: from then on they are like any other."""
        if self._labels.is_audit_over:
            return np.flatnonzero(is_open)
        others = np.flatnonzero(is_open & ~self._is_reserved)
        if len(others) or not is_open.any() or self.contents.num_known < len(self.heap):
            return others
        self._keep({"kind": "end_audit", "at": now()})
        return np.flatnonzero(is_open)

    def _doubted(self, size: int, solved: Solved) -> Chosen:
        """Choose labels that were not confirmed and have not changed since they were solved."""
        of = solved.snapshot
        if solved.held_out is None or solved.log_p is None:
            return NOTHING
        photos, y = np.concatenate([of.photos, of.audited]), np.concatenate([of.y, of.audited_y])
        log_p = np.concatenate([solved.held_out, solved.log_p[of.audited]])
        is_asked = (self._board.label[photos] == y) & ~self._board.is_confirmed[photos]
        return suggestions.doubts(log_p[is_asked], y[is_asked], photos[is_asked], size)

    def _card(self, photo: int, solved: Solved | None, kind: str) -> Card:
        label, name = int(self._board.label[photo]), self.heap.paths[photo]
        log_p = None if solved is None else _said_of(photo, solved, kind)
        guess = None if log_p is None else int(log_p.argmax())
        return Card(
            photo=photo,
            name=name,
            guess=None if guess is None else self._labels.classes[guess],
            probability=None if log_p is None else float(np.exp(log_p.max())),
            label=self._labels.classes[label] if label >= 0 else None,
            is_set_aside=bool(self._board.is_set_aside[photo]),
        )

    def _entry(self, answer: Answer) -> dict[str, Any]:
        """Write an answer as the journal keeps it."""
        self._check_photo(answer.photo)
        content = self.contents.hashes[answer.photo]
        if not content:
            raise DataError(
                f"{self.heap.paths[answer.photo]} cannot be read, or was not yet. Answer it when it is shown."
            )
        if answer.label is not None:
            self._labels.index(answer.label)
        entry = self._said(answer.photo, content, None if answer.set_aside else answer.label)
        if answer.set_aside:
            entry["set_aside"] = True
        if answer.is_audit and self._is_blind(answer.photo, content):
            entry["is_audit"] = True
        elif guess := self._guess_for(answer.photo):
            entry["guess"] = guess
        return entry

    def _said(self, photo: int, content: str, label: str | None) -> dict[str, Any]:
        return {"sha256": content, "path": self.heap.paths[photo], "label": label}

    def _is_blind(self, photo: int, content: str) -> bool:
        """Return whether an answer counts for the audit: drawn for it, and not seen with a guess before."""
        is_kept = bool(self._is_reserved[photo]) and not self._labels.is_audit_over
        return is_kept and self._labels[content] is None

    def _guess_for(self, photo: int) -> str:
        solved = self._solver.latest
        if solved is None or solved.log_p is None or photo not in solved.snapshot.ready:
            return ""
        return self._labels.classes[int(solved.log_p[photo].argmax())]

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
        said = self._labels[self.contents.hashes[answer.photo]]
        label = -1 if answer.label is None or answer.set_aside else self._labels.index(answer.label)
        return said is not None and (said.label, said.is_set_aside) == (label, answer.set_aside)

    def _check_photo(self, photo: int) -> None:
        if not 0 <= photo < len(self.heap):
            raise DataError(f"There is no photo {photo}. Expected 0 to {len(self.heap) - 1}.")


def _said_of(photo: int, solved: Solved, kind: str) -> np.ndarray | None:
    """Return what the model says of a photo, `(C,)`; for a doubted label, what it says without having learned it."""
    if kind == "doubts" and solved.held_out is not None:
        place = np.flatnonzero(solved.snapshot.photos == photo)
        if len(place):
            return np.asarray(solved.held_out[place[0]])
    return None if solved.log_p is None else np.asarray(solved.log_p[photo])
