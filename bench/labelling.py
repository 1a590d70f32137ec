"""How many keys it takes to label every photo of a set rightly, and what labels are worth, by a script that knows them.

    python bench/labelling.py actions      keys a photo, and how many slips come back as doubts
    python bench/labelling.py curves       accuracy on held-out photos after 20 to 240 answers, beside random photos
    python bench/labelling.py audit        how often the interval of the audit covers the truth
    python bench/labelling.py solve        seconds to solve at 10,000 photos and 20 classes

The script answers through `Sitting`, as the page does. A key accepts a page, puts one photo right, names a class that
is known, or stands for the typing of a new name. Takes sets from REGRAFT_DATA; the last two had no part in choosing.
Writes bench/results/labelling.json.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from record import HERE, machine
from regraft.backbones.backbone import configured
from regraft.backbones.features import extract
from regraft.core.config import TrainConfig
from regraft.core.progress import QUIET
from regraft.core.statistics import wilson_interval
from regraft.data.scan import list_photos
from regraft.labelling.cards import PAGE_SIZE, Annotation, Page
from regraft.labelling.head import find_projection, project_roots, solve_head
from regraft.labelling.heap import Contents, Heap
from regraft.labelling.journal import Journal
from regraft.labelling.sitting import Sitting
from regraft.models.feature_search import larger

SETS = ("hymenoptera", "grocery_fruit5", "pollen2", "wbc4", "signdigits10s", "hemlock2", "grocery_veg22")
SLIPS, LOOKED_AT = 0.02, 0.05  # of the photos
ANSWERS = (20, 40, 80, 160, 240)
SPLITS, HELD_OUT = 6, 0.3  # choices of photos to hold out, and their share
RESULTS = HERE / "results" / "labelling.json"


@dataclass(frozen=True)
class Truth:
    """Photos whose classes are known.

    Attributes:
        x: `(N, D)` float32, features.
        names: The class of each photo.
        hashes: Content hashes.
        closer: `(N, D)` float32, features of larger photos; None for none.
    """

    x: np.ndarray
    names: list[str]
    hashes: list[str]
    closer: np.ndarray | None = None


class Annotator:
    """A person who knows every photo's class.

    Args:
        sitting: What is answered.
        truth: The classes.
        slips: Share of the answers that are wrong.
        seed: Of the slips.
    """

    def __init__(self, sitting: Sitting, truth: Truth, slips: float = 0.0, seed: int = 0) -> None:
        self.sitting, self.truth, self.num_actions = sitting, truth, 0
        self._rng, self._slips = np.random.default_rng(seed), slips

    def label_all(self) -> None:
        """Name groups until each class has a photo, then go through the guesses."""
        wanted = len(set(self.truth.names))
        while not (status := self.sitting.status()).is_done:
            is_named = sum(count > 0 for count in status.counts.values()) == wanted
            self.answer_page(self.sitting.page("guesses" if is_named else "groups"))

    def answer_page(self, page: Page) -> None:
        """Accept a page, after naming its class and putting right what is wrong."""
        labels = [self._label(card.photo) for card in page.cards]
        expected = page.suggestion if page.kind == "guesses" else None
        if page.kind == "groups":
            expected = max(sorted(set(labels)), key=labels.count)
        for name in {*labels}:
            if name not in self.sitting.status().classes:
                self.sitting.add_class(name)
        wrong = sum(name != (expected or card.guess) for name, card in zip(labels, page.cards, strict=True))
        self.num_actions += 1 + wrong
        answers = [Annotation(card.photo, name) for card, name in zip(page.cards, labels, strict=True)]
        self.sitting.answer(answers, person="script", seen_version=page.version)
        self.sitting.wait()

    def _label(self, photo: int) -> str:
        """The class of a photo, or by a slip another one."""
        name = self.truth.names[photo]
        others = sorted(set(self.truth.names) - {name})
        return str(self._rng.choice(others)) if self._rng.random() < self._slips else name


@contextmanager
def sitting_on(truth: Truth, chosen: np.ndarray | None = None) -> Iterator[Sitting]:
    """A sitting on photos whose features are there."""
    count = len(truth.names)
    heap = Heap(Path(), tuple(f"{i}.jpg" for i in range(count)), ("",) * count)
    contents = Contents(count)
    indices = heap.order.tolist()
    contents.put(indices, [truth.hashes[i] for i in indices], truth.x[indices])
    if truth.closer is not None:
        contents.put_closer(np.arange(count), project_roots(truth.closer))
    with tempfile.TemporaryDirectory() as folder:
        sitting = Sitting(heap, Journal(Path(folder) / "journal.jsonl"), contents)
        sitting.wait()
        try:
            yield sitting
        finally:
            sitting.close()


def real(name: str) -> Truth:
    """A set of REGRAFT_DATA; of copies the first."""
    listed = list_photos(Path(os.environ["REGRAFT_DATA"]) / name)
    config = TrainConfig()
    backbone = configured(config, QUIET)
    dataset, features = extract(backbone, listed)
    _, closer = extract(larger(backbone, config, QUIET), listed)
    first = sorted({content: i for i, content in reversed(list(enumerate(dataset.hashes)))}.values())
    names = [dataset.classes[dataset.labels[i]] for i in first]
    return Truth(features.x[first], names, [dataset.hashes[i] for i in first], closer.x[first])


def drawn(count: int, num_classes: int, spread: float, seed: int, size: int = 64, rank: int = 48) -> Truth:
    """Features of drawn photos: a cloud for each class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(num_classes, rank))
    y = rng.integers(num_classes, size=count)
    turn = np.random.default_rng(98).normal(size=(rank, size)) / np.sqrt(rank)
    x = (centres[y] + spread * rng.normal(size=(count, rank))) @ turn
    hashes = [f"{seed:032x}{i:032x}" for i in range(count)]
    return Truth(x.astype(np.float32), [f"class{label}" for label in y], hashes)


