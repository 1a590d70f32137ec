"""The network that comes with regraft is the one that a fresh trace gives, and needs no torch."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from faults.processes import IS_LONG
from regraft.backbones import backbone as graph
from regraft.backbones import packaged
from regraft.backbones.backbone import load_backbone
from regraft.backbones.catalog import DEFAULT
from regraft.backbones.derived import with_all_levels
from regraft.backbones.engine import Engine
from regraft.backbones.packaged import folded, is_packaged, packaged_graph, packaged_info
from regraft.backbones.probe import probe_images
from regraft.core.errors import WeightsError
from regraft.core.files import sha256_bytes

SIZES = (None, 320) if IS_LONG else (320,)  # None: its own
ROUNDINGS = 4  # float32 operations that a weight of the graph goes through: add, sqrt, divide, multiply
GRAPH_SHA256 = "c9aa92379efe1ed8726964bde435c2413a3228371ad2e7373dec6f4c48ef06fa"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Folders of the default network as torch traces it now, by the height of its input; None is its own."""
    from dataclasses import replace

    from regraft.backbones.network import build
    from regraft.backbones.onnx_export import trace_into

    network, folders = build(DEFAULT), {}
    for size in SIZES:
        folders[size] = tmp_path_factory.mktemp("fresh")
        p = network.preprocessing
        trace_into(folders[size], replace(network, preprocessing=p if size is None else p.scaled(size)))
    return folders


def split_up(data):
    """A graph without its weights, as bytes that do not name the version of torch; and the weights by name."""
    model = onnx.load_from_string(data)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    del model.graph.initializer[:]
    model.producer_version = ""
    return model.SerializeToString(deterministic=True), weights


@pytest.mark.parametrize("size", SIZES)
def test_the_graph_is_that_of_a_fresh_trace_but_for_the_last_bit_of_some_weights(fresh, size):
    ours, weights = split_up(packaged_graph(size))
    theirs, expected = split_up((fresh[size] / "features.onnx").read_bytes())
    assert ours == theirs
    assert list(weights) == list(expected)
    for name, value in expected.items():
        bound = ROUNDINGS * np.finfo(np.float32).eps * np.abs(value).max()
        assert np.abs(weights[name] - value).max() <= bound, name


def test_its_features_are_those_of_a_fresh_trace(fresh):
    images = probe_images(320, 320, 3)
    ours = load_backbone(size=320).engine()(images)["features"]
    theirs = Engine(fresh[320] / "features.onnx")(images)["features"]
    assert np.abs(ours - theirs).max() <= 1e-4 * theirs.std()


def test_weights_and_description_are_those_of_a_fresh_trace(fresh):
    ours, theirs = load_file(packaged.TRUNK), load_file(fresh[320] / "trunk.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    for size, folder in fresh.items():
        expected = json.loads((folder / "backbone.json").read_text())
        info = json.loads(json.dumps(packaged_info(size)))
        assert expected.keys() - info.keys() == {"seal", "precision", "bf16_agreement", "versions", "sha256"}
        assert info == {name: expected[name] for name in info}


def test_its_bytes_are_the_same_on_every_machine():
    assert sha256_bytes(packaged_graph(None)) == GRAPH_SHA256


def test_it_is_made_for_the_format_that_traces_have_now():
    assert packaged_info(None)["format"] == graph.FORMAT


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        (DEFAULT, None, True),
        (f"timm/{DEFAULT}", None, True),
        (f"torchvision/{DEFAULT}", None, False),
        (DEFAULT, "random", False),
        (DEFAULT, "weights.pth", False),
        ("resnet18", None, False),
    ],
)
def test_it_answers_for_its_own_weights_alone(name, weights, expected):
    assert is_packaged(name, weights) is expected


def test_it_is_unpacked_once_with_each_size_and_all_levels(empty_cache):
    own, larger = load_backbone(), load_backbone(size=320)
    assert load_backbone().folder == own.folder != larger.folder
    assert (own.preprocessing.height, larger.preprocessing.height) == (224, 320)
    assert own.trunk.read_bytes() == larger.trunk.read_bytes() == packaged.TRUNK.read_bytes()
    levels = with_all_levels(larger)
    features = levels.engine()(probe_images(320, 320, 1))["features"]
    assert features.shape == (1, levels.num_features)
    assert np.array_equal(features[:, -1280:], larger.engine()(probe_images(320, 320, 1))["features"])
    assert len(list((empty_cache / "graphs").glob("*/backbone.json"))) == 3


def test_a_damaged_entry_of_the_cache_is_unpacked_again(empty_cache):
    backbone = load_backbone()
    backbone.graph.write_bytes(b"half")
    assert load_backbone().graph.read_bytes() == packaged_graph(None)


@pytest.mark.parametrize("damage", ["absent", "changed"])
@pytest.mark.parametrize("part", ["TRUNK", "STRUCTURE"])
def test_a_damaged_installation_says_so_and_keeps_nothing(part, damage, empty_cache, tmp_path, monkeypatch):
    path = tmp_path / getattr(packaged, part).name
    if damage == "changed":
        data = bytearray(getattr(packaged, part).read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    monkeypatch.setattr(packaged, part, path)
    with pytest.raises(WeightsError, match=f"{path} is not as regraft was published"):
        load_backbone()
    assert not list((empty_cache / "graphs").glob("*/backbone.json"))


def test_a_missing_description_says_so(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "DESCRIPTION", tmp_path / "none.json")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_backbone()


def test_a_convolution_and_its_norm_are_one_convolution():
    rng = np.random.default_rng(0)
    weight, image = rng.normal(size=(4, 3, 1, 1)), rng.normal(size=3)
    gain, shift, mean, variance = rng.normal(size=(4, 4))
    norm = {"weight": gain, "bias": shift, "running_mean": mean, "running_var": variance**2}
    tensors = {f"norm.{name}": value for name, value in norm.items()} | {"conv.weight": weight}
    expected = (weight[:, :, 0, 0] @ image - mean) / np.sqrt(variance**2 + 1e-3) * gain + shift
    joined, bias = folded(tensors, "conv", "norm", 1e-3)
    assert joined[:, :, 0, 0] @ image + bias == pytest.approx(expected, rel=1e-6)


def test_its_licence_lies_beside_it():
    text = (packaged.FOLDER / "LICENSE").read_text()
    assert "Copyright (c) 2020, ML Illustrated" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert packaged_info(None)["licence"] == "apache-2.0"
