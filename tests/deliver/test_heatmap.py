"""Heat maps are the summands of the answer, and lie where the object is."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw

import regraft
from regraft.backbones.features import extract
from regraft.backbones.graph import load_backbone, with_all_levels
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.deliver.build import manifest_of, seal, write_model
from regraft.deliver.bundle import load
from regraft.deliver.heatmap import CELLS, heat_map
from regraft.learn.head import solve

CLASSES = ("disc", "square")


def planted(path, kind, seed):
    """A smooth grey photo with one bright object somewhere; returns its box."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(90, 150, (4, 4, 3)).astype(np.uint8))
    photo = coarse.resize((256, 256), Image.Resampling.BICUBIC)
    left, top = map(int, rng.integers(40, 150, 2))
    box = (left, top, left + 64, top + 64)
    draw = ImageDraw.Draw(photo)
    if kind == "disc":
        draw.ellipse(box, fill=(230, 40, 30))
        draw.ellipse((left + 20, top + 20, left + 44, top + 44), fill=(250, 220, 60))
    else:
        draw.rectangle(box, fill=(30, 60, 220))
        for step in range(0, 64, 12):
            draw.line((left + step, top, left + step, top + 64), fill=(240, 240, 255), width=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    photo.save(path)
    return box


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty photos with a planted object, twenty of each kind."""
    root = tmp_path_factory.mktemp("planted")
    for c, kind in enumerate(CLASSES):
        for i in range(20):
            planted(root / kind / f"{i}.png", kind, 1000 * c + i)
    return root


def is_inside(heat, box):
    """Whether the middle of the hottest cell lies in the object, or within half a cell of it."""
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    across, down = (256 - 224) / 2 + 224 * (column + 0.5) / heat.shape[1], 16 + 224 * (row + 0.5) / heat.shape[0]
    margin = 112 / heat.shape[0]
    left, top, right, bottom = box
    return left - margin <= across <= right + margin and top - margin <= down <= bottom + margin


def hits(bundle, tmp_path, count=10):
    """On how many of as many new photos the map's peak lies on the object."""
    found = 0
    for i in range(count):
        kind = CLASSES[i % 2]
        box = planted(tmp_path / f"{i}.png", kind, 5000 + i)
        image = bundle.to_input(tmp_path / f"{i}.png")
        found += is_inside(heat_map(bundle, image, bundle.classes.index(kind)), box)
    return found


def test_the_map_and_the_bias_make_up_the_logit(bundle, photos):
    for path in sorted(photos.rglob("*.jpg"))[::7]:
        image = bundle.to_input(path)
        logits = bundle.engine(image[np.newaxis])["logits"][0]
        for label in range(3):
            heat = heat_map(bundle, image, label)
            assert heat.shape == (7, 7)
            assert heat.sum() + bundle.head[1][label] == pytest.approx(logits[label], rel=1e-3, abs=1e-3)


def test_so_it_does_for_a_head_on_all_levels(photos, tmp_path):
    backbone = with_all_levels(load_backbone())
    dataset, features = extract(backbone, scan(photos))
    head = solve(features, 3, folds_of(dataset, 5, 0))
    write_model(tmp_path, backbone, head.weight, head.bias, dataset.classes)
    provenance = {"mode": "frozen", "images": {"found": 30, "used": 30, "quarantined": 0}, "data_sha256": "0" * 64}
    seal(tmp_path, manifest_of(backbone, dataset.classes, 1.0, {}, {**provenance, "config": {}}))
    wide = load(tmp_path)
    assert {part.kind for part in wide.pooled} == {"mean", "max"}
    image = wide.to_input(photos / "red" / "red_1.jpg")
    logits = wide.engine(image[np.newaxis])["logits"][0]
    for label in range(3):
        total = heat_map(wide, image, label).sum() + wide.head[1][label]
        assert total == pytest.approx(logits[label], rel=1e-3, abs=1e-3)


def test_it_is_gradient_times_activation(bundle, photos):
    network = timm.create_model(f"local-dir:{bundle.folder}", pretrained=True).eval()
    kept = {}
    network.global_pool.register_forward_pre_hook(lambda _, inputs: kept.update(map=inputs[0]))
    mean = torch.tensor(bundle.preprocessing.mean)
    std = torch.tensor(bundle.preprocessing.std)
    image = bundle.to_input(photos / "green" / "green_1.jpg")
    pixels = ((torch.from_numpy(image.copy()).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    for label in range(3):
        logits = network(pixels)
        (gradient,) = torch.autograd.grad(logits[0, label], kept["map"])
        expected = (gradient * kept["map"]).sum(dim=1)[0].detach().numpy()
        np.testing.assert_allclose(heat_map(bundle, image, label), expected, atol=1e-3 * np.abs(expected).max())


def test_the_peak_lies_on_the_object(folder, tmp_path):
    bundle = regraft.train(folder, tmp_path / "run", mode="frozen", quiet=True, report=False)
    assert bundle.manifest["metrics"]["accuracy"]["value"] == 1
    assert hits(bundle, tmp_path / "new") >= 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "timm/vit_tiny_patch16_224"])
def test_the_peak_lies_on_the_object_for_other_networks_too(folder, tmp_path, name):
    bundle = regraft.train(
        folder, tmp_path / "run", mode="frozen", backbone=name, weights="random", quiet=True, report=False
    )
    assert bundle.manifest["metrics"]["accuracy"]["value"] == 1
    assert (bundle.pooled is None) == ("vit" in name)
    assert hits(bundle, tmp_path / "new") >= 9


def test_networks_that_do_not_end_in_pooling_are_covered_place_by_place(bundle, photos):
    image = bundle.to_input(photos / "blue" / "blue_2.jpg")
    covered = replace(bundle)
    covered.__dict__["pooled"] = None
    heat = heat_map(covered, image, bundle.classes.index("blue"))
    assert heat.shape == (CELLS, CELLS)
    assert np.isfinite(heat).all()
