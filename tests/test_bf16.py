"""A model in bf16, on a processor that computes it: the same answers up to rounding, and one with itself."""

import numpy as np
import pytest

import regraft
from conftest import draw_folder
from regraft.backbones.engine import Engine, has_bf16


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_folder(tmp_path_factory.mktemp("data") / "colours", ("blue", "green", "red"), 8)


@pytest.fixture(scope="module")
def bundle(photos, tmp_path_factory):
    """Trained as outside of the tests: in bf16 where the processor has it."""
    root = tmp_path_factory.mktemp("bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REGRAFT_PRECISION")
        patch.setenv("REGRAFT_CACHE", str(root / "cache"))
        yield regraft.train(photos, out=root / "run", mode="frozen", report=False)


@pytest.fixture(scope="module")
def images(bundle, photos):
    return np.stack([bundle.to_input(path) for path in sorted(photos.rglob("*.jpg"))[::4]])


def test_a_processor_with_bf16_trains_and_judges_in_it(bundle):
    assert bundle.precision == ("bf16" if has_bf16() else "f32")
    assert bundle.manifest["metrics"]["accuracy"]["value"] == 1.0


def test_the_head_stays_in_single_precision(bundle, images):
    weight, bias = bundle.head
    said = Engine(bundle.folder / "model.onnx", "bf16")(images)
    assert set(said) == set(bundle.engine(images[:1]))
    np.testing.assert_allclose(said["logits"], said["features"] @ weight.T + bias, atol=1e-4)


def test_all_cores_for_one_photo_change_nothing(bundle, images):
    for name, values in bundle.engine(images).items():
        assert np.array_equal(bundle.quick_engine(images)[name], values), name


def test_it_answers_as_in_single_precision(bundle, images):
    exact = regraft.load(bundle.folder, precision="f32").engine(images)
    said = bundle.engine(images)
    p, q = bundle.probabilities(exact["logits"]), bundle.probabilities(said["logits"])
    assert np.array_equal(p.argmax(axis=1), q.argmax(axis=1))
    np.testing.assert_allclose(q, p, atol=0.02)


def test_full_precision_can_be_asked_for(bundle, monkeypatch):
    monkeypatch.setenv("REGRAFT_PRECISION", "f32")
    assert regraft.load(bundle.folder).precision == "f32"
