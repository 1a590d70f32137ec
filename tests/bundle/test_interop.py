"""The bundle in other hands: timm and ONNX Runtime say what regraft says."""

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from torchvision import models

import regraft
from faults.processes import IS_LONG, long_form, mostly_long, record
from regraft.backbones.backbone import Backbone
from regraft.backbones.network import build
from regraft.bundle.bundle import load
from regraft.bundle.write import _library_config, manifest_of, seal, write_model
from regraft.data.transforms import Preprocessing


def softmax(logits):
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def check(bundle, paths, tolerance=1e-3):
    """Labels equal, and probabilities within `tolerance`, from file bytes on, in ONNX Runtime and in timm."""
    ours = [bundle.predict(path) for path in paths]
    expected = np.array([list(answer.probabilities.values()) for answer in ours])
    inputs = np.stack([bundle.to_input(path) for path in paths])
    session = onnxruntime.InferenceSession(bundle.folder / "model.onnx")
    (logits,) = session.run(["logits"], {"images": inputs})
    np.testing.assert_allclose(softmax(logits), expected, atol=tolerance)
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).all()

    network = timm.create_model(f"local-dir:{bundle.folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(network))
    batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        theirs = network(batch).softmax(dim=1).numpy()
    np.testing.assert_allclose(theirs, expected, atol=tolerance)
    assert (theirs.argmax(axis=1) == expected.argmax(axis=1)).all()
    return network


def test_timm_and_onnx_runtime_agree_with_predict(default_bundle, photos):
    network = check(load(default_bundle.folder, precision="f32"), sorted(photos.rglob("*.jpg")))
    assert network.pretrained_cfg["label_names"] == list(default_bundle.classes)


def save_at(size, folder):
    """A bundle whose network takes photos of another size; its head is drawn."""
    backbone, names = regraft.load_backbone(size=size), ("blue", "green", "red")
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.3, (3, backbone.num_features)).astype(np.float32)
    folder.mkdir()
    write_model(folder, backbone, weight, np.zeros(3, np.float32), names)
    images = {"found": 3, "used": 3, "quarantined": 0}
    provenance = {"mode": "frozen", "config": {}, "data_sha256": "0" * 64, "images": images}
    provenance["split"] = {"given": False, "train": 2, "judged": 1}
    seal(folder, manifest_of(backbone, names, 1.0, {}, provenance))
    return load(folder, precision="f32")


def test_a_bundle_of_another_size_says_so_to_timm(photos, tmp_path):
    bundle = save_at(320, tmp_path / "bundle")
    assert (bundle.preprocessing.height, bundle.preprocessing.resize) == (320, (366, 366))
    network = check(bundle, sorted(photos.rglob("*_0.jpg")))
    assert network.pretrained_cfg["input_size"] == [3, 320, 320]
    weights = str(bundle.folder / "model.safetensors")
    again = build("tf_efficientnet_lite0", weights, offline=True, seed=0)  # what `--from` begins with
    assert again.preprocessing == bundle.preprocessing


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("stated", [0.875, 0.9, 0.95, 0.965, 1.0])
def test_what_timm_resolves_is_the_preprocessing_of_the_bundle(stated, mode):
    for size in (160, 224, 225, 320, 333, 384, 448, 600):
        whole = Preprocessing(224, 224, (int(224 / stated),) * 2, "bilinear", mode, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        p = whole.scaled(size)
        config = {"pretrained_cfg": {"input_size": (3, 224, 224), "crop_pct": stated, "test_input_size": (3, 288, 288)}}
        backbone = Backbone(Path(), {"config": config, "preprocessing": p.to_json()})
        found = resolve_data_config(pretrained_cfg=_library_config(backbone)["pretrained_cfg"], use_test_size=True)
        assert found["input_size"] == (3, size, size)
        assert tuple(math.floor(side / found["crop_pct"]) for side in found["input_size"][1:]) == p.resize
        said = (found["interpolation"], found["crop_mode"], found["mean"], found["std"])
        assert said == (p.interpolation, p.crop_mode, p.mean, p.std)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_judged"), mostly_long([("hymenoptera", 153), ("hemlock2", 4)], ("hemlock2", 4)))
def test_they_agree_on_real_photos(real_photos, tmp_path, record_property, name, num_judged):
    bundle = regraft.train(real_photos / name, tmp_path, quiet=True, mode="frozen", report=False)
    paths = sorted((real_photos / name).rglob("*.jpg"))
    check(load(bundle.folder, precision="f32"), paths[:: max(1, len(paths) // (100 if IS_LONG else 20))])
    exact = regraft.export(bundle, tmp_path / "exact.onnx")
    assert exact.num_agree + exact.num_ties == exact.num_photos == num_judged
    assert exact.max_difference <= 1e-4
    record(record_property, f"M5-real-{name}", photos=num_judged, agree=exact.num_agree, largest=exact.max_difference)


@pytest.mark.slow
@long_form
def test_eight_bits_agree_on_real_photos(real_photos, tmp_path, record_property):
    bundle = regraft.train(real_photos / "hymenoptera", tmp_path, quiet=True, mode="frozen", report=False)
    small = regraft.export(bundle, tmp_path / "small.onnx", int8=True)
    assert small.num_agree >= 0.98 * small.num_photos
    assert small.mean_difference <= 0.02
    record(record_property, "M5-int8", photos=153, agree=small.num_agree, mean=small.mean_difference)


def test_a_torchvision_network_is_saved_under_its_own_names(photos, tmp_path):
    bundle = regraft.train(photos, tmp_path, quiet=True, backbone="resnet18", weights="random", report=False)
    assert json.loads((bundle.folder / "config.json").read_text())["library"] == "torchvision"
    network = models.resnet18(num_classes=3)
    network.load_state_dict(load_file(bundle.folder / "model.safetensors"))
    network.eval()
    path = photos / "red" / "red_0.jpg"
    pixels = models.ResNet18_Weights.IMAGENET1K_V1.transforms()(Image.open(path).convert("RGB"))
    with torch.inference_mode():
        theirs = network(pixels[None]).softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(
        theirs, list(load(bundle.folder, precision="f32").predict(path).probabilities.values()), atol=1e-3
    )
