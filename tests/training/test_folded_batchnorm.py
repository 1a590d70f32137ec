"""A BatchNorm that the convolution before it computes: the same answers and gradients, and only where it fits."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from regraft.training.folded_batchnorm import FoldedNorms, foldable_norms
from regraft.training.loop import write_elsewhere

LARGE = {
    "lite0": lambda: timm.create_model("tf_efficientnet_lite0", num_classes=3),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=3),
}


def held_still(network):
    """With statistics of its own, which no batch changes, in double precision."""
    torch.manual_seed(0)
    for module in network.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.double()


def answers(network, images, norms):
    """What it answers, and all gradients."""
    network.zero_grad()
    torch.manual_seed(1)  # of dropout
    with FoldedNorms(norms):
        logits = network(images)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def photos(size=64, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("name", LARGE)
def test_answers_and_gradients_are_the_same(name):
    network, images = held_still(LARGE[name]()), photos()
    norms = foldable_norms(network, images[:1])
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for plain, folded in zip(answers(network, images, {}), answers(network, images, norms), strict=True):
        torch.testing.assert_close(folded, plain, rtol=0, atol=1e-10 * float(plain.abs().max()) + 1e-20)


def test_without_weights_of_its_own_and_with_a_bias_before_it():
    network = held_still(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten()))
    images = photos(8)
    norms = foldable_norms(network, images[:1])
    assert len(norms) == 1
    for plain, folded in zip(answers(network, images, {}), answers(network, images, norms), strict=True):
        torch.testing.assert_close(folded, plain, rtol=0, atol=1e-12)


class TwoWays(nn.Module):
    """What the second convolution gives goes another way too."""

    def __init__(self, other_way):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.conv, self.norm, self.other_way = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), other_way

    def forward(self, images):
        maps = self.conv(images := self.first(images))
        return (self.norm(maps) + self.other_way(self, maps, images)).flatten(1)


@pytest.mark.parametrize(
    "other_way",
    [
        lambda net, maps, images: maps,
        lambda net, maps, images: torch.cat([maps, maps]).mean(),
        lambda net, maps, images: net.norm(maps),
        lambda net, maps, images: net.conv(images + 1),
        lambda net, maps, images: torch.conv2d(images, net.conv.weight),
        lambda net, maps, images: maps if net.training else 0,
    ],
    ids=[
        "added",
        "in a list",
        "the same norm again",
        "the same convolution again",
        "the same weight",
        "while it learns",
    ],
)
def test_what_is_used_twice_stays_as_it_is(other_way):
    network = held_still(TwoWays(other_way))
    assert list(foldable_norms(network, photos(8, 1))) == [id(network.first[0].weight)]
    shape_only = held_still(TwoWays(lambda net, maps, images: maps.shape[0] + maps.dim()))
    assert len(foldable_norms(shape_only, photos(8, 1))) == 2, "asking for a shape is no use of a tensor"


def test_statistics_of_batches_stay_as_they_are():
    network = held_still(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    network[3].train()
    before = copy.deepcopy(network.state_dict())
    assert foldable_norms(network, photos(8, 1)) == {}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_would_answer_otherwise_stays_as_it_is():
    class Counting(TwoWays):
        calls = 0

        def forward(self, images):
            self.calls += 1
            return super().forward(images) * self.calls

    network = held_still(Counting(lambda net, maps, images: 0))
    assert foldable_norms(network, photos(8, 1)) == {}


def test_trying_it_leaves_no_trace():
    network = held_still(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)))
    modes, state = [m.training for m in network.modules()], torch.get_rng_state()
    assert len(foldable_norms(network, photos(8, 1))) == 1
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Mish])
def test_activations_give_the_same_without_a_copy(activation):
    layer, x = activation(inplace=True), photos(8)
    network = nn.Sequential(nn.Conv2d(3, 4, 1).double(), layer)
    expected = network(x).detach()
    write_elsewhere(network)
    assert not layer.inplace
    assert torch.equal(network(x), expected)
