"""What a labelling page shows, and what it is told."""

from dataclasses import dataclass
from typing import Literal, get_args

from regraft.core.errors import RegraftError

PageKind = Literal["groups", "guesses", "questions", "doubts", "audit"]
KINDS: tuple[str, ...] = get_args(PageKind)
PAGE_SIZE = 24  # photos on a page at most


@dataclass(frozen=True)
class Card:
    """One photo on a page.

    Attributes:
        photo: Its index in the sitting, the same until the sitting ends.
        name: Its path, relative to the folder of the photos.
        guess: The class that the model takes it for; None where that is not shown, or no model is there yet.
        probability: Of the guess, 0..1; None where there is no guess.
        label: What it is labelled now; None for nothing.
        is_set_aside: Whether it was said to be no photo of this task.
    """

    photo: int
    name: str
    guess: str | None
    probability: float | None
    label: str | None
    is_set_aside: bool = False


@dataclass(frozen=True)
class Page:
    """Photos to look at together.

    Attributes:
        kind: "groups", "guesses", "questions", "doubts" or "audit".
        suggestion: The one class that all cards are thought to be; None for cards that each have a guess of their own,
            such as guesses of which few are left for each class, and for a group that nothing is known of yet.
        cards: Up to the size that was asked for.
        left: How many photos could still come on such pages, these included.
        version: Of the sitting when the page was made; to be handed back with its answers.
    """

    kind: str
    suggestion: str | None
    cards: tuple[Card, ...]
    left: int
    version: int


@dataclass(frozen=True)
class Annotation:
    """What a person says of a photo.

    Attributes:
        photo: Its index in the sitting.
        label: A class; None takes a label away.
        set_aside: Whether it is no photo of this task; it has no label then.
        is_audit: Whether it came on a page "audit": drawn at random, and labelled before a guess was shown.
    """

    photo: int
    label: str | None
    set_aside: bool = False
    is_audit: bool = False


@dataclass(frozen=True)
class UndoneStep:
    """What became of taking back a step.

    Attributes:
        version: Of the sitting afterwards.
        photos: Whose answers were taken back; () where there was no step.
    """

    version: int
    photos: tuple[int, ...]


@dataclass(frozen=True)
class LearningCurvePoint:
    """How good the model was after some labels, on the audited photos.

    Attributes:
        num_labels: How many labels it had learned from.
        accuracy: Share of the audited photos that it has right, 0..1.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
    """

    num_labels: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class AuditedAccuracy:
    """Accuracy of the model on photos that were drawn at random and labelled blindly.

    Attributes:
        value: Share of right guesses, 0..1.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n: Number of photos.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Training:
    """How far the training that the page has started is.

    Attributes:
        state: "running", "done" or "failed".
        message: The last line that it said, or the error.
    """

    state: str
    message: str


@dataclass(frozen=True)
class Status:
    """How far a sitting is.

    Attributes:
        num_photos: Photos in the folder, copies of one content once as far as they are known yet.
        num_featured: Photos whose features are there: only these come on pages.
        num_unreadable: Files that are no photos, or damaged.
        num_labelled: Photos with a label.
        num_set_aside: Photos that were said to be none of this task.
        num_audit_left: Photos that are kept for the audit and have no label yet.
        classes: Names, in the order in which they came; a key stands for each.
        counts: Number of labelled photos of each class.
        version: Grows with everything that changes labels or classes.
        solved_version: The version whose labels the shown guesses were learned from; -1 while there is no model.
        accuracy: On the audited photos; None before there are any.
        curve: The accuracy after fewer labels.
        expected_gain: What another 50 labels would add to the accuracy, 0..1; None where that cannot be told yet.
        is_done: Whether every photo is labelled or set aside, and none is still to come.
        training: Of the model, where it was started.
    """

    num_photos: int
    num_featured: int
    num_unreadable: int
    num_labelled: int
    num_set_aside: int
    num_audit_left: int
    classes: tuple[str, ...]
    counts: dict[str, int]
    version: int
    solved_version: int
    accuracy: AuditedAccuracy | None
    curve: tuple[LearningCurvePoint, ...]
    expected_gain: float | None
    is_done: bool
    training: Training | None = None


class Conflict(RegraftError):
    """Photos were answered elsewhere since the page was made. Nothing of the call was applied.

    Attributes:
        photos: Indices of these photos.
    """

    def __init__(self, photos: tuple[int, ...], names: tuple[str, ...]) -> None:
        shown = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
        super().__init__(
            f"{len(names)} of these photos were answered on another page in the meantime ({shown}). "
            "Nothing was changed; look at the page again."
        )
        self.photos = photos
