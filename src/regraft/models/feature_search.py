"""Features of the frozen network other than the usual ones, chosen by measurement.

A larger input, whole photos padded or squashed, all levels of the network, and square roots of its own features.

Every features configuration is tried on the training photos alone, by cross-validation, so that the photos that the
model is evaluated on have no part in the choice.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from regraft.backbones.backbone import Backbone, configured
from regraft.backbones.derived import with_all_levels, with_roots
from regraft.backbones.features import FeatureTable, extract, num_new
from regraft.core.config import Fit, TrainConfig
from regraft.core.errors import BackboneError
from regraft.core.progress import Progress
from regraft.core.runtime import num_cores
from regraft.data.scan import Dataset
from regraft.data.transforms import CROP_MODES
from regraft.models.head_cache import cached_head
from regraft.models.linear_head import Head, Score

LARGER = 10 / 7  # times the network's own input, such as 320 for 224
STEP = 32  # pixels that sizes are multiples of


@dataclass(frozen=True)
class FeatureConfig:
    """A features configuration: a network with its input size, and what it gives for all photos.

    Attributes:
        name: Such as "320 px, padded, all levels".
        backbone: The network that gives the features.
        features: Of all photos.
    """

    name: str
    backbone: Backbone
    features: FeatureTable


@dataclass(frozen=True)
class Trial:
    """A features configuration and the head that was solved on it."""

    feature_config: FeatureConfig
    head: Head

    @property
    def score(self) -> Score:
        """Quality of the head, cross-validated on the training photos; only for a head that was cross-validated."""
        assert self.head.cross_validated is not None
        return self.head.cross_validated

    def to_json(self) -> dict[str, Any]:
        """Return the configuration's name and score, as stored in the manifest."""
        return {"way": self.feature_config.name, **vars(self.score)}

    def __str__(self) -> str:
        percent = 100 * self.score.num_right / self.score.n
        return f"{self.feature_config.name}: log loss {self.score.log_loss:.3f}, {percent:.1f} % right"


def search(
    plain: Trial,
    dataset: Dataset,
    learned: Dataset,
    folds: np.ndarray,
    config: TrainConfig,
    budget_s: float,
    progress: Progress,
) -> list[Trial]:
    """Try every features configuration that the time allows; the best is the one of the lowest log loss.

    First the usual input, then a larger one, then whole photos padded or squashed to the better of the two sizes.

    Args:
        plain: The usual features with their head, which is the first trial.
        dataset: All photos.
        learned: The training photos, which `folds` belong to.
        folds: `(N,)`, the fold that evaluates each of the training photos.
        config: Of the run.
        budget_s: Seconds that it may take at most, estimated.
        progress: Is told what is done.

    Returns:
        The trials, the plain one first.
    """
    backbone = plain.feature_config.backbone
    trials, deadline = [plain], time.monotonic() + budget_s
    for choose in (_as_it_is, larger, partial(_shown_whole, trials, "pad"), partial(_shown_whole, trials, "squash")):
        candidate = choose(backbone, config, progress)
        if candidate is None:
            continue
        wide = richest(candidate, progress)
        if not _is_affordable(wide, dataset, deadline):
            progress.say(f"  {input_of(candidate)}: not tried, it would take too long")
            continue
        for feature_config in feature_configs_of(candidate, wide, dataset, progress):
            if feature_config.backbone is not backbone and time.monotonic() < deadline:
                trials.append(run_trial(feature_config, learned, folds, progress))
                progress.say(f"  {trials[-1]}")
    return trials


def run_trial(feature_config: FeatureConfig, learned: Dataset, folds: np.ndarray, progress: Progress) -> Trial:
    """Solve a head on a features configuration.

    Args:
        feature_config: The features to use.
        learned: The training photos, which `folds` belong to.
        folds: `(N,)`, the fold that evaluates each of the training photos.
        progress: Is told what is done.
    """
    with progress.step("solve head"):
        return Trial(
            feature_config, cached_head(feature_config.features.of(learned), len(learned.classes), folds, progress)
        )


def best(trials: list[Trial]) -> Trial:
    """Return the trial of the lowest cross-validated log loss."""
    return min(trials, key=lambda one: one.score.log_loss)


def feature_configs_of(
    backbone: Backbone, wide: Backbone, dataset: Dataset, progress: Progress
) -> Iterator[FeatureConfig]:
    """Yield the usual features, their roots, and where the network has levels those of all levels: one pass gives all.

    Roots of all levels were tried too, and were no better than the levels themselves.

    Args:
        backbone: The network as it is.
        wide: What `richest` gives for it.
        dataset: All photos.
        progress: Is told what is done.
    """
    name = input_of(backbone)
    features = extract(wide, dataset, progress=progress)[1].by_content
    usual = features.last(backbone.num_features)  # at the end
    yield FeatureConfig(name, backbone, usual)
    yield FeatureConfig(f"{name}, roots", with_roots(backbone, progress), usual.roots())
    if wide is not backbone:
        yield FeatureConfig(f"{name}, all levels", wide, features)


def larger(backbone: Backbone, config: TrainConfig, progress: Progress) -> Backbone | None:
    """Return the backbone of a run at a larger input; None for a network of a fixed size."""
    size = round(backbone.preprocessing.height * LARGER / STEP) * STEP
    try:
        return configured(config, progress, size=size).with_grey_bits(backbone.preprocessing.grey_bits)
    except BackboneError:
        return None


def richest(backbone: Backbone, progress: Progress) -> Backbone:
    """Return the backbone with all its levels, or itself where it has none."""
    try:
        return with_all_levels(backbone, progress)
    except BackboneError:
        return backbone


def _as_it_is(backbone: Backbone, *_: object) -> Backbone:
    return backbone


def _shown_whole(
    trials: list[Trial], fit: Fit, backbone: Backbone, config: TrainConfig, progress: Progress
) -> Backbone | None:
    """Return the backbone behind whole photos, at the size of the best of the trials; None where that is fixed."""
    if config.fit is not None or backbone.preprocessing.crop_mode == CROP_MODES[fit]:
        return None
    height = best(trials).feature_config.backbone.preprocessing.height
    is_original = height == backbone.preprocessing.height
    sized = backbone if is_original else larger(backbone, config, progress)
    return sized and sized.with_fit(fit)


def input_of(backbone: Backbone) -> str:
    """Name a backbone's input, such as "320 px, padded"."""
    p = backbone.preprocessing
    return f"{p.height} px" + {"border": ", padded", "squash": ", squashed", "center": ""}[p.crop_mode]


def photos_per_s(backbone: Backbone) -> float:
    """Estimate how many photos a second go through on all cores, from the time that one photo takes."""
    p = backbone.preprocessing
    engine, photo = backbone.engine(), np.zeros((1, p.height, p.width, 3), np.uint8)
    engine(photo)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        engine(photo)
        seconds.append(time.perf_counter() - began)
    return num_cores() / min(seconds)


def _is_affordable(backbone: Backbone, dataset: Dataset, deadline: float) -> bool:
    """Tell whether features of all photos can be had in time."""
    new = num_new(backbone, dataset)
    return new == 0 or time.monotonic() + new / photos_per_s(backbone) < deadline
