"""The tutorial notebook in plain PyTorch: its transforms, loaders, loop and numbers, on the default backbone.

    python bench/peer_tutorial.py DIR [--mode full] [--epochs 10] [--workers 0] [--seed 0]

DIR holds train/<class>/ and val/<class>/. Prints one JSON object: accuracy of the last epoch, seconds of each epoch
with its judging, number of photos learned from, seconds in all.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from regraft.backbones import network

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of these weights; the notebook's network has others


def main() -> None:
    """Train as the notebook does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=["frozen", "full", "scratch"], default="full")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.perf_counter()
    torch.manual_seed(arguments.seed)
    train, val = loaders(arguments.folder, arguments.workers)
    model = network.build("tf_efficientnet_lite0", "random" if arguments.mode == "scratch" else None).module
    for parameter in model.parameters():
        parameter.requires_grad = arguments.mode != "frozen"
    model.classifier = nn.Linear(model.classifier.in_features, len(train.dataset.classes))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2, weight_decay=1e-4)
    epoch_s = []
    epochs = arguments.epochs or (10 if arguments.mode == "full" else 20)
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        accuracy = validate(model, val)
        epoch_s.append(time.perf_counter() - start)
    result = {"accuracy": accuracy, "epoch_s": epoch_s, "num_train": len(train.dataset)}
    print(json.dumps({**result, "seconds": time.perf_counter() - began}))


def loaders(folder: Path, workers: int) -> tuple[DataLoader, DataLoader]:
    """The notebook's."""
    normalise = transforms.Normalize(MEAN, STD)
    augmented = transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalise]
    )
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalise])
    train = datasets.ImageFolder(folder / "train", augmented, is_valid_file=is_photo)
    val = datasets.ImageFolder(folder / "val", plain, is_valid_file=is_photo)
    return DataLoader(train, 64, shuffle=True, num_workers=workers), DataLoader(val, 8, num_workers=workers)


def is_photo(path: str) -> bool:
    """Without the GIF of hymenoptera that says "image not found"."""
    return not path.endswith(".gif")


@torch.no_grad()
def validate(model: nn.Module, val: DataLoader) -> float:
    """Accuracy."""
    model.eval()
    correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in val)
    return correct / len(val.dataset)


if __name__ == "__main__":
    main()
