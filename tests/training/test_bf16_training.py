"""Which convolutions learn in bf16, and which in float32 because that is faster."""

import pytest
import torch
from torch import nn

from regraft.training.bf16 import bf16_on_cpu


def drawn(kernel=3, stride=1, groups=8, width=8):
    torch.manual_seed(0)
    return nn.Conv2d(8, width, kernel, stride, padding=kernel // 2, groups=groups), torch.randn(2, 8, 9, 9)


@pytest.mark.parametrize(
    ("shape", "is_exact"),
    [
        ({"stride": 2}, True),
        ({"stride": (1, 2)}, True),
        ({"kernel": 5}, True),
        ({"stride": 2, "width": 16}, True),  # two filters for each channel
        ({}, False),
        ({"groups": 1, "stride": 2}, False),
        ({"groups": 1, "kernel": 5}, False),
        ({"groups": 4, "kernel": 5}, False),  # grouped, not depthwise
    ],
    ids=str,
)
def test_depthwise_convolutions_with_strides_or_wide_kernels_are_exact(shape, is_exact):
    layer, images = drawn(**shape)
    with bf16_on_cpu():
        found = layer(images)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, layer(images).to(torch.bfloat16)) == is_exact


def test_nothing_is_exact_where_nothing_learns():
    layer, images = drawn(stride=2)
    with torch.no_grad(), bf16_on_cpu():
        found = layer(images)
    assert not torch.equal(found, layer(images).to(torch.bfloat16))


def test_a_layer_may_name_its_arguments():
    layer, images = drawn(stride=2)
    with bf16_on_cpu():
        found = torch.conv2d(input=images, weight=layer.weight, bias=layer.bias, stride=2, padding=1, groups=8)
    assert found.dtype == torch.bfloat16


def test_afterwards_arithmetic_is_as_before():
    layer, images = drawn(kernel=5)
    expected = layer(images)
    with bf16_on_cpu():
        layer(images)
    assert torch.equal(layer(images), expected)


def test_gradients_are_those_of_float32_up_to_rounding():
    network = nn.Sequential(*(drawn(**shape)[0] for shape in ({"groups": 1}, {"stride": 2}, {"kernel": 5}, {})))
    images = drawn()[1]
    network(images).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    with bf16_on_cpu():
        said = network(images)
    said.float().square().mean().backward()
    for parameter, exact in zip(network.parameters(), expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - exact).norm() <= 0.02 * exact.norm()
