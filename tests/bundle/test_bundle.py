"""A bundle is whole or refused, and answers the same whatever form a photo comes in."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import regraft
from conftest import rewrite_manifest
from regraft.bundle.bundle import load
from regraft.bundle.format import FILES
from regraft.core.errors import BundleError, DataError


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that a test may damage."""
    return shutil.copytree(bundle.folder, tmp_path / "bundle")


def test_holds_the_files_of_the_contract_and_no_pickle(bundle):
    assert sorted(path.name for path in bundle.folder.iterdir()) == sorted([*FILES, "regraft.json"])


def test_names_what_it_is_made_of(default_bundle):
    manifest = default_bundle.manifest
    assert manifest["classes"] == ["blue", "green", "red"]
    assert manifest["backbone"]["name"] == "timm/tf_efficientnet_lite0"
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["provenance"]["versions"]["openvino"]
    assert manifest["precision"] in ("f32", "bf16")


def test_a_run_folder_stands_for_its_bundle(bundle):
    assert load(bundle.folder.parent).folder == bundle.folder


def test_predicts_the_same_from_path_bytes_image_and_array(default_bundle, photos):
    path = photos / "red" / "red_0.jpg"
    image = Image.open(path)
    answers = [default_bundle.predict(p) for p in (path, str(path), path.read_bytes(), image, np.asarray(image))]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0].label == "red"
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)
    assert answers[0].probability == max(answers[0].probabilities.values())


def test_temperature_flattens_probabilities_and_keeps_labels(copy, photos):
    path = photos / "red" / "red_0.jpg"
    sharp = load(copy).predict(path)
    rewrite_manifest(copy, temperature=10.0)
    flat = load(copy).predict(path)
    assert flat.label == sharp.label
    assert flat.probability < sharp.probability


def test_a_photo_that_cannot_be_read_is_named(bundle, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"bad\.jpg cannot be used"):
        bundle.predict(bad)
    with pytest.raises(DataError, match="does not exist"):
        bundle.predict(tmp_path / "none.jpg")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_noticed(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load(copy)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"format": 99}, "Update regraft"),
        ({"classes": "red"}, "classes"),
        ({"classes": ["red", "red", "blue"]}, "named twice"),
        ({"classes": [1, 2, 3]}, "classes"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"preprocessing": {"height": 224}}, "preprocessing"),
        ({"preprocessing": []}, "preprocessing"),
        ({"sha256": []}, "sha256"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(copy, values, problem):
    rewrite_manifest(copy, **values)
    with pytest.raises(BundleError, match=problem):
        load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(copy, text):
    (copy / "regraft.json").write_text(text)
    with pytest.raises(BundleError, match="damaged"):
        load(copy)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="There is no bundle"):
        load(tmp_path)


def test_graph_gives_the_features_that_the_head_was_solved_on(default_bundle, photos):
    dataset = regraft.scan(photos)
    dataset, features = regraft.extract(regraft.load_backbone(), dataset)
    inputs = np.stack([default_bundle.to_input(photos / path) for path in dataset.paths[:6]])
    outputs = default_bundle.engine(inputs)
    weight, bias = default_bundle.head
    assert np.array_equal(outputs["features"], features.x[:6])
    np.testing.assert_allclose(outputs["logits"], features.x[:6] @ weight.T + bias, atol=1e-4)


def test_a_notebook_shows_what_it_is_and_how_good(bundle, photos):
    page = bundle._repr_html_()
    assert "red" in page
    assert f"of {bundle.manifest['metrics']['accuracy']['n']} val photos" in page
    content = replace(bundle.content, manifest={**bundle.manifest, "classes": ["<script>", "b", "c"]})
    hostile = replace(bundle, content=content)
    assert "<script>" not in hostile._repr_html_()
