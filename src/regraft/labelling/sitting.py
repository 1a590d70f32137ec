"""A sitting: what is shown next, and what was said of it.

Each answer is in the journal before the call returns, and the head is solved again on another thread.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from regraft.core.errors import ConfigError, DataError
from regraft.labelling.audit import expected_gain
from regraft.labelling.board import Board
from regraft.labelling.cards import KINDS, PAGE_SIZE, Annotation, Card, Conflict, Page, Status, Training, UndoneStep
from regraft.labelling.choosing import Asked, chosen, for_audit, log_p_of
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.journal import Journal
from regraft.labelling.labels import Labels, checked_name
from regraft.labelling.outputs import LabelRow, label_rows, sort_into
from regraft.labelling.solver import Snapshot, Solved, Solver
from regraft.labelling.suggestions import NOTHING
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
        sort_folder: Where `sort` puts photos; None where they are not to be sorted.
        report: Where the report of a model lies once one is trained.
    """

    def __init__(
        self,
        heap: Heap,
        journal: Journal,
        contents: Contents | None = None,
        trainer: Callable[[list[LabelRow], Say], None] | None = None,
        *,
        sort_folder: Path | None = None,
        report: Path | None = None,
    ) -> None:
        self.heap, self.sort_folder, self._report = heap, sort_folder, report
        self.contents = contents or Contents(len(heap))
        self._journal, self._trainer = journal, trainer
        self._training: Training | None = None
        self._lock = threading.RLock()
        self._labels, self._board = Labels(), Board(len(heap))
        self._is_reserved = heap.audited
        for entry in journal.entries:
            self._labels.apply(entry)
        if new := [name for name in heap.classes if name not in self._labels.ever_named]:
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
                entries = [self._bare_entry(i, content, self.heap.given[i]) for content, i in fresh.items()]
                self._keep({"kind": "answer", "person": FOLDER, "at": now(), "answers": entries})
            self._board.update((i, self._labels[content]) for content, i in known.items())
        self._solver.notify()

    def wait(self) -> None:
        """Wait until all labels are learned from: for scripts, which are quicker than people."""
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

    def page(
        self,
        kind: str,
        size: int = PAGE_SIZE,
        class_name: str | None = None,
        *,
        without: Collection[int] = frozenset(),
    ) -> Page:
        """Return photos to look at next.

        Args:
            kind: "groups", "guesses", "questions", "doubts" or "audit".
            size: How many at most.
            class_name: For guesses, the class that is wanted; None for the surest.
            without: Photos that are not to be shown, such as those left for later.

        Returns:
            The page; without cards where there is nothing to show, or nothing yet.

        Raises:
            ConfigError: The kind is unknown, or the size is below 1.
            DataError: There is no such class or photo.
        """
        if kind not in KINDS or size < 1:
            raise ConfigError(
                f"There is no page {kind!r} of {size}. Expected one of {', '.join(KINDS)}, and a size of 1 or more."
            )
        self._solver.check()
        for photo in without:
            self._check_photo(photo)
        with self._lock:
            label = None if class_name is None else self._labels.index(class_name)
            if kind != "audit":
                self._end_audit_in_the_end()
            solved = self._solver.latest
            asked = Asked(self._open(), self._reserved(), self._board, without, size)
            picked = for_audit(asked) if kind == "audit" else chosen(kind, label, asked, solved) if solved else NOTHING
            shows = None if kind in ("groups", "audit") else solved
            suggestion = self._labels.classes[picked.label] if picked.label >= 0 else None
            cards = tuple(self._card(int(i), shows) for i in picked.photos)
            return Page(kind, suggestion, cards, picked.left, self._labels.version)

    def cards(self, photos: Sequence[int]) -> tuple[Card, ...]:
        """Return photos as they stand now; those kept for the audit without a guess.

        Raises:
            DataError: There is no such photo.
        """
        for photo in photos:
            self._check_photo(photo)
        with self._lock:
            is_hidden = self._reserved() & self._open()
            return tuple(self._card(i, None if is_hidden[i] else self._solver.latest) for i in photos)

    def answer(self, answers: Sequence[Annotation], *, person: str, seen_version: int | None = None) -> int:
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
            entries = [self._entry(one) for one in answers]
            if len({one["sha256"] for one in entries}) < len(entries):
                raise DataError("A photo is answered twice in one call. Expected one answer for each photo.")
            self._refuse_conflicts(answers, seen_version)
            if not entries:
                return self._labels.version
            return self._keep({"kind": "answer", "person": person, "at": now(), "answers": entries})

    def undo(self, *, person: str) -> UndoneStep:
        """Take back the last step of a person that is not taken back yet.

        Returns:
            The version without it, and the photos that it was about; the same version and no photos without a step.

        Raises:
            OutputError: It could not be written, and the step stays.
        """
        with self._lock:
            step, contents = self._labels.last_step(person), self._labels.step_contents(person)
            if step is None:
                return UndoneStep(self._labels.version, ())
            version = self._keep({"kind": "undo", "person": person, "at": now(), "undoes": step})
            places = (self.contents.index_of(content) for content in contents)
            return UndoneStep(version, tuple(i for i in places if i is not None))

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

    @property
    def report(self) -> Path | None:
        """The report of the model that was trained; None before there is one."""
        return self._report if self._report and self._report.is_file() else None

    def sort(self) -> int:
        """Put the photos into class folders below `sort_folder`, as `outputs.sort_into` does; return how many.

        Raises:
            ConfigError: There is no such folder.
            OutputError: It cannot be written.
        """
        if self.sort_folder is None:
            raise ConfigError("No folder to sort into was named. Start regraft label with --sort DIR.")
        return sort_into(self.rows(), self.sort_folder)

    def rows(self) -> list[LabelRow]:
        """Return a row for every file of the heap that was read: what is known and said of it."""
        with self._lock:
            return label_rows(self.heap, self.contents, self._labels)

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
                closer=contents.closer,
            )

    def _open(self) -> np.ndarray:
        """Return which photos are ready and have neither label nor were set aside, `(N,)` bool."""
        return np.asarray(self.contents.is_ready & (self._board.label < 0) & ~self._board.is_set_aside)

    def _reserved(self) -> np.ndarray:
        """Return which photos are kept for the audit now, `(N,)` bool."""
        return np.zeros_like(self._is_reserved) if self._labels.is_audit_over else self._is_reserved

    def _end_audit_in_the_end(self) -> None:
        """Once nothing else is left, make the photos kept for the audit like any other."""
        is_open = self._open()
        if self._labels.is_audit_over or not is_open.any() or self.contents.num_known < len(self.heap):
            return
        if not (is_open & ~self._is_reserved).any():
            self._keep({"kind": "end_audit", "at": now()})

    def _card(self, photo: int, solved: Solved | None) -> Card:
        label, log_p = int(self._board.label[photo]), log_p_of(photo, solved)
        return Card(
            photo=photo,
            name=self.heap.paths[photo],
            guess=None if log_p is None else self._labels.classes[int(log_p.argmax())],
            probability=None if log_p is None else float(np.exp(log_p.max())),
            label=self._labels.classes[label] if label >= 0 else None,
            is_set_aside=bool(self._board.is_set_aside[photo]),
        )

    def _entry(self, answer: Annotation) -> dict[str, Any]:
        """Write an answer as the journal keeps it."""
        self._check_photo(answer.photo)
        content = self.contents.hashes[answer.photo]
        if not content:
            raise DataError(
                f"{self.heap.paths[answer.photo]} cannot be read, or was not yet. Answer it when it is shown."
            )
        if answer.label is not None:
            self._labels.index(answer.label)
        entry = self._bare_entry(answer.photo, content, None if answer.set_aside else answer.label)
        if answer.set_aside:
            entry["set_aside"] = True
        if answer.is_audit and self._reserved()[answer.photo] and self._labels[content] is None:  # no guess was seen
            entry["is_audit"] = True
        elif guess := self._guess_for(answer.photo):
            entry["guess"] = guess
        return entry

    def _bare_entry(self, photo: int, content: str, label: str | None) -> dict[str, Any]:
        return {"sha256": content, "path": self.heap.paths[photo], "label": label}

    def _guess_for(self, photo: int) -> str:
        """Return what the model took a photo for; "" where it said nothing."""
        log_p = log_p_of(photo, self._solver.latest)
        return "" if log_p is None else self._labels.classes[int(log_p.argmax())]

    def _refuse_conflicts(self, answers: Sequence[Annotation], seen_version: int | None) -> None:
        """Raise Conflict for photos that have another answer since a version."""
        if seen_version is None:
            return
        since = [one for one in answers if self._labels.changed_at(self.contents.hashes[one.photo]) > seen_version]
        others = tuple(one.photo for one in since if not self._is_current(one))
        if others:
            raise Conflict(others, tuple(self.heap.paths[photo] for photo in others))

    def _is_current(self, answer: Annotation) -> bool:
        """Return whether a photo has this very answer already: a call whose reply was lost may be made again."""
        verdict = self._labels[self.contents.hashes[answer.photo]]
        label = -1 if answer.label is None or answer.set_aside else self._labels.index(answer.label)
        return verdict is not None and (verdict.label, verdict.is_set_aside) == (label, answer.set_aside)

    def _check_photo(self, photo: int) -> None:
        if not 0 <= photo < len(self.heap):
            raise DataError(f"There is no photo {photo}. Expected 0 to {len(self.heap) - 1}.")
