"""Levels: which activations they are, and that their features are what torch computes there."""

import numpy as np
import pytest
import torch

from regraft.backbones import network as networks
from regraft.backbones.backbone import load_backbone
from regraft.backbones.derived import with_all_levels
from regraft.backbones.engine import activations
from regraft.backbones.multilevel_features import find_levels
from regraft.backbones.network import Normalise
from regraft.backbones.onnx_export import probe_images
from regraft.core.errors import BackboneError

NAME = "timm/test_resnet"


@pytest.fixture(scope="module")
def plain():
    return load_backbone(NAME, "random")


def test_the_last_activation_of_each_falling_size_is_a_level():
    computed = [
        ("images", (1, 64, 64, 3)),
        ("pixels", (1, 3, 64, 64)),
        ("stem", (1, 8, 32, 32)),
        ("act", (1, 16, 32, 32)),
        ("padded", (1, 16, 33, 33)),
        ("tokens", (1, 4, 16, 16, 2)),
        ("block", (1, 24, 16, 16)),
        ("squeezed", (1, 24, 1, 1)),
        ("other shape", (1, 24, 8, 4)),
        ("grown again", (1, 9, 32, 32)),
        ("attention", (1, 9, 15, 15)),
        ("end", (1, 40, 8, 8)),
        ("features", (1, 40)),
    ]
    assert find_levels(computed) == {"act": 16, "block": 24, "end": 40}


def test_levels_are_mean_and_maximum_of_what_torch_has_there(plain):
    levels = find_levels(activations(plain.graph))
    network = networks.build(NAME, "random")
    p, images = plain.preprocessing, probe_images(plain.preprocessing.height, plain.preprocessing.width, 2)
    seen = []
    module = network.module
    for layer in (module.act1, module.layer4[-1].act2):
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.clone()))
    with torch.inference_mode():
        module(Normalise(p)(torch.from_numpy(images).permute(0, 3, 1, 2)))
    features = with_all_levels(plain).engine()(images)["features"]
    ends = np.cumsum([2 * channels for channels in levels.values()])
    for first, activation in ((0, seen[0]), (ends[-2], seen[-1])):
        channels = activation.shape[1]
        means = features[:, first : first + channels]
        tops = features[:, first + channels : first + 2 * channels]
        assert np.allclose(means, activation.mean(dim=(2, 3)).numpy(), atol=1e-4)
        assert np.allclose(tops, activation.amax(dim=(2, 3)).numpy(), atol=1e-4)


def test_the_usual_features_stand_at_the_end(plain):
    images = probe_images(plain.preprocessing.height, plain.preprocessing.width, 2)
    levelled = with_all_levels(plain)
    features = levelled.engine()(images)["features"]
    assert features.shape == (2, levelled.num_features)
    assert np.array_equal(features[:, -plain.num_features :], plain.engine()(images)["features"])


def test_levels_are_made_once(plain, monkeypatch):
    first = with_all_levels(plain)
    monkeypatch.setattr("regraft.backbones.multilevel_features.with_levels", None)
    again = with_all_levels(plain)
    assert (again.folder, again.graph_sha256) == (first.folder, first.graph_sha256)
    assert first.graph_sha256 != plain.graph_sha256


def test_a_vit_has_none():
    with pytest.raises(BackboneError, match="no levels"):
        with_all_levels(load_backbone("timm/test_vit", "random"))


def test_a_larger_input(plain):
    size = 2 * plain.preprocessing.height
    larger = load_backbone(NAME, "random", size=size)
    p = larger.preprocessing
    assert (p.height, p.width, p.resize[0]) == (size, size, 2 * plain.preprocessing.resize[0])
    assert larger.engine()(probe_images(size, size, 1))["features"].shape == (1, plain.num_features)
    assert load_backbone(NAME, "random").graph_sha256 == plain.graph_sha256


def test_a_network_of_a_fixed_size_says_so():
    with pytest.raises(BackboneError, match="inputs of its own size"):
        load_backbone("timm/vit_tiny_patch16_224", "random", size=320)
