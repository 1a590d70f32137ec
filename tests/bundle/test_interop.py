"""The bundle in other hands: timm and ONNX Runtime say what regraft says."""

import json

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torchvision import models

import regraft
from faults.processes import record
from regraft.bundle.bundle import load


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


def test_timm_and_onnx_runtime_agree_with_predict(bundle, photos):
    network = check(load(bundle.folder, precision="f32"), sorted(photos.rglob("*.jpg")))
    assert network.pretrained_cfg["label_names"] == list(bundle.classes)


@pytest.mark.slow
def test_they_agree_on_a_hundred_real_photos(real_photos, tmp_path, record_property):
    bundle = regraft.train(real_photos / "hymenoptera", tmp_path, quiet=True, mode="frozen")
    paths = sorted((real_photos / "hymenoptera" / "val").rglob("*.jpg"))[::3][:50]
    paths += sorted((real_photos / "hymenoptera" / "train").rglob("*.jpg"))[::4][:50]
    check(load(bundle.folder, precision="f32"), paths)
    exact = regraft.export(bundle, tmp_path / "exact.onnx")
    assert exact.num_agree + exact.num_ties == exact.num_photos == 153
    assert exact.max_difference <= 1e-4
    small = regraft.export(bundle, tmp_path / "small.onnx", int8=True)
    assert small.num_agree >= 0.98 * small.num_photos
    assert small.mean_difference <= 0.02
    figures = {"agree": exact.num_agree, "largest": exact.max_difference, "int8_agree": small.num_agree}
    record(record_property, "M5-real", photos=153, **figures, int8_mean=small.mean_difference)


def test_a_torchvision_network_is_saved_under_its_own_names(photos, tmp_path):
    bundle = regraft.train(photos, tmp_path, quiet=True, backbone="resnet18", weights="random")
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
