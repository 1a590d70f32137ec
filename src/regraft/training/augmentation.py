"""Random changes of photos, each made to fit the network's input as it is when the model is asked."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from regraft.backbones.network import Network
from regraft.core.errors import ConfigError
from regraft.data.transforms import Preprocessing
from regraft.training.recipe import Recipe

SMALL, GRID = 0.7, 32  # side of smaller photos, as a share of the input's, and what it is a multiple of
Augmentation = Callable[[Tensor], Tensor]


def augmentation(recipe: Recipe, preprocessing: Preprocessing) -> Augmentation:
    """Build the random changes of one photo `(3, H, W)` uint8, to the network's input size.

    Their randomness is torch's.
    """
    steps: list[torch.nn.Module] = [_RandomCrop(preprocessing, recipe.min_crop)]
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    if recipe.augment == "color":
        steps.append(v2.ColorJitter(0.4, 0.4, 0.4))
    if recipe.augment == "trivial":
        steps.append(v2.TrivialAugmentWide())
    changes: Augmentation = v2.Compose(steps)
    return changes


def small_augmentation(recipe: Recipe, network: Network) -> Augmentation | None:
    """Build the same changes to photos of `SMALL` times the side; None for a network that takes no such photos.

    Raises:
        ConfigError: The recipe wants smaller photos, and the network takes none.
    """
    p = network.preprocessing
    height, width = (GRID * round(SMALL * side / GRID) for side in (p.height, p.width))
    if recipe.views == 0 and 0 < height < p.height and 0 < width < p.width and _takes(network, height, width):
        return augmentation(recipe, replace(p, height=height, width=width))
    if recipe.small_epochs:
        raise ConfigError(
            f"--small-epochs {recipe.small_epochs}: {network.reference} takes no smaller photos. Leave it out."
        )
    return None


def _takes(network: Network, height: int, width: int) -> bool:
    """Tell whether a network takes photos of another size, by asking it."""
    try:
        with torch.inference_mode():
            network.module.eval()(torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


class _RandomCrop(torch.nn.Module):
    """A random part of a photo, resized to the network's input: of the photo as it is padded or squashed there."""

    def __init__(self, preprocessing: Preprocessing, min_crop: float) -> None:
        super().__init__()
        self._preprocessing, self._scale = preprocessing, (min_crop, 1.0)

    def forward(self, photo: Tensor) -> Tensor:
        """Change a photo `(3, H, W)` uint8."""
        p, squashed = self._preprocessing, 1.0
        if p.crop_mode == "border":
            photo = _padded(photo, p)
        if p.crop_mode == "squash":
            squashed = (photo.shape[2] / photo.shape[1]) / (p.width / p.height)
        ratio = (squashed * 3 / 4, squashed * 4 / 3)
        how = InterpolationMode(p.interpolation)
        crop = v2.RandomResizedCrop((p.height, p.width), self._scale, ratio, interpolation=how, antialias=True)
        return cast(Tensor, crop(photo))


def _padded(photo: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pad a photo `(3, H, W)` to the aspect ratio of the network's input."""
    p, (height, width) = preprocessing, photo.shape[1:]
    scale = max(height / p.height, width / p.width)
    above, before = round(scale * p.height) - height, round(scale * p.width) - width
    sides = [before // 2, above // 2, before - before // 2, above - above // 2]
    return cast(Tensor, v2.functional.pad(photo, sides, fill=list(p.fill)))
