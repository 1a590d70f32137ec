"""Where a network divides: into stages from the first layers to the last, and a head that can be replaced."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from faults.processes import mostly_long
from regraft.backbones.network import FeatureGraph, build, with_new_head
from regraft.backbones.onnx_export import probe_images
from regraft.backbones.stages import stages

FAMILIES = (
    "regraft/mobilenet_v1",
    "torchvision/resnet18",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/regnet_y_400mf",
    "torchvision/mnasnet0_5",
    "torchvision/densenet121",
    "timm/resnet18",
    "timm/test_resnet",
    "timm/tf_efficientnet_lite0",
    "timm/mobilenetv3_small_050",
    "timm/convnext_atto",
    "timm/dla46x_c",
    "timm/mobilevit_xxs",
    "timm/vit_tiny_patch16_224",
    "timm/deit_tiny_distilled_patch16_224",
    "timm/xcit_nano_12_p16_224",
)
OF_EACH_KIND = (
    "regraft/mobilenet_v1",
    "torchvision/resnet18",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/mnasnet0_5",
    "timm/test_resnet",
    "timm/tf_efficientnet_lite0",
    "timm/dla46x_c",
    "timm/mobilevit_xxs",
    "timm/deit_tiny_distilled_patch16_224",
)
HEAVY = ("torchvision/swin_t", "torchvision/vit_b_16", "torchvision/vgg11", "torchvision/convnext_tiny")
EXACT = {
    "timm/test_resnet": 5,
    "regraft/mobilenet_v1": 14,
    "torchvision/resnet18": 6,
    "torchvision/mnasnet0_5": 14,
    "torchvision/vit_b_16": 16,
    "timm/vit_tiny_patch16_224": 13,
}


def run_at(network):
    """When each layer runs for the first time, by its name."""
    side = network.preprocessing.height
    names, order = {id(layer): name for name, layer in network.module.named_modules()}, {}

    def note(layer, *_):
        order.setdefault(names[id(layer)], len(order))

    hooks = [layer.register_forward_pre_hook(note) for layer in network.module.modules()]
    with torch.inference_mode():
        network.module(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return order


@pytest.mark.parametrize("name", mostly_long([*FAMILIES, *HEAVY], *OF_EACH_KIND))
def test_stages_hold_every_parameter_once_from_input_to_output_and_no_head(name):
    network = build(name, "random")
    found = stages(network)
    trunk = [n for n, _ in network.module.named_parameters() if not n.startswith(tuple(f"{h}." for h in network.heads))]
    assert sorted(parameter for stage in found for parameter in stage) == sorted(trunk)
    assert len(found) == EXACT.get(name, len(found))
    assert len(found) >= 4
    order = run_at(network)
    runs = [[order[layer] for n in stage if (layer := n.rpartition(".")[0]) in order] for stage in found]
    for number, (before, after) in enumerate(pairwise(runs)):
        assert max(before) < min(after), (found[number], found[number + 1])


def test_a_wrapped_network_has_the_same_stages():
    network = build("timm/test_resnet", "random")
    assert stages(replace(network, module=nn.DataParallel(network.module))) == stages(network)


def test_stages_of_the_tutorials_network_are_its_blocks():
    found = stages(build("mobilenet_v1", "random"))
    assert found[0] == ["model.0.0.weight", "model.0.1.weight", "model.0.1.bias"]
    assert [{name.rpartition(".")[0].rpartition(".")[0] for name in stage} for stage in found] == [
        {f"model.{number}"} for number in range(14)
    ]


HEADS = [
    ("timm/test_resnet", nn.Linear),
    ("torchvision/mobilenet_v2", nn.Linear),
    ("timm/dla46x_c", nn.Conv2d),
    ("timm/deit_tiny_distilled_patch16_224", nn.Linear),
]
SOME = [(*HEADS[0], True), (*HEADS[2], True), (*HEADS[3], False)]


@pytest.mark.parametrize(
    ("name", "kind", "has_bias"), mostly_long(((*head, bias) for head in HEADS for bias in (True, False)), *SOME)
)
def test_a_new_head_answers_for_the_new_classes_and_nothing_else_changes(name, kind, has_bias):
    network = build(name, "random")
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    weight = torch.randn(3, network.num_features, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([4.0, -2.0, 1.0]) if has_bias else None
    ours = with_new_head(network, weight, bias)
    graph = FeatureGraph(network).eval()
    images = torch.from_numpy(probe_images(network.preprocessing.height, network.preprocessing.width, 1))
    with torch.inference_mode():
        expected = graph(images) @ weight.T + (0 if bias is None else bias)
        logits = ours.module(graph.normalised(images))
    assert logits.shape == (1, 3)
    assert torch.allclose(logits, expected, atol=1e-3 * float(expected.abs().max()))
    for head in network.heads:
        assert isinstance(ours.module.get_submodule(head), kind)
    assert ours.num_features == network.num_features
    after = ours.module.state_dict()
    in_head = tuple(f"{head}." for head in network.heads)
    assert after.keys() - before.keys() <= {f"{head}.bias" for head in network.heads}
    assert all(torch.equal(after[key], value) for key, value in before.items() if not key.startswith(in_head))
    assert all(torch.equal(network.module.state_dict()[key], value) for key, value in before.items())


def test_the_two_heads_of_a_distilled_network_become_one_layer():
    network = build("timm/deit_tiny_distilled_patch16_224", "random")
    ours = with_new_head(network, torch.randn(5, network.num_features))
    assert ours.module.head is ours.module.head_dist
    heads = [name for name, _ in ours.module.named_parameters() if name.startswith("head")]
    assert heads == ["head.weight", "head.bias"]
