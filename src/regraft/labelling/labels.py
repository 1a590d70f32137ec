"""What photos are labelled, as the entries of a journal say: each entry changes a little, and undoing takes it back.

A photo is known by the content of its file, so that labels find it again wherever it was moved to. A person may take
back every step of their own, the last one first; what somebody else has said of a photo since stays.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.core.errors import DataError
from regraft.data.class_names import refuse_twins, refuse_unwritable
from regraft.data.folder_entries import is_junk
from regraft.data.split_names import split_of

UNSURE, NEW, SET_ASIDE = RESERVED = ("unsure", "new", "set-aside")  # folders beside those of the classes
LONGEST_NAME = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one answer says of a photo.

    Attributes:
        label: Index of its class; -1 for none.
        is_set_aside: Whether it is no photo of this task.
        is_audit: Whether it was labelled for the audit, before a guess was shown.
        person: Who said it.
        at: When, as ISO 8601 in UTC.
        guess: The class that the model took it for before; "" where there was no guess.
        version: The entry that says it.
        is_confirmed: Whether it says again what was said before.
    """

    label: int
    is_set_aside: bool
    is_audit: bool
    person: str
    at: str
    guess: str
    version: int
    is_confirmed: bool = False


class Labels:
    """Labels and classes after some entries.

    Attributes:
        classes: Names; the index of a class never changes.
        version: How many entries there were.
        ever_named: Every name that a class ever had.
        is_audit_over: Whether the photos kept for the audit may be shown with guesses.
    """

    def __init__(self) -> None:
        self.classes: list[str] = []
        self.ever_named: set[str] = set()
        self.version = 0
        self.is_audit_over = False
        self._verdicts: dict[str, list[Verdict]] = {}
        self._changed: dict[str, int] = {}
        self._steps: dict[str, list[tuple[int, tuple[str, ...]]]] = {}

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Change what an entry says. An entry is one of those that this module's functions make.

        Raises:
            DataError: It is none of them.
        """
        try:
            _APPLIED[entry["kind"]](self, entry, self.version + 1)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"Entry {self.version + 1} of the journal cannot be read ({error!r}). Expected what regraft label of "
                "this version has written. Move the journal away to begin anew, or bring back a copy."
            ) from error
        self.version += 1

    def __getitem__(self, content: str) -> Verdict | None:
        verdicts = self._verdicts.get(content)
        return verdicts[-1] if verdicts else None

    def changed_at(self, content: str) -> int:
        """Return the version at which a photo was last answered or undone; 0 for never."""
        return self._changed.get(content, 0)

    def contents(self) -> Iterator[str]:
        """Yield the content hash of every photo that something was ever said of."""
        return iter(self._changed)

    def step_contents(self, person: str) -> tuple[str, ...]:
        """Return the content hashes of a person's last step that was not undone."""
        steps = self._steps.get(person)
        return steps[-1][1] if steps else ()

    def last_step(self, person: str) -> int | None:
        """Return the version of a person's last step that was not undone; None where there is none."""
        steps = self._steps.get(person)
        return steps[-1][0] if steps else None

    def index(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            DataError: There is none of that name.
        """
        if name not in self.classes:
            raise DataError(f"There is no class {name!r}. Expected one of: {', '.join(self.classes) or 'none yet'}.")
        return self.classes.index(name)

    def _answer(self, entry: Mapping[str, Any], version: int) -> None:
        person, at, contents = str(entry["person"]), str(entry["at"]), []
        for answer in entry["answers"]:
            content, label = str(answer["sha256"]), answer["label"]
            index = -1 if label is None else self.classes.index(label)
            is_set_aside, is_audit = bool(answer.get("set_aside")), bool(answer.get("is_audit"))
            before = self[content]
            is_audit = is_audit or (before is not None and before.is_audit)
            is_same = before is not None and (before.label, before.is_set_aside) == (index, is_set_aside)
            guess = str(answer.get("guess") or "")
            verdict = Verdict(index, is_set_aside, is_audit, person, at, guess, version, is_same)
            self._verdicts.setdefault(content, []).append(verdict)
            self._changed[content] = version
            contents.append(content)
        self._steps.setdefault(person, []).append((version, tuple(contents)))

    def _undo(self, entry: Mapping[str, Any], version: int) -> None:
        step, contents = self._steps[str(entry["person"])].pop()
        if step != entry["undoes"]:
            raise ValueError(f"expected to undo {step}")
        for content in contents:
            self._verdicts[content] = [one for one in self._verdicts[content] if one.version != step]
            self._changed[content] = version

    def _classes(self, entry: Mapping[str, Any], _: int) -> None:
        self.classes += [str(name) for name in entry["names"]]
        self.ever_named.update(self.classes)

    def _rename(self, entry: Mapping[str, Any], _: int) -> None:
        self.classes[self.classes.index(entry["old"])] = str(entry["new"])
        self.ever_named.add(str(entry["new"]))

    def _end_audit(self, _: Mapping[str, Any], __: int) -> None:
        self.is_audit_over = True


_APPLIED = {
    "answer": Labels._answer,
    "undo": Labels._undo,
    "classes": Labels._classes,
    "rename": Labels._rename,
    "end_audit": Labels._end_audit,
}


def checked_name(name: str, known: Iterable[str]) -> str:
    """Return the name of a class as it is kept: in Unicode's normal form C, without blanks around it.

    Args:
        name: As it was typed.
        known: Names of the classes that there are.

    Raises:
        DataError: It cannot be the name of a folder that is read as a class, or could be one of the known classes.
    """
    kept = unicodedata.normalize("NFC", name).strip()
    refuse_unwritable("The list of classes", [kept])
    wrong = None
    if not kept or len(kept) > LONGEST_NAME:
        wrong = f"it has {len(kept)} letters"
    elif set(kept) & set('/\\:*?"<>|') or not kept.isprintable():
        wrong = "no folder can be called that on every system"
    elif kept.lower() in RESERVED or is_junk(kept) or (split_of(kept) and " " not in kept):
        wrong = "a folder of that name has a meaning of its own"
    if wrong:
        raise DataError(
            f"{kept!r} cannot be the name of a class: {wrong}. Expected 1 to {LONGEST_NAME} letters without "
            '/ \\ : * ? " < > |. Choose another name.'
        )
    refuse_twins("The sitting", "classes", [*known, kept])
    if kept in known:
        raise DataError(f"There is a class {kept!r} already. Choose another name.")
    return kept
