"""Roots of features: in the graph they are what numpy makes of them, and whoever cannot have them says so."""

import json
import pickle

import numpy as np
import pytest
import timm

import regraft
from regraft.backbones import engine as engines
from regraft.backbones.derived import with_roots
from regraft.backbones.engine import Engine, pooled, takes_roots
from regraft.backbones.features import FeatureTable, extract, roots
from regraft.bundle.bundle import load
from regraft.bundle.heatmap import heat_map
from regraft.bundle.write import manifest_of, seal, write_model
from regraft.core.errors import BundleError
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.models.linear_head import solve
from regraft.models.ood import fit_ood_detector
from tiny_backbone import draw_photos, tiny_backbone

ROUNDINGS = 16  # of float32: a sum of 12 sizes, a division, a square root, a product
WITHIN = ROUNDINGS * np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("data") / "shades", {"ash": 14, "birch": 13, "cedar": 12})


@pytest.fixture(scope="module")
def rooted(tiny, photos, tmp_path_factory):
    """A bundle whose head was solved on roots."""
    folder = tmp_path_factory.mktemp("bundle")
    dataset, features = extract(with_roots(tiny), scan(photos))
    head = solve(features, len(dataset.classes), folds_of(dataset, 5, 0))
    write_model(folder, with_roots(tiny), head.weight, head.bias, dataset.classes, fit_ood_detector(features))
    images = {"found": 39, "used": 39, "quarantined": 0}
    provenance = {"mode": "frozen", "images": images, "data_sha256": "0" * 64, "config": {}}
    provenance |= {"split": {"given": False, "train": 30, "judged": 9}}
    seal(folder, manifest_of(with_roots(tiny), dataset.classes, 1.0, {}, provenance))
    return load(folder, precision="f32")


def inputs(bundle, photos, every=5):
    return np.stack([bundle.to_input(path) for path in sorted(photos.rglob("*.png"))[::every]])


def exact(x):
    """Signed square roots in double precision, of length 1."""
    found = np.sign(x) * np.sqrt(np.abs(x.astype(np.float64)))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_graph_and_the_table_give_signed_roots_of_length_1(tiny, rooted, photos, precision):
    """Also behind a network in bf16, they are single precision."""
    images = inputs(rooted, photos)
    plain = Engine(tiny.graph, precision)(images)["features"]
    found = Engine(with_roots(tiny).graph, precision)(images)["features"]
    assert np.abs(found - exact(plain)).max() <= WITHIN
    parts = [part.outputs for part in Engine(with_roots(tiny).graph, precision)._parts()._parts]
    assert parts == ([["features"]] if precision == "f32" else [[engines.BEFORE_ROOTS], ["features"]])
    table = FeatureTable(plain, {str(i): i for i in range(len(plain))})
    assert np.abs(table.roots().table - exact(plain)).max() <= WITHIN


def test_signs_stay_and_nothing_stays_nothing():
    x = np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    expected = [[2, -3, 0], [0, 0, 0]] / np.sqrt([[13], [1]])
    assert np.abs(roots(x) - expected).max() <= WITHIN


def test_photos_go_in_as_before_and_the_graph_is_made_once(tiny, monkeypatch):
    other = tiny.with_fit("pad").with_grey_bits(12)
    assert with_roots(other).preprocessing == other.preprocessing
    assert with_roots(tiny).preprocessing == tiny.preprocessing
    monkeypatch.setattr("regraft.backbones.root_features.with_root_layer", None)
    assert with_roots(tiny).graph_sha256 == with_roots(other).graph_sha256 != tiny.graph_sha256


def test_heat_maps_still_add_up_to_the_logit(tiny, rooted, photos):
    assert takes_roots(rooted.graph)
    assert [part.shape for part in rooted.pooled] == [part.shape for part in pooled(tiny.graph)]
    for image in inputs(rooted, photos):
        logits = rooted.engine(image[np.newaxis])["logits"][0]
        for label in range(3):
            total = heat_map(rooted, image, label).sum() + rooted.head[1][label]
            assert total == pytest.approx(logits[label], rel=1e-4, abs=1e-4)


def test_what_is_unlike_the_training_photos_is_measured_on_them(tiny, rooted, photos):
    """The novelty in the graph is that of the features that it gives."""
    known = fit_ood_detector(extract(with_roots(tiny), scan(photos))[1])
    images = inputs(rooted, photos)
    said = rooted.engine(np.concatenate([images, 255 - images]))
    expected = known.novelty(exact(Engine(tiny.graph)(np.concatenate([images, 255 - images]))["features"]))
    assert np.abs(said["novelty"] - expected).max() <= WITHIN / known.limit * 4  # four matrix products more
    assert expected.max() > 0


def test_timm_and_torch_are_refused_by_name(rooted, tmp_path, photos):
    """The linear layer in timm's layout alone would answer from features that it was not solved on."""
    assert rooted.manifest["backbone"]["roots"] is True
    assert "only model.onnx computes them" in json.loads(rooted.read("config.json"))["note"]
    with pytest.raises(Exception, match="architecture"):
        timm.create_model(f"local-dir:{rooted.folder}", pretrained=True)
    with pytest.raises(BundleError, match=r"signed square roots, of unit length: .* --format onnx"):
        regraft.export(rooted, tmp_path / "model.pt2", format="torch", photos=photos)
    card = (rooted.folder / "README.md").read_text()
    assert "signed square roots, of unit length; only model.onnx computes them" in card
    assert 'library_name: "regraft"' in card


@pytest.mark.parametrize("int8", [False, True])
def test_onnx_has_them(rooted, tmp_path, photos, int8):
    found = regraft.export(rooted, tmp_path / "model.onnx", photos=photos, int8=int8)
    assert found.max_difference < (0.2 if int8 else 1e-4)  # 8 bits of a tiny network; two engines in float32


def test_a_bundle_with_them_is_pickled_whole(rooted, photos):
    again = pickle.loads(pickle.dumps(rooted))
    image = inputs(rooted, photos)[:1]
    assert np.array_equal(again.engine(image)["logits"], rooted.engine(image)["logits"])


def test_a_gpu_leaves_them_to_the_graph(tiny, monkeypatch):
    monkeypatch.setattr("regraft.backbones.backbone.has_gpu", lambda: True)
    assert tiny.engine_identity.startswith("torch")
    assert with_roots(tiny).engine_identity == engines.engine_identity("f32")
