"""Photos that are not square: every way to fit them into the input is the same wherever the model is asked."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

import regraft
from regraft.backbones.features import extract
from regraft.bundle.bundle import load
from regraft.commands.train import configure, train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import InputError
from regraft.core.progress import QUIET
from regraft.data.scan import list_photos
from regraft.data.transforms import CROP_MODES, photo_to_input
from regraft.evaluation.evaluate import evaluate
from regraft.exporters.proof import running
from regraft.exporters.standalone_proof import digest
from regraft.serving.worker import WorkItem, answer
from regraft.sklearn import ImageClassifier
from regraft.training.planning import TooLittleTime
from tiny_backbone import SHADES, only_tiny_backbone

CLASSES = ("ash", "birch", "cedar")


@pytest.fixture(scope="module", autouse=True)
def backbone(tmp_path_factory):
    """The only network that there is."""
    with only_tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone") as tiny:
        yield tiny


@pytest.fixture(scope="module")
def long_photos(tmp_path_factory):
    """Photos of 60x20 and 20x60 whose ends alone tell the class; the middle is the same grey in all."""
    root = tmp_path_factory.mktemp("data") / "long"
    for c, name in enumerate(CLASSES):
        for i in range(24):
            rng = np.random.default_rng(1000 * c + i)
            pixels = np.full((20, 60, 3), 128.0)
            pixels[:, :18] = pixels[:, -18:] = SHADES[name]
            pixels += rng.normal(0, 20, pixels.shape) + rng.normal(0, 4, 3)
            pixels = pixels if i % 3 else pixels.transpose(1, 0, 2)
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def train(folder, out, **settings):
    return train_run(folder, out, configure(**{"mode": "frozen", "report": False, **settings}), QUIET)


@pytest.mark.parametrize("fit", CROP_MODES)
def test_training_evaluation_server_and_exported_program_see_the_same(long_photos, backbone, tmp_path, fit):
    run = train(long_photos, tmp_path / "run", fit=fit)
    bundle, p = run.bundle, backbone.preprocessing.fitted(fit)
    assert bundle.preprocessing == p
    assert bundle.manifest["provenance"]["config"]["fit"] == fit
    assert TrainConfig.from_json(bundle.manifest["provenance"]["config"]).fit == fit
    dataset, features = extract(backbone.with_fit(fit), list_photos(long_photos))
    paths = [dataset.root / path for path in dataset.paths]
    inputs = [photo_to_input(path.read_bytes(), p) for path in paths]
    said = [bundle.predict(path) for path in paths]
    labels = np.array([bundle.classes.index(one.label) for one in said])
    assert np.array_equal(features.x, bundle.engine(np.stack(inputs))["features"])
    assert evaluate(bundle, long_photos).accuracy.value == (labels == dataset.labels).mean()
    serve = partial(answer, bundle, item=WorkItem(with_heat=False, is_alone=False), max_pixels=10**6)
    assert [serve(path.read_bytes())["label"] for path in paths] == [one.label for one in said]
    regraft.export(bundle, tmp_path / "model.onnx", photos=long_photos)
    with running(tmp_path / "model.py", "onnxruntime") as program:
        told = program(paths)
    assert told.inputs == [digest(image) for image in inputs]
    expected = [list(one.probabilities.values()) for one in said]
    assert np.abs(told.probabilities - expected).max() < 1e-4  # two engines, float32


def test_padding_beats_cropping_where_the_ends_tell(long_photos, tmp_path):
    cropped, padded, squashed = (
        train(long_photos, tmp_path / fit, fit=fit).summary["cross_validated"] for fit in CROP_MODES
    )
    assert padded["low"] > cropped["high"]
    assert squashed["low"] > cropped["high"]


def test_a_search_finds_that_unless_the_way_is_fixed(long_photos, tmp_path):
    run = train(long_photos, tmp_path / "run", search=True)
    assert run.bundle.preprocessing.crop_mode in ("border", "squash")
    assert "16 px, " in run.summary["decision"]
    fixed = train(long_photos, tmp_path / "fixed", search=True, fit="crop")
    ways = [row["way"] for row in fixed.bundle.manifest["provenance"].get("searched", [])]
    assert not [way for way in ways if "padded" in way or "squashed" in way]
    assert fixed.bundle.preprocessing.crop_mode == "center"


def test_layers_learn_behind_the_way_that_was_searched(long_photos, backbone, tmp_path, monkeypatch):
    """Gradient descent begins from a head solved on the photos as it will see them."""
    begun = []

    def tuned(inputs, head, phase, context, selection):
        begun.append((inputs, head))
        raise TooLittleTime("not begun")

    monkeypatch.setattr("regraft.pipeline.phases.tuned_on_split", tuned)
    monkeypatch.setattr("regraft.pipeline.phases.missing_for_training", tuple)
    run = train(long_photos, tmp_path / "run", mode="auto")
    ((inputs, head),) = begun
    assert run.bundle.preprocessing.crop_mode in ("border", "squash")
    assert inputs.backbone.preprocessing == run.bundle.preprocessing
    photos = inputs.photos_split.splits.train
    x = inputs.features.of(photos).x
    assert np.array_equal(x, extract(inputs.backbone, photos)[1].x)
    assert (head.logits(x).argmax(axis=1) == photos.labels).mean() > 0.8


def test_the_estimator_takes_the_same_ways(long_photos, tmp_path, monkeypatch, backbone):
    monkeypatch.setattr("regraft.sklearn.load_backbone", lambda *_, **__: backbone)
    paths = sorted(long_photos.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    for fit in CROP_MODES:
        bundle = train(long_photos, tmp_path / fit, fit=fit).bundle
        model = ImageClassifier(photo_fit=fit, roots=True).fit(paths, labels)
        assert model.backbone_.preprocessing == bundle.preprocessing
        right = model.score(paths, labels)
        assert right > 0.9 if fit != "crop" else right < 0.9
    with pytest.raises(InputError, match="photo_fit is 'stretch'"):
        ImageClassifier(photo_fit="stretch").fit(paths, labels)


def test_a_bundle_from_before_there_were_fits_is_cropped(long_photos, tmp_path):
    manifest = dict(train(long_photos, tmp_path / "run").bundle.manifest)
    settings = {name: value for name, value in manifest["provenance"]["config"].items() if name != "fit"}
    assert TrainConfig.from_json(settings).fit is None
    assert load(tmp_path / "run").preprocessing.crop_mode == "center"
