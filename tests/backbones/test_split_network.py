"""A network in two: both halves say what the whole says, or it is not divided."""

import numpy as np
import pytest
import torch
from torch import nn

from faults.processes import mostly_long
from regraft.backbones import split_network as divisions
from regraft.backbones.catalog import Reference
from regraft.backbones.network import Network, build
from regraft.backbones.onnx_export import probe_images
from regraft.backbones.split_network import ENGINE_SAME, FrontGraph, divide, front_engine
from regraft.backbones.stages import stages
from regraft.data.transforms import Preprocessing

SMALL = Preprocessing(32, 32, (40, 40), "bilinear", "center", (0.5,) * 3, (0.5,) * 3)
ROWS = (
    "timm/tf_efficientnet_lite0",
    "timm/test_resnet",
    "timm/mobilenetv3_small_050",
    "timm/convnext_atto",
    "timm/mobilevit_xxs",
    "torchvision/resnet18",
    "torchvision/densenet121",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/regnet_y_400mf",
    "regraft/mobilenet_v1",
)
OF_EACH_KIND = (
    "timm/tf_efficientnet_lite0",
    "timm/test_resnet",
    "timm/mobilevit_xxs",
    "torchvision/shufflenet_v2_x0_5",
    "regraft/mobilenet_v1",
)


def learning(network, count):
    """Names of the parameters of the last stages and the head."""
    trunk = [name for stage in stages(network)[-count:] for name in stage]
    heads = tuple(f"{head}." for head in network.heads)
    return trunk + [name for name, _ in network.module.named_parameters() if name.startswith(heads)]


def photos(network):
    p = network.preprocessing
    return torch.randn(3, 3, p.height, p.width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", mostly_long(ROWS, *OF_EACH_KIND))
def test_both_halves_say_what_the_whole_says(name):
    network = build(name, "random")
    images, before = photos(network), network.module.state_dict()
    for count in (1, 2):
        names = learning(network, count)
        division = divide(network, names)
        with torch.inference_mode():
            expected, activations = network.module(images), division.before(images)
            found = division.rest.module(activations)
        assert activations.ndim == 4
        assert torch.allclose(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        assert sorted(dict(division.rest.module.named_parameters())) == sorted(names), "nothing that stays as it is"
        assert all(torch.equal(value, before[key]) for key, value in division.rest.module.state_dict().items())
    assert network.module.state_dict().keys() == before.keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.module.modules())


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "timm/test_resnet", "regraft/mobilenet_v1"])
def test_the_engine_gives_the_maps_that_torch_gives(name):
    network = build(name, "random")
    division = divide(network, learning(network, 2))
    images = probe_images(network.preprocessing.height, network.preprocessing.width, 3)[:, :, ::-1]
    engine, graph = front_engine(division), FrontGraph(division)
    found = engine(images)["features"]
    with torch.inference_mode():
        expected = graph(torch.from_numpy(images.copy())).numpy()
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    assert np.abs(found - expected).max() <= ENGINE_SAME[engine.precision] * np.abs(expected).max()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.module.modules())


def test_stages_that_are_others_in_the_engine_run_in_torch(monkeypatch):
    network = build("timm/test_resnet", "random")
    division = divide(network, learning(network, 2))
    monkeypatch.setattr(divisions.Engine, "__call__", lambda *_: {"features": np.zeros((2, 20, 20, 48), np.float32)})
    assert front_engine(division) is None
    monkeypatch.setattr(divisions, "export", lambda *_: exec_fails())
    assert front_engine(division) is None


def exec_fails():
    raise RuntimeError("an operator without a translation")


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224"])
def test_a_network_of_tokens_is_not_divided(name):
    network = build(name, "random")
    assert divide(network, learning(network, 2)) is None


class Row(nn.Module):
    """Two stages and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, images):
        return self.fc(self.second(self.first(images)).mean((2, 3)))


class LooksBack(Row):
    """What is behind the cut sees what was before the stage in front of it."""

    def forward(self, images):
        return self.fc((self.second(self.first(images)) + images.mean(1, keepdim=True)).mean((2, 3)))


class Twofold(Row):
    """Its second stage takes two maps."""

    def __init__(self):
        super().__init__()
        self.second = nn.Bilinear(8, 3, 8)

    def forward(self, images):
        maps = self.first(images).movedim(1, 3)
        return self.fc(self.second(maps, images.movedim(1, 3)).mean((1, 2)))


class HeadFirst(Row):
    """What learns runs before what does not."""

    def __init__(self):
        super().__init__()
        self.early = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return super().forward(self.early(images))


def named(module):
    return Network(Reference("regraft", "toy"), module.eval(), ("fc",), SMALL, "none", "drawn", None)


@pytest.mark.parametrize(
    ("module", "learns", "is_divided"),
    [
        (Row, ("second", "fc"), True),
        (Row, ("fc",), False),
        (LooksBack, ("second", "fc"), False),
        (Twofold, ("second", "fc"), False),
        (HeadFirst, ("second", "early", "fc"), False),
    ],
)
def test_what_is_not_a_row_of_maps_is_not_divided(module, learns, is_divided):
    network = named(module())
    names = [name for part in learns for name, _ in network.module.named_parameters() if name.startswith(f"{part}.")]
    assert (divide(network, names) is not None) == is_divided
