"""The head, solved again on a thread of its own whenever something was labelled; the newest labels win.

While it solves, more may be labelled: those in between are skipped, and it begins with what is newest.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from regraft.labelling.audit import audited_accuracy, checkpoints, curve_point
from regraft.labelling.cards import AuditedAccuracy, LearningCurvePoint
from regraft.labelling.clusters import Clusters, extended, find_clusters
from regraft.labelling.head import BLOCK, FastHead, Projection, find_projection, solve_head
from regraft.labelling.leave_one_out import log_probabilities_without

GROWTH = 1.5  # how many times as many photos make new axes worth while
PAUSE_S = 0.5  # for which nobody labels anything, before what can wait is computed
FEWEST_PHOTOS = 8  # from which on axes are found
NO_PHOTOS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Snapshot:
    """What a solution is made from.

    Attributes:
        version: Of the labels.
        num_changes: Of what is known of the photos.
        features: `(N, D)` float32, of which the rows `ready` are known.
        ready: `(n,)` int64, photos whose features are there.
        photos: `(m,)` int64, photos to learn from, in the order in which they were labelled.
        y: `(m,)` int64, their labels.
        audited: `(a,)` int64, photos that were labelled for the audit.
        audited_y: `(a,)` int64, their labels.
        num_classes: Number C of classes.
        closer: `(N, R)` float32, projected features of larger photos; None while they are not there.
    """

    version: int
    num_changes: int
    features: np.ndarray = field(repr=False)
    ready: np.ndarray = field(repr=False)
    photos: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    audited: np.ndarray = field(repr=False)
    audited_y: np.ndarray = field(repr=False)
    num_classes: int
    closer: np.ndarray | None = field(repr=False, default=None)


@dataclass(frozen=True)
class Solved:
    """What is known after solving.

    Attributes:
        snapshot: What it was made from.
        z: `(N, R)` float32, projected features of the photos that were ready.
        clusters: Of these photos.
        log_p: `(N, C)` float32, logarithms of their probabilities; None while there are not two classes.
        seconds: How long solving took, and of that how long the processor worked.
        held_out: `(m + a, C)` float32, logarithms of probabilities of the photos learned from, each as if it had not
            been, and of the audited ones; None while that was not computed.
        accuracy: On the audited photos.
        curve: The same after fewer labels.
    """

    snapshot: Snapshot
    z: np.ndarray = field(repr=False)
    clusters: Clusters = field(repr=False)
    log_p: np.ndarray | None = field(repr=False)
    seconds: tuple[float, float]
    held_out: np.ndarray | None = field(repr=False, default=None)
    accuracy: AuditedAccuracy | None = None
    curve: tuple[LearningCurvePoint, ...] = ()

    def is_known(self, photo: int) -> bool:
        """Return whether a photo was ready."""
        ready = self.snapshot.ready
        place = int(np.searchsorted(ready, photo))
        return place < len(ready) and int(ready[place]) == photo

    def place_of(self, photo: int) -> int | None:
        """Return where a photo stands among those that were learned from; None where it does not."""
        places = np.flatnonzero(self.snapshot.photos == photo)
        return int(places[0]) if len(places) else None


class Solver:
    """Solves again and again.

    Args:
        snapshot: Returns what is to be solved now; called on the solver's thread.

    Attributes:
        latest: The newest solution; None before the first.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self.latest: Solved | None = None
        self._snapshot = snapshot
        self._space = _Space()
        self._head: FastHead | None = None
        self._heads: dict[int, tuple[bytes, FastHead]] = {}
        self._failure: BaseException | None = None
        self._is_due, self._is_closed, self._is_idle, self._num_waiting = False, False, True, 0
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="regraft-solver", daemon=True)
        self._thread.start()

    def notify(self) -> None:
        """Say that there is something new to solve."""
        with self._condition:
            self._is_due, self._is_idle = True, False
            self._condition.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until everything that was asked for is solved. Raises what solving has failed with.

        Args:
            timeout_s: How long at most; None for as long as it takes.
        """
        with self._condition:
            self._num_waiting += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_idle or self._failure is not None, timeout_s)
            self._num_waiting -= 1
        self.check()

    def check(self) -> None:
        """Raise what solving has failed with, where it has."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop when what is being solved is done."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._is_called():
                self._solve_newest()
        except BaseException as error:  # told to whoever asks next
            with self._condition:
                self._failure = error
                self._condition.notify_all()

    def _is_called(self) -> bool:
        """Wait for something to solve; False at the end."""
        with self._condition:
            if not self._is_due:
                self._is_idle = True
                self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_due or self._is_closed)
            self._is_due = False
            return not self._is_closed

    def _solve_newest(self) -> None:
        snapshot, began = self._snapshot(), (time.perf_counter(), time.thread_time())
        if len(snapshot.ready) < FEWEST_PHOTOS:
            return
        if self._space.follow(snapshot):
            self._head, self._heads = None, {}
        log_p = self._log_probabilities(snapshot)
        z, clusters = self._space.z, self._space.clusters
        seconds = time.perf_counter() - began[0], time.thread_time() - began[1]
        self.latest = Solved(snapshot, z, clusters, log_p, seconds)
        if log_p is not None:
            accuracy = audited_accuracy(log_p[snapshot.audited], snapshot.audited_y)
            self.latest = replace(self.latest, accuracy=accuracy)
            self._add_what_can_wait(self.latest)

    def _add_what_can_wait(self, solved: Solved) -> None:
        """Add doubts and learning curve, once nobody has labelled anything for a moment."""
        for more in (self._held_out(solved), self._curve(solved)):
            for better in more:
                if self._is_called_away():
                    return
                self.latest = better

    def _is_called_away(self) -> bool:
        """Wait a moment; return whether something new is to be solved. Does not wait where somebody waits for it."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_due or self._is_closed or self._num_waiting, PAUSE_S)
            return self._is_due or self._is_closed

    def _log_probabilities(self, snapshot: Snapshot) -> np.ndarray | None:
        """Solve the head, and return what it says of every photo."""
        if len(np.unique(snapshot.y)) < 2:
            return None
        z = self._space.z
        self._head = solve_head(
            z[snapshot.photos], snapshot.y, snapshot.num_classes, self._space.projection, self._head
        )
        return self._head.log_probabilities(z)

    def _held_out(self, solved: Solved) -> Iterator[Solved]:
        """Yield the solution with what models say of labelled photos that they have not seen."""
        of = solved.snapshot
        z = solved.z if of.closer is None else of.closer
        held_out = log_probabilities_without(z[of.photos], of.y, z[of.audited], of.num_classes)
        yield replace(solved, held_out=np.concatenate(held_out))

    def _curve(self, solved: Solved) -> Iterator[Solved]:
        """Yield the solution with each further point; a head on the first labels is solved once while these stay."""
        of, points = solved.snapshot, []
        for count in checkpoints(len(of.y)) if len(of.audited) else ():
            y, photos = of.y[:count], of.photos[:count]
            if len(np.unique(y)) < 2:
                continue
            key = photos.tobytes() + y.tobytes()
            known = self._heads.get(count)
            if known is None or known[0] != key:
                head = solve_head(solved.z[photos], y, of.num_classes, self._space.projection, self._head)
                self._heads[count] = known = (key, head)
            accuracy = audited_accuracy(known[1].log_probabilities(solved.z[of.audited]), of.audited_y)
            assert accuracy is not None
            points.append(curve_point(count, accuracy))
            yield replace(self.latest or solved, curve=tuple(points))


class _Space:
    """Projected features of all photos, which follow as photos become known.

    Attributes:
        projection: Where they come from.
        z: `(N, R)` float32.
        clusters: Of the photos that were known when the projection was found.
    """

    projection: Projection
    z: np.ndarray
    clusters: Clusters

    def __init__(self) -> None:
        self._num_changes = -1
        self._known = NO_PHOTOS

    def follow(self, snapshot: Snapshot) -> bool:
        """Take in photos that have become known. Return whether the projection is another one now."""
        if snapshot.num_changes == self._num_changes:
            return False
        self._num_changes = snapshot.num_changes
        is_new = not len(self._known) or len(snapshot.ready) >= GROWTH * self.projection.num_photos
        if is_new:
            self.projection = find_projection(snapshot.features, snapshot.ready)
            size = len(self.projection.offset)
            self.z, self._known = np.zeros((len(snapshot.features), size), np.float32), NO_PHOTOS
        fresh = np.setdiff1d(snapshot.ready, self._known, assume_unique=True)
        for start in range(0, len(fresh), BLOCK):
            rows = fresh[start : start + BLOCK]
            self.z[rows] = self.projection(snapshot.features[rows])
        self._known = snapshot.ready
        if is_new:
            self.clusters = find_clusters(self.z[self._known], self._known)
        elif len(fresh):
            self.clusters = extended(self.clusters, self.z[fresh], fresh)
        return is_new
