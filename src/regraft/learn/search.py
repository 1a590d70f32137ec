"""Frozen features other than the usual ones: a larger input, and all levels of the network, chosen by measurement.

Every way of getting features is tried on the photos to learn from alone, by cross-validation, so that the photos which
the model is judged on have no part in the choice.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regraft.backbones.features import Features, extract, num_new
from regraft.backbones.graph import Backbone, load_backbone, with_all_levels
from regraft.data.scan import Dataset
from regraft.ground.config import TrainConfig
from regraft.ground.errors import BackboneError
from regraft.ground.progress import Progress
from regraft.ground.runtime import num_cores
from regraft.learn.head import Head, Score, solve

LARGER = 10 / 7  # times the network's own input, such as 320 for 224
STEP = 32  # pixels that sizes are multiples of


@dataclass(frozen=True)
class Way:
    """A way of getting features. name: such as "320 px, all levels".  features: of all photos."""

    name: str
    backbone: Backbone
    features: Features


@dataclass(frozen=True)
class Tried:
    """A way and the head that was solved on it."""

    way: Way
    head: Head

    @property
    def score(self) -> Score:
        """Cross-validated on the photos to learn from, of a head that was."""
        assert self.head.best is not None
        return self.head.best

    def to_json(self) -> dict[str, Any]:
        """As stored in the manifest."""
        return {"way": self.way.name, **vars(self.score)}

    def __str__(self) -> str:
        right = 100 * self.score.num_right / self.score.n
        return f"{self.way.name}: log loss {self.score.log_loss:.3f}, {right:.1f} % right"


def search(
    plain: Tried,
    dataset: Dataset,
    learned: Dataset,
    folds: np.ndarray,
    config: TrainConfig,
    budget_s: float,
    progress: Progress,
) -> list[Tried]:
    """Every way that the time allows, the plain one first; the best is the one of the lowest log loss.

    dataset: all photos.  learned: those to learn from, which `folds (N,)` belong to.  budget_s: seconds at most,
    estimated.
    """
    tried = [plain]
    for way in _ways(plain.way, dataset, config, time.monotonic() + budget_s, progress):
        with progress.step("solve head"):
            tried.append(Tried(way, solve(way.features.of(learned), len(dataset.classes), folds)))
        progress.say(f"  {tried[-1]}")
    return tried


def best(tried: list[Tried]) -> Tried:
    """The way of the lowest cross-validated log loss."""
    return min(tried, key=lambda one: one.score.log_loss)


def _ways(plain: Way, dataset: Dataset, config: TrainConfig, deadline: float, progress: Progress) -> Iterator[Way]:
    """All levels at the network's own size, then a larger input, alone and with all levels."""
    side = plain.backbone.preprocessing.height
    larger = round(side * LARGER / STEP) * STEP
    for size in (side, larger):
        backbone = plain.backbone if size == side else _or_none(_resized, config, larger, progress)
        levels = backbone and _or_none(with_all_levels, backbone, progress)
        richest = levels or backbone
        if richest is None or richest is plain.backbone:
            continue  # a network of a fixed size, or without levels
        if not _is_affordable(richest, dataset, deadline):
            progress.say(f"  {size} px: not tried, it would take too long")
            return
        _, features = extract(richest, dataset, progress=progress)
        if backbone is not None and backbone is not plain.backbone:  # the usual features stand at the end
            last = features.table[:, -backbone.num_features :]
            yield Way(f"{size} px", backbone, replace(features, table=last))
        if levels is not None:
            yield Way(f"{size} px, all levels", levels, features)


def _or_none(make: Callable[..., Backbone], *arguments: Any) -> Backbone | None:
    try:
        return make(*arguments)
    except BackboneError:
        return None


def _resized(config: TrainConfig, size: int, progress: Progress) -> Backbone:
    return load_backbone(
        config.backbone, config.weights, offline=config.offline, seed=config.seed, size=size, progress=progress
    )


def _is_affordable(backbone: Backbone, dataset: Dataset, deadline: float) -> bool:
    """Whether features of all photos can be had in time, as far as one of them tells."""
    new = num_new(backbone, dataset)
    if new == 0:
        return True
    p = backbone.preprocessing
    engine, photo = backbone.engine(), np.zeros((1, p.height, p.width, 3), np.uint8)
    engine(photo)
    began = time.monotonic()
    engine(photo)
    return time.monotonic() + new * (time.monotonic() - began) / num_cores() < deadline
