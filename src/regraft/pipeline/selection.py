"""Which photos choose between models: never those of the reported accuracy, so that no choice can flatter it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.core.files import sha256_json
from regraft.core.statistics import Accuracy, accuracy
from regraft.data.issues import Issue
from regraft.data.scan import Dataset
from regraft.data.splits import Splits
from regraft.evaluation.comparison import BETTER, no_room, permutation_p
from regraft.models.calibration import calibrated_losses
from regraft.models.linear_head import Head, Score
from regraft.models.logistic import log_softmax

ENOUGH = 300  # photos that choose between models; of more, the rest is learned from
CLEARLY = 0.05  # of accuracy, by which photos from elsewhere are answered worse than those of the same kind
SET_ASIDE = "set-aside"


@dataclass(frozen=True)
class Selection:
    """What chooses between models, and what is left for gradient descent to learn from.

    Attributes:
        photos: N photos that choose. Gradient descent does not learn from them; nor is the model evaluated on them.
        learned: The photos that gradient descent learns from.
        name: What they are called: "val", or "set-aside".
        is_far: Whether photos that do not come from where those to learn from do are to be answered. Then layers that
            learn are expected to be better.
    """

    photos: Dataset
    learned: Dataset
    name: str
    is_far: bool = False

    @property
    def is_set_aside(self) -> bool:
        """Whether the photos that choose were taken from the photos to learn from."""
        return self.name == SET_ASIDE

    @property
    def from_elsewhere(self) -> Dataset | None:
        """The photos that choose, where they come from elsewhere; None where not, or where there are none."""
        return self.photos if self.is_far and not self.is_set_aside and len(self.photos) else None

    def to_json(self) -> dict[str, Any]:
        """Return what is stored with a model that was chosen."""
        return {"photos": self.name, "n": len(self.photos), "sha256": sha256_json(sorted(self.photos.hashes))}

    def count(self, correct: np.ndarray) -> Accuracy | None:
        """Count how many of the photos a model has right.

        Args:
            correct: `(N,)` bool, which of them it has right.

        Returns:
            The accuracy; None where there are no photos.
        """
        return accuracy(int(correct.sum()), len(correct), self.name) if len(correct) else None


def select(splits: Splits, folds: np.ndarray) -> Selection:
    """Select the photos that choose between models.

    Where the photos' owner gave both val and test, val chooses and the model is evaluated on test. Else photos of the
    first fold of the photos to learn from are set aside, `ENOUGH` at most: heads cross-validated on those folds have
    answers to them, and so can models that never learned them.

    Args:
        splits: What is learned from, and what the model is evaluated on.
        folds: `(N,)` int64 of the photos to learn from; -1 for those always learned from.

    Returns:
        The photos that choose. None has the content of a photo that is learned from, or that the model is evaluated on.
    """
    train, evaluated = splits.train, set(splits.eval_photos.hashes)
    if splits.test is not None and len(splits.val):
        taken = evaluated | set(train.hashes)
        fresh = [i for i, content in enumerate(splits.val.hashes) if content not in taken]
        return Selection(splits.val.subset(fresh), train, "val")
    outside = {content for content, fold in zip(train.hashes, folds, strict=True) if fold != 0}
    aside = [i for i in np.flatnonzero(folds == 0) if train.hashes[i] not in evaluated | outside]
    aside = sorted(aside, key=lambda i: train.hashes[i])[:ENOUGH]
    chosen = set(map(int, aside))
    contents = {train.hashes[i] for i in chosen}
    learned = [i for i in range(len(train)) if train.hashes[i] not in contents]
    return Selection(train.subset(sorted(chosen)), train.subset(learned), SET_ASIDE)


@dataclass(frozen=True)
class HeldOutPredictions:
    """What a model that has not seen them answers to the photos that choose.

    Attributes:
        log_p: `(N, C)` float64, logarithms of probabilities; a row of NaN for a photo without an answer.
        labels: `(N,)` int64.
    """

    log_p: np.ndarray
    labels: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """`(N,)` bool; a photo without an answer is counted as wrong."""
        return np.asarray(self._known & (np.nan_to_num(self.log_p).argmax(axis=1) == self.labels))

    @property
    def losses(self) -> np.ndarray:
        """`(N,)` float64, log losses in nats at the temperature that fits best; without an answer that of a guess."""
        losses = calibrated_losses(self.log_p, self.labels)
        return np.asarray(np.where(self._known, losses, np.log(self.log_p.shape[1])))

    @property
    def _known(self) -> np.ndarray:
        return np.asarray(np.isfinite(self.log_p).all(axis=1))

    def clearly_less_loss(self, other: "HeldOutPredictions") -> tuple[float, float] | None:
        """Return the mean losses of another model and of this one where this one's are clearly less; None else.

        That tells models apart which are right on nearly the same photos.
        """
        if not len(self.labels):
            return None
        before, after = other.losses, self.losses
        is_less = after.mean() < before.mean() and permutation_p(after - before) <= BETTER
        return (float(before.mean()), float(after.mean())) if is_less else None


def unseen_answers(selection: Selection, head: Head, train: Dataset, x: np.ndarray) -> HeldOutPredictions:
    """Return what a solved head answers to the photos that choose between models, as far as it has not seen them.

    Args:
        selection: The N photos that choose.
        head: Solved on the photos to learn from.
        train: Those photos, in the head's order.
        x: `(N, D)` float32, features of the photos that choose.

    Returns:
        For photos set aside, the answers of the folds.
    """
    if not selection.is_set_aside:
        return HeldOutPredictions(log_softmax(head.logits(x).astype(np.float64)), selection.photos.labels)
    place = {path: i for i, path in enumerate(train.paths)}
    return HeldOutPredictions(head.held_out[[place[path] for path in selection.photos.paths]], selection.photos.labels)


def is_from_elsewhere(selected: Accuracy | None, cross_validated: Score | None, issues: Iterable[Issue]) -> bool:
    """Return whether photos that do not come from where those to learn from do are to be answered.

    Either val is answered clearly worse than cross-validation says, or a model tells the photos of val or test from
    those to learn from. For that, nobody looks at the labels of test: how well it is answered chooses nothing.

    Args:
        selected: Accuracy on the photos that choose between models; None where there are none.
        cross_validated: Score on the photos to learn from; None where there is none.
        issues: Of the photos.
    """
    return is_shifted(selected, cross_validated) or any(one.kind == "split shift" for one in issues)


def is_shifted(selected: Accuracy | None, cross_validated: Score | None) -> bool:
    """Return whether val is answered clearly worse than cross-validation on the photos to learn from says.

    Then the photos of val come from elsewhere, and only a backbone that learns can make up for it: a search among
    frozen features would choose by photos of the other kind.

    Args:
        selected: Accuracy on the photos that choose between models; None where there are none.
        cross_validated: Score on the photos to learn from; None where there is none.
    """
    if selected is None or selected.split == SET_ASIDE or cross_validated is None:
        return False
    inside = accuracy(cross_validated.num_right, cross_validated.n, "cross-validated")
    return selected.high < inside.low and inside.value - selected.value > CLEARLY


def without_room(*counts: Accuracy | None) -> Accuracy | None:
    """Return the last of several counts if all leave so few photos wrong that no model could be shown to be better."""
    known = [one for one in counts if one is not None]
    full = known and all(no_room(round(one.value * one.n), one.n) for one in known)
    return known[-1] if full else None
