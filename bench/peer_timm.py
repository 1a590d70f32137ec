"""What timm's train.py does with its usual settings for fine-tuning, written with timm's parts: AdamW, cosine, colours.

In float32, as it is without further flags: with `--amp --amp-dtype bfloat16` this network learns a fifth more slowly on
a processor.

    python bench/peer_timm.py DIR [--epochs 10] [--seed 0]

DIR holds train/<class>/ and val/<class>/. Prints one JSON object: accuracy of the last epoch, seconds.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from timm.data import create_transform, resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from peer_network import network
from peer_tutorial import is_photo, validate


def main() -> None:
    """Fine-tune all layers from a head near zero."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    torch.manual_seed(arguments.seed)
    model = network().to(memory_format=torch.channels_last)
    train, val = loaders(arguments.folder, model)
    model.reset_classifier(len(train.dataset.classes))
    nn.init.normal_(model.classifier.weight, std=0.01)
    nn.init.zeros_(model.classifier.bias)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    num_steps = arguments.epochs * len(train)
    schedule = CosineLRScheduler(optimizer, t_initial=num_steps, warmup_t=len(train), warmup_lr_init=1e-5)
    criterion, number = LabelSmoothingCrossEntropy(0.1), 0
    for _ in range(arguments.epochs):
        model.train()
        for images, labels in train:
            schedule.step(number)
            optimizer.zero_grad()
            loss = criterion(model(images.to(memory_format=torch.channels_last)), labels)
            loss.backward()
            optimizer.step()
            number += 1
        accuracy = validate(model, val)
    print(json.dumps({"accuracy": accuracy, "seconds": time.perf_counter() - began}))


def loaders(folder: Path, model: nn.Module) -> tuple[DataLoader, DataLoader]:
    """Photos through timm's transforms."""
    config = resolve_model_data_config(model)
    augmented = create_transform(**config, is_training=True, scale=(0.35, 1.0), color_jitter=0.4, auto_augment=None)
    train = ImageFolder(folder / "train", augmented, is_valid_file=is_photo)
    val = ImageFolder(folder / "val", create_transform(**config), is_valid_file=is_photo)
    batch_size = min(32, len(train))
    return DataLoader(train, batch_size, shuffle=True, num_workers=2, drop_last=True), DataLoader(
        val, 64, num_workers=2
    )


if __name__ == "__main__":
    main()
