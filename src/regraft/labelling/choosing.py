"""Which photos come on a page, of those that are still to be asked about."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from regraft.labelling import suggestions
from regraft.labelling.board import Board
from regraft.labelling.solver import Solved
from regraft.labelling.suggestions import NOTHING, Chosen


@dataclass(frozen=True)
class Asked:
    """What a page may show.

    Attributes:
        is_open: `(N,)` bool, photos whose features are there, and that have neither label nor were set aside.
        is_reserved: `(N,)` bool, photos kept for the audit; none once it is over.
        board: What is said of the photos.
        without: Photos that are not to be shown.
        size: How many photos to show at most.
    """

    is_open: np.ndarray
    is_reserved: np.ndarray
    board: Board
    without: Collection[int]
    size: int

    def among(self, is_wanted: np.ndarray) -> np.ndarray:
        """Return the indices of the photos wanted `(N,)` bool, but for those that are not to be shown."""
        is_shown = is_wanted.copy()
        is_shown[list(self.without)] = False
        return np.flatnonzero(is_shown)


def for_audit(asked: Asked) -> Chosen:
    """Choose photos that were drawn for the audit and have no label."""
    photos = asked.among(asked.is_open & asked.is_reserved)
    in_order = np.random.default_rng(2).permutation(len(asked.is_open))
    drawn = in_order[np.isin(in_order, photos)]  # the same order, whatever was answered in between
    return Chosen(drawn[: asked.size], -1, len(photos))


def chosen(kind: str, label: int | None, asked: Asked, solved: Solved) -> Chosen:
    """Choose photos for a page that shows, or is made by, what was solved.

    Args:
        kind: "groups", "guesses", "questions" or "doubts".
        label: For guesses, index of the class that is wanted; None for the surest.
        asked: What may be shown.
        solved: The newest solution.
    """
    if kind == "doubts":
        return _doubted(asked, solved)
    is_known = np.zeros(len(asked.is_open), bool)
    is_known[solved.snapshot.ready] = True
    open_photos = asked.among(asked.is_open & is_known & ~asked.is_reserved)
    if kind == "groups":
        labelled = np.flatnonzero(is_known & (asked.board.label >= 0))
        return suggestions.groups(solved.clusters, solved.z, open_photos, labelled, asked.size)
    if solved.log_p is None:
        return Chosen(NOTHING.photos, -1, len(open_photos))
    if kind == "guesses":
        return suggestions.guesses(solved.log_p, open_photos, asked.size, label)
    return suggestions.questions(solved.log_p, solved.z, open_photos, asked.size)


def log_p_of(photo: int, solved: Solved | None) -> np.ndarray | None:
    """Return what the model says of a photo, `(C,)`; of one that it has learned from, what it would say without."""
    if solved is None or solved.log_p is None:
        return None
    if solved.held_out is not None and (place := solved.place_of(photo)) is not None:
        return np.asarray(solved.held_out[place])
    return np.asarray(solved.log_p[photo]) if solved.is_known(photo) else None


def _doubted(asked: Asked, solved: Solved) -> Chosen:
    """Choose labels that were not confirmed, and have not changed since they were solved."""
    of, board = solved.snapshot, asked.board
    if solved.held_out is None:
        return NOTHING
    photos, y = np.concatenate([of.photos, of.audited]), np.concatenate([of.y, of.audited_y])
    is_asked = (board.label[photos] == y) & ~board.is_confirmed[photos] & ~np.isin(photos, list(asked.without))
    return suggestions.doubts(solved.held_out[is_asked], y[is_asked], photos[is_asked], asked.size)
