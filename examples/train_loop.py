"""Transfer learning in plain PyTorch, start to end: made to be copied and changed.

    python examples/train_loop.py photos/ [--mode full|frozen|scratch] [--epochs 10] [--backbone resnet50]

photos/ holds train/<class>/<image> and val/<class>/<image>. `regraft train photos/ --recipe tutorial` does the same;
it also resumes, checks the photos, judges through the saved model and reports.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the photos that torchvision's weights were trained on


def main() -> None:
    """Read, build, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--mode", choices=["full", "frozen", "scratch"], default="full")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--out", type=Path, default=Path("model.pt"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train, val = load(arguments.photos)
    model = build(arguments.backbone, len(train.dataset.classes), arguments.mode)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2, weight_decay=1e-4)
    for epoch in range(1, arguments.epochs + 1):
        began = time.perf_counter()
        train_loss, train_accuracy = run_epoch(model, train, optimizer)
        val_loss, val_accuracy = run_epoch(model, val)
        print(
            f"epoch {epoch}: train loss {train_loss:.3f}, accuracy {train_accuracy:.3f}; "
            f"val loss {val_loss:.3f}, accuracy {val_accuracy:.3f}; {time.perf_counter() - began:.1f} s"
        )
    torch.save({"state_dict": model.state_dict(), "classes": train.dataset.classes}, arguments.out)


def load(photos: Path) -> tuple[DataLoader, DataLoader]:
    """Batches to learn from, augmented, and batches to judge on."""
    normalise = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augmented = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise])
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *normalise])
    train = datasets.ImageFolder(photos / "train", augmented)
    val = datasets.ImageFolder(photos / "val", plain)
    if val.classes != train.classes:  # ImageFolder numbers the classes of each folder by themselves
        raise SystemExit(f"train has the classes {train.classes}, val {val.classes}")
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=8)


def build(name: str, num_classes: int, mode: str) -> nn.Module:
    """A network that knows ImageNet, or nothing ("scratch"), with a new last layer; "frozen": that alone learns."""
    model = models.get_model(name, weights=None if mode == "scratch" else "DEFAULT")
    for parameter in model.parameters():
        parameter.requires_grad = mode != "frozen"
    head, last = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    parent = model.get_submodule(head.rpartition(".")[0])
    setattr(parent, head.rpartition(".")[2], nn.Linear(last.in_features, num_classes))
    return model


def run_epoch(
    model: nn.Module, batches: DataLoader, optimizer: torch.optim.Optimizer | None = None
) -> tuple[float, float]:
    """Mean loss and accuracy over all photos; learns where there is an optimizer."""
    model.train(optimizer is not None)
    loss_sum = num_right = n = 0
    with torch.set_grad_enabled(optimizer is not None):
        for images, labels in batches:
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            loss_sum += loss.item() * len(labels)
            num_right += (logits.argmax(dim=1) == labels).sum().item()
            n += len(labels)
    return loss_sum / n, num_right / n


if __name__ == "__main__":
    main()
