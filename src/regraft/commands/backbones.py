"""The command `regraft backbones --rank`: every network on this machine, tried on the user's photos."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.backbones.backbone import Backbone, cached_backbones, configured
from regraft.backbones.catalog import packaged_here
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError
from regraft.core.progress import Progress
from regraft.core.statistics import Accuracy, accuracy
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.models.feature_search import Trial, feature_configs_of, larger, photos_per_s, richest, run_trial


@dataclass(frozen=True)
class Ranked:
    """A network and a features configuration of it, tried on photos.

    Attributes:
        backbone: The network's name.
        trial: The features configuration and the head that was solved on it.
        photos_per_s: Photos a second through the network, decoding not counted.
    """

    backbone: str
    trial: Trial
    photos_per_s: float

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy, cross-validated over all photos."""
        return accuracy(self.trial.score.num_right, self.trial.score.n, "cross-validated")

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft backbones --rank --json` prints of it."""
        feature_config = {
            "backbone": self.backbone,
            "features": self.trial.feature_config.name,
            "log_loss": self.trial.score.log_loss,
        }
        return {**feature_config, "accuracy": self.accuracy.to_json(), "photos_per_s": round(self.photos_per_s, 1)}


def rank(folder: str | Path, config: TrainConfig, progress: Progress) -> list[Ranked]:
    """Rank the networks whose weights are on this machine by how well they suit some photos.

    Each is tried at its own input size and a larger one, with and without all levels of its features and roots of them,
    and cross-validated over all photos.

    Args:
        folder: The photos, laid out as for a training.
        config: Folds, seed, how photos fit the input, and how the folder is read.
        progress: Where messages and progress bars go.

    Returns:
        Networks and features configurations, best log loss first.

    Raises:
        DataError: No photo can be set apart, because each class has one only.
    """
    dataset = scan(folder, options=config.folder_options, progress=progress)
    folds = folds_of(dataset, config.num_folds, config.seed)
    if not (folds >= 0).any():
        raise DataError(f"{folder} has one photo of each class. Expected two of some, to judge on one. Add some.")
    ranked = []
    for name, backbone in _backbones(config, progress):
        for feature_config in feature_configs_of(backbone, richest(backbone, progress), dataset, progress):
            ranked.append(
                Ranked(name, run_trial(feature_config, dataset, folds, progress), photos_per_s(feature_config.backbone))
            )
            progress.say(f"  {name}, {ranked[-1].trial}")
    return sorted(ranked, key=lambda one: one.trial.score.log_loss)


def _backbones(config: TrainConfig, progress: Progress) -> Iterator[tuple[str, Backbone]]:
    """Yield the networks of installed packages, also at a larger size, and what the cache holds besides."""
    names = packaged_here()
    for name in names:
        settings = replace(config, backbone=name, weights=None, offline=True)
        backbone = configured(settings, progress)
        yield name, backbone
        if (updated := larger(backbone, settings, progress)) is not None:
            yield name, updated
    for backbone in cached_backbones():
        if backbone.name.removeprefix("timm/") not in names:
            yield backbone.name, backbone.with_fit(config.fit)
