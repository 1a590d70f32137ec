"""fastai's `fine_tune` with the default backbone's weights; runs in an environment of its own that has fastai.

    python bench/peer_fastai.py DIR [--epochs 5] [--seed 0]

DIR holds train/<class>/ and val/<class>/. Prints one JSON object: accuracy of the last and of the best epoch, seconds.
"""

import argparse
import json
import time
from pathlib import Path

from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    TrainState,
    accuracy,
    apply_init,
    aug_transforms,
    create_head,
    default_split,
    nn,
    set_seed,
)

from peer_network import network


def main() -> None:
    """Fine-tune as fastai's own examples do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
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
    model = nn.Sequential(body(), create_head(1280, photos.c))
    apply_init(model[1], nn.init.kaiming_normal_)
    train_state = TrainState(photos, model, metrics=accuracy, splitter=default_split)
    with train_state.no_bar(), train_state.no_logging():
        train_state.fine_tune(arguments.epochs)
    scores = [float(values[-1]) for values in train_state.recorder.values]
    print(json.dumps({"accuracy": scores[-1], "best": max(scores), "seconds": time.perf_counter() - began}))


def body() -> nn.Module:
    """timm's network without its head, the packaged weights in it."""
    backbone = network()
    backbone.reset_classifier(0, "")
    return backbone


if __name__ == "__main__":
    main()
