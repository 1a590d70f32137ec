"""A model says which photos look like nothing it has learned from, by its graph, in every engine alike."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import regraft
from regraft.backbones.backbone import load_backbone
from regraft.backbones.features import extract
from regraft.bundle.bundle import load
from regraft.bundle.predict import predict
from regraft.data.scan import scan
from regraft.data.splits import split
from regraft.models.ood import fit_ood_detector


@pytest.fixture
def solved(default_bundle):
    """A frozen model of the three colours."""
    return default_bundle


@pytest.fixture
def strange(tmp_path):
    """A chessboard, while the model knows coloured shapes."""
    board = 255 * (np.indices((240, 240)).sum(axis=0) // 20 % 2).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "strange.png")
    return tmp_path / "strange.png"


def test_the_graph_gives_what_the_subspace_says(solved, photos):
    train = split(scan(photos)).train
    dataset, features = extract(load_backbone(), scan(photos))
    known = fit_ood_detector(features.of(train))
    for i in range(0, len(dataset), 5):
        said = solved.predict(dataset.root / dataset.paths[i])
        assert said.novelty == pytest.approx(known.novelty(features.x[[i]])[0], rel=1e-3)


def test_another_engine_gives_the_same(solved, photos):
    session = onnxruntime.InferenceSession(str(solved.folder / "model.onnx"))
    images = np.stack([solved.to_input(path) for path in sorted(photos.rglob("*.jpg"))[::7]])
    (theirs,) = session.run(["novelty"], {"images": images})
    assert theirs.shape == (len(images),)
    assert np.allclose(theirs, solved.engine(images)["novelty"], rtol=1e-3)


def test_what_it_has_not_learned_from_looks_new(solved, photos, strange):
    known = [answer.prediction for answer in predict(solved, [photos])]
    assert sum(one.looks_new for one in known) <= 2
    assert solved.predict(strange).looks_new


def test_predict_says_so(solved, strange, photos, regraft_main):
    plain = regraft_main("predict", solved.folder, strange, photos / "red")
    lines = plain.stdout.splitlines()
    assert lines[0].endswith("(looks like nothing it has learned from)")
    assert sum("looks like nothing" in line for line in lines) <= 2
    said = regraft_main("predict", solved.folder, strange, "--json")
    as_json = [json.loads(line) for line in said.stdout.splitlines()]
    assert as_json[0]["looks_new"] is True
    assert as_json[0]["novelty"] > 1


def test_a_tuned_model_knows_its_photos_too(photos, tmp_path, strange):
    settings = {"mode": "full", "epochs": 1, "backbone": "timm/test_resnet", "weights": "random", "report": False}
    bundle = regraft.train(photos, tmp_path / "run", quiet=True, **settings)
    said = [answer.prediction for answer in predict(bundle, [photos])]
    assert all(one.novelty is not None for one in said)
    assert sum(one.looks_new for one in said) <= 3


def test_of_few_photos_nothing_is_said(photos, tmp_path, tiny):
    for path in sorted(photos.rglob("*_[0-3].jpg")):
        place = tmp_path / "few" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    bundle = regraft.train(tmp_path / "few", tmp_path / "run", mode="frozen", quiet=True)
    said = bundle.predict(next((tmp_path / "few").rglob("*.jpg")))
    assert (said.novelty, said.looks_new) == (None, False)


def test_the_temperature_is_of_photos_not_seen(solved):
    assert solved.manifest["temperature"] > 0
    assert load(solved.folder).manifest["temperature"] == solved.manifest["temperature"]