def actions(name: str) -> dict[str, float]:
    """Keys a photo without slips, and the share of 2 % slips that doubts bring back first."""
    truth = real(name)
    with sitting_on(truth) as sitting:
        annotator = Annotator(sitting, truth)
        annotator.label_all()
        labels = {row.sha256: row.label for row in sitting.rows()}
        assert [labels[content] for content in truth.hashes] == truth.names
        keys = annotator.num_actions / len(truth.names)
    caught = [slips_found(truth, seed) for seed in range(5)]
    found, all_of_them = (sum(column) for column in zip(*caught, strict=True))
    return {"photos": len(truth.names), "actions_per_photo": round(keys, 4), "slips": all_of_them, "found": found}


def slips_found(truth: Truth, seed: int) -> tuple[int, int]:
    """How many slips are among the first doubts, and how many there are."""
    with sitting_on(truth) as sitting:
        Annotator(sitting, truth, SLIPS, seed).label_all()
        labels = {row.sha256: row.label for row in sitting.rows()}
        slipped = {i for i, content in enumerate(truth.hashes) if labels[content] != truth.names[i]}
        left, perfect, shown = max(1, round(LOOKED_AT * len(truth.names))), Annotator(sitting, truth), set()
        while left > 0 and (page := sitting.page("doubts", size=min(left, PAGE_SIZE))).cards:
            shown |= {card.photo for card in page.cards}
            left -= len(page.cards)
            perfect.answer_page(page)
        return len(slipped & shown), len(slipped)


def curves(name: str) -> dict[str, Any]:
    """Accuracy on held-out photos after some answers, questions beside photos at random, over some choices of them."""
    truth, found = real(name), {}
    for way in ("questions", "random"):
        runs = [_curve(truth, way, seed) for seed in range(SPLITS)]
        found[way] = {str(n): [round(run[n], 4) for run in runs if n in run] for n in ANSWERS if n in runs[0]}
    means = {way: {n: float(np.mean(values)) for n, values in of.items()} for way, of in found.items()}
    held_out = round(HELD_OUT * len(truth.names))
    half = {
        n: float(np.diff(wilson_interval(round(p * held_out), held_out))[0] / 2) for n, p in means["random"].items()
    }
    rounded = {way: {n: round(value, 4) for n, value in of.items()} for way, of in {**means, "half": half}.items()}
    return {"runs": found, "held_out": held_out, **rounded}


