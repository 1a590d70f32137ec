"""fastai's `fine_tune` with the default backbone's weights; runs in an environment of its own that has fastai.

    python bench/peer_fastai.py DIR [--epochs 5 | --minutes 10] [--seed 0]

DIR holds train/<class>/ and val/<class>/. --minutes: as many epochs as this time allows, by the seconds of one epoch.
Prints one JSON object: accuracy of the last and of the best epoch, seconds.
"""

import argparse
import json
import time
from pathlib import Path

from fastai.vision.all import (
    Callback,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    ShortEpochCallback,
    accuracy,
    apply_init,
    aug_transforms,
    create_head,
    default_split,
    nn,
    set_seed,
)

from peer_network import network

SHARE = 0.4  # of an epoch, to measure


def main() -> None:
    """Fine-tune as fastai's own examples do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    set_seed(arguments.seed, reproducible=True)
    photos = ImageDataLoaders.from_folder(
        arguments.folder,
        train="train",
        valid="val",
        item_tfms=Resize(460),
        batch_tfms=[*aug_transforms(size=224), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
        num_workers=0,
        bs=64,
    )
    num_epochs = arguments.epochs
    if arguments.minutes:
        num_epochs = within(began + 60 * arguments.minutes, learner(photos))
    fine_tuned = learner(photos)
    with fine_tuned.no_bar(), fine_tuned.no_logging():
        fine_tuned.fine_tune(num_epochs)
    scores = [float(values[-1]) for values in fine_tuned.recorder.values]
    found = {"accuracy": scores[-1], "best": max(scores), "epochs": num_epochs}
    print(json.dumps({**found, "seconds": time.perf_counter() - began}))


def learner(photos: ImageDataLoaders) -> Learner:
    """fastai's own head on the network."""
    model = nn.Sequential(body(), create_head(1280, photos.c))
    apply_init(model[1], nn.init.kaiming_normal_)
    return Learner(photos, model, metrics=accuracy, splitter=default_split)


def within(end: float, trial: Learner) -> int:
    """How many epochs of all layers end by then, by the seconds of a few batches after the first one.

    A photo that is judged costs half of one that is learned from, and the head's own epoch before half of an epoch.
    """
    watch = Stopwatch()
    with trial.no_bar(), trial.no_logging():
        trial.fit(1, cbs=[watch, ShortEpochCallback(SHARE)])
    per_batch = (watch.times[-1] - watch.times[0]) / (len(watch.times) - 1)
    epoch_s = per_batch * (len(trial.dls.train) + 0.5 * len(trial.dls.valid))
    return max(1, round((end - time.perf_counter()) / epoch_s - 0.5))


class Stopwatch(Callback):
    """When each batch that is learned from was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_batch(self) -> None:
        """Look at the clock."""
        if self.training:
            self.times.append(time.perf_counter())


def body() -> nn.Module:
    """timm's network without its head, the packaged weights in it."""
    backbone = network()
    backbone.reset_classifier(0, "")
    return backbone


if __name__ == "__main__":
    main()
