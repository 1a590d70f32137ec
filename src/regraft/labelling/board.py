"""The labels of a sitting's photos as arrays, which follow each answer: what pages and solutions are made from."""

from collections.abc import Iterable

import numpy as np

from regraft.labelling.labels import Verdict


class Board:
    """What is said of N photos now.

    Args:
        num_photos: Number N.

    Attributes:
        label: `(N,)` int64, index of the class; -1 for none.
        is_set_aside: `(N,)` bool.
        is_audited: `(N,)` bool, labelled for the audit.
        is_confirmed: `(N,)` bool, said twice.
        version: `(N,)` int64, when it was said.
    """

    def __init__(self, num_photos: int) -> None:
        self.label = np.full(num_photos, -1, np.int64)
        self.is_set_aside = np.zeros(num_photos, bool)
        self.is_audited = np.zeros(num_photos, bool)
        self.is_confirmed = np.zeros(num_photos, bool)
        self.version = np.zeros(num_photos, np.int64)

    def update(self, verdicts: Iterable[tuple[int, Verdict | None]]) -> None:
        """Take in what is said of some photos now.

        Args:
            verdicts: Index of each and its verdict; None where nothing is said of it any more.
        """
        for i, verdict in verdicts:
            self.label[i] = -1 if verdict is None else verdict.label
            self.is_set_aside[i] = verdict is not None and verdict.is_set_aside
            self.is_audited[i] = verdict is not None and verdict.is_audit
            self.is_confirmed[i] = verdict is not None and verdict.is_confirmed
            self.version[i] = 0 if verdict is None else verdict.version

    def learned(self, is_ready: np.ndarray) -> np.ndarray:
        """Return the photos that are learned from, in the order in which they were labelled.

        Args:
            is_ready: `(N,)` bool, photos that there are features of.
        """
        photos = np.flatnonzero(is_ready & (self.label >= 0) & ~self.is_audited)
        return photos[np.argsort(self.version[photos], kind="stable")]

    def audited(self, is_ready: np.ndarray) -> np.ndarray:
        """Return the photos that were labelled for the audit and have a class."""
        return np.flatnonzero(is_ready & (self.label >= 0) & self.is_audited)