def _curve(truth: Truth, way: str, seed: int) -> dict[int, float]:
    """Accuracy after each number of answers, which are single photos."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truth.names))
    held_out, rest = np.split(order, [round(HELD_OUT * len(order))])
    part = Truth(truth.x[rest], [truth.names[i] for i in rest], [truth.hashes[i] for i in rest])
    at_random = rng.permutation(len(rest)).tolist()
    given = at_random if way == "random" else _asked(part, at_random)
    projection, names = find_projection(part.x, np.arange(len(rest))), sorted(set(truth.names))
    z, y = projection(truth.x), np.array([names.index(name) for name in truth.names])
    found = {}
    for count in (count for count in ANSWERS if count <= len(given)):
        photos = rest[given[:count]]
        head = solve_head(z[photos], y[photos], len(names), projection)
        found[count] = float((head.log_probabilities(z[held_out]).argmax(axis=1) == y[held_out]).mean())
    return found


def _asked(part: Truth, at_random: list[int]) -> list[int]:
    """Photos in the order in which questions ask for them, ten at a time; the first ten are the first at random."""
    given: list[int] = []
    with sitting_on(part) as sitting:
        for name in sorted(set(part.names)):
            sitting.add_class(name)
        while len(given) < min(max(ANSWERS), len(part.names)):
            page = sitting.page("questions", size=10) if given else None
            new = set(at_random) - set(given)
            chosen = (
                [card.photo for card in page.cards] if page and page.cards else [i for i in at_random if i in new][:10]
            )
            sitting.answer([Annotation(i, part.names[i]) for i in chosen], person="script")
            sitting.wait()
            given += chosen
    return given


def audit(num_sittings: int = 200) -> dict[str, float]:
    """How often the interval of the audit covers the accuracy on 20,000 photos like those of the heap."""
    covered, fresh = 0, drawn(20_000, 4, 2.2, 10**6)
    for seed in range(num_sittings):
        truth, rng = drawn(400, 4, 2.2, seed), np.random.default_rng(seed)
        with sitting_on(truth) as sitting:
            annotator = Annotator(sitting, truth)
            while sum(count > 0 for count in sitting.status().counts.values()) < 4:
                annotator.answer_page(sitting.page("groups"))
            for _ in range(int(rng.integers(1, 6))):
                annotator.answer_page(sitting.page("guesses"))
            for card in sitting.page("audit", size=int(rng.integers(10, 41))).cards:
                sitting.answer([Annotation(card.photo, truth.names[card.photo], is_audit=True)], person="script")
            sitting.wait()
            estimate, accuracy = sitting.status().accuracy, _accuracy(sitting, fresh)
            assert estimate is not None
            covered += estimate.low <= accuracy <= estimate.high
    return {"sittings": num_sittings, "covered": covered}


def _accuracy(sitting: Sitting, fresh: Truth) -> float:
    """Accuracy of a sitting's head on other photos."""
    solver = sitting._solver
    predicted = solver._head.log_probabilities(solver._space.projection(fresh.x)).argmax(axis=1)
    classes = sitting.status().classes
    return float(np.mean([classes[one] == name for one, name in zip(predicted, fresh.names, strict=True)]))


def solve() -> dict[str, float]:
    """Seconds of a solution after each page, while 10,000 photos of 20 classes are labelled."""
    truth = drawn(10_000, 20, 1.5, 0, 1280, 512)
    with sitting_on(truth) as sitting, threadpool_limits(2):
        seconds = []
        for name in sorted(set(truth.names)):
            sitting.add_class(name)
        at = 0
        for count in [*[24] * 20, 1000, *[24] * 20, 2000, *[24] * 20, 3000, *[24] * 20, 2000, *[24] * 20]:
            sitting.answer([Annotation(i, truth.names[i]) for i in range(at, at + count)], person="script")
            sitting.wait()
            at += count
            seconds += [sitting._solver.latest.seconds] if count == 24 else []
    middle, high = np.median(seconds, axis=0).round(4), np.quantile(seconds, 0.95, axis=0).round(4)
    return {"median_s": middle[0], "p95_s": high[0], "median_processor_s": middle[1], "p95_processor_s": high[1]}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["actions", "curves", "audit", "solve"])
    parser.add_argument("--sets", default=",".join(SETS))
    wanted = parser.parse_args()
    if wanted.what in ("actions", "curves"):
        for name in wanted.sets.split(","):
            keep(wanted.what, {"actions": actions, "curves": curves}[wanted.what](name), name)
    else:
        keep(wanted.what, {"audit": audit, "solve": solve}[wanted.what]())


def keep(what: str, one: dict[str, Any], name: str | None = None) -> None:
    """Print a result and write it beside those that are there."""
    print(name or what, one, flush=True)
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found[what] = one if name is None else {**found.get(what, {}), name: one}
    RESULTS.write_text(json.dumps({**found, "machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
