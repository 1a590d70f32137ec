"""Transfer learning in plain PyTorch, start to end: made to be copied and changed.

    python examples/train_loop.py photos/ [--mode full|frozen|scratch] [--epochs 10] [--backbone resnet50]

photos/ holds train/<class>/<image> and val/<class>/<image>. `regraft train photos/ --recipe tutorial` does the same;
it also resumes, checks the photos, judges through the saved model and reports. transfer_learning.ipynb goes through
these functions one by one.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of the photos that torchvision's weights were trained on
NUMBERS = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


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
    model = models.get_model(arguments.backbone, weights=None if arguments.mode == "scratch" else "DEFAULT")
    if arguments.mode == "frozen":
        freeze(model)
    put_new_head(model, len(train.dataset.classes))
    learn(model, train, val, arguments.epochs)
    torch.save({"state_dict": model.state_dict(), "classes": train.dataset.classes}, arguments.out)


def views(size: int = 224) -> tuple[transforms.Compose, transforms.Compose]:
    """A photo as a network learns from it, each time otherwise, and as it is judged, always the same."""
    learned = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    judged = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    return transforms.Compose(learned), transforms.Compose(judged)


def load(photos: Path, size: int = 224) -> tuple[DataLoader, DataLoader]:
    """Batches to learn from, augmented, and batches to judge on."""
    learned, judged = views(size)
    train = datasets.ImageFolder(photos / "train", transforms.Compose([learned, NUMBERS]))
    val = datasets.ImageFolder(photos / "val", transforms.Compose([judged, NUMBERS]))
    if val.classes != train.classes:  # ImageFolder numbers the classes of each folder by themselves
        raise SystemExit(f"train has the classes {train.classes}, val {val.classes}")
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=8)


def read_checkpoint(model: nn.Module, path: Path) -> None:
    """Weights that were saved from nn.DataParallel, which puts `module.` before every name."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})


def freeze(model: nn.Module) -> None:
    """Nothing that is there learns any more; a head that is put on afterwards does."""
    for parameter in model.parameters():
        parameter.requires_grad = False


def put_new_head(model: nn.Module, num_classes: int) -> None:
    """Replace the last linear layer by a new one for other classes."""
    name, old = [(n, layer) for n, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    model.set_submodule(name, nn.Linear(old.in_features, num_classes))


def learn(model: nn.Module, train: DataLoader, val: DataLoader, epochs: int) -> None:
    """Plain gradient descent; after each epoch the photos that were not learned from are judged."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=1e-2, weight_decay=1e-4)
    for epoch in range(1, epochs + 1):
        loss, accuracy = run_epoch(model, train, optimizer)
        val_loss, val_accuracy = run_epoch(model, val)
        print(
            f"epoch {epoch}: train loss {loss:.3f}, accuracy {accuracy:.3f}; "
            f"val loss {val_loss:.3f}, accuracy {val_accuracy:.3f}"
        )


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


def predict(model: nn.Module, photo: Path, classes: list[str], size: int = 224) -> tuple[str, float]:
    """The most probable class of one photo, and its probability."""
    image = NUMBERS(views(size)[1](Image.open(photo).convert("RGB")))
    with torch.inference_mode():
        probabilities = model.eval()(image[None]).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    return classes[best], float(probabilities[best])


if __name__ == "__main__":
    main()
