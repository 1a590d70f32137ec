"""Drawn photos for sittings: features of clouds, one for each class, whose photos a script knows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from regraft.labelling.cards import Annotation
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.journal import Journal
from regraft.labelling.sitting import Sitting

NAMES = ("ant", "bee", "cat")


def clouds(count: int, num_classes: int = 3, spread: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features `(count, 16)` float32 and classes `(count,)`, the same clouds whatever the seed."""
    centres = np.random.default_rng(99).normal(size=(num_classes, 16))
    rng = np.random.default_rng(seed)
    y = np.arange(count) % num_classes
    return (centres[y] + spread * rng.normal(size=(count, 16))).astype(np.float32), y


def hash_of(number: int) -> str:
    return f"{number:064x}"


def heap_of_clouds(count: int, given: tuple[str, ...] | None = None, classes: tuple[str, ...] = NAMES) -> Heap:
    return Heap(Path("heap"), tuple(f"{i}.jpg" for i in range(count)), given or ("",) * count, classes)


@contextmanager
def sitting(
    folder: Path, x: np.ndarray, given: tuple[str, ...] | None = None, classes: tuple[str, ...] = NAMES
) -> Iterator[Sitting]:
    """A sitting on photos whose features are there, with the journal in a folder."""
    contents = Contents(len(x))
    contents.put(range(len(x)), [hash_of(i) for i in range(len(x))], x)
    with Journal(folder / "journal.jsonl") as journal:
        one = Sitting(heap_of_clouds(len(x), given, classes), journal, contents)
        one.wait()
        try:
            yield one
        finally:
            one.close()


def say(one: Sitting, y: np.ndarray, photos, person: str = "me", **how) -> int:
    """Answer photos rightly."""
    version = one.answer([Annotation(int(i), NAMES[y[i]], **how) for i in photos], person=person)
    one.wait()
    return version


def labels_of(one: Sitting) -> dict[str, str]:
    return {row.path: row.label for row in one.rows() if row.label}
