"""The first MobileNet, as the tutorial builds it: names `model.0.0.weight` to `fc.weight`.

References:
    A. G. Howard et al., "MobileNets: Efficient convolutional neural networks for mobile vision applications", 2017.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
HALVED = (0, 2, 4, 6, 12)  # layers that halve height and width


class MobileNet(nn.Module):
    """Depthwise separable convolutions from `(B, 3, H, W)` float32 to `(B, num_classes)`; made for 224 x 224 pixels."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        layers = [_full(3, WIDTHS[0], 2)]
        for number, (width_in, width) in enumerate(pairwise(WIDTHS), start=1):
            layers.append(_separable(width_in, width, 2 if number in HALVED else 1))
        # the tutorial pools 7 x 7, which is all of it at 224 pixels
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(WIDTHS[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a normalised batch."""
        return torch.as_tensor(self.fc(self.model(images).flatten(1)))


def _full(width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _separable(width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_in, 3, stride, 1, groups=width_in, bias=False),
        nn.BatchNorm2d(width_in),
        nn.ReLU(),
        nn.Conv2d(width_in, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )
