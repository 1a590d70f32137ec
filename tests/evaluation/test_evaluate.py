"""Evaluation: right figures, through the bundle, with classes matched by name."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

import regraft
from conftest import draw, draw_folder, rehash
from regraft.bundle.bundle import load
from regraft.core.errors import BundleError, DataError
from regraft.data.scan import Dataset
from regraft.evaluation.evaluate import evaluate, evaluate_probabilities, expected_calibration_error


def test_figures_agree_with_what_predict_says(bundle, tmp_path):
    folder = draw_folder(tmp_path / "new", ("red", "green", "blue"), 4, seed=77)
    shutil.move(folder / "red" / "red_0.jpg", folder / "green" / "mislabelled.jpg")
    result = evaluate(bundle, folder)
    wrong = [
        path
        for path, label in zip(result.dataset.paths, result.dataset.labels, strict=True)
        if bundle.predict(folder / path).label != bundle.classes[label]
    ]
    assert wrong == ["green/mislabelled.jpg"]
    assert result.accuracy.value == pytest.approx(11 / 12)
    assert result.accuracy.n == 12
    green, red = bundle.classes.index("green"), bundle.classes.index("red")
    assert result.confusion[green, red] == 1
    assert result.confusion.sum() == 12
    assert result.per_class[green]["recall"] == pytest.approx(4 / 5)
    assert result.per_class[red]["precision"] == pytest.approx(3 / 4)
    assert json.dumps(result.to_json())


def test_log_loss_and_probabilities_are_the_bundles(bundle, photos):
    result = evaluate(bundle, photos)
    p = result.probabilities[np.arange(len(result.dataset)), result.dataset.labels]
    assert result.log_loss == pytest.approx(-np.log(p).mean())
    path = photos / result.dataset.paths[3]
    assert max(result.probabilities[3]) == pytest.approx(bundle.predict(path).probability, abs=1e-5)


@pytest.mark.parametrize("absent", [None, 2])
def test_figures_are_scikit_learns(photos, absent):
    """Also of a class that does not occur, or is never said."""
    rng, num_classes = np.random.default_rng(0), 5
    y = rng.integers(0, num_classes, 60)
    y[y == absent] = 0
    p = rng.dirichlet(np.ones(num_classes), 60)
    p[:, 3] = 0.0
    p /= p.sum(axis=1, keepdims=True)
    dataset = Dataset(photos, ("",) * 60, y, tuple("abcde"), ("",) * 60, ("",) * 60)
    ours, said, labels = evaluate_probabilities(dataset, p, "new"), p.argmax(axis=1), np.arange(num_classes)
    rows = precision_recall_fscore_support(y, said, labels=labels, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "n"), rows, strict=True):
        assert [row[name] for row in ours.per_class] == pytest.approx(list(column))
    assert ours.accuracy.value == accuracy_score(y, said)
    assert ours.macro_f1 == pytest.approx(f1_score(y, said, labels=np.unique(y), average="macro", zero_division=0))
    present = np.unique(y)
    assert ours.balanced_accuracy == pytest.approx(recall_score(y, said, labels=present, average="macro"))
    assert ours.log_loss == pytest.approx(log_loss(y, p, labels=labels))
    assert np.array_equal(ours.confusion, confusion_matrix(y, said, labels=labels))


def test_classes_are_matched_by_name_when_some_are_absent(bundle, tmp_path):
    result = evaluate(bundle, draw_folder(tmp_path, ("red",), 3, seed=5))
    assert result.accuracy.value == 1
    assert result.macro_f1 == pytest.approx(1)
    assert result.balanced_accuracy == pytest.approx(1)


def test_an_unknown_class_is_an_error_with_the_nearest_name(bundle, tmp_path):
    draw(tmp_path / "reds" / "a.jpg", (200, 0, 0), 1)
    with pytest.raises(DataError, match=r"'reds', which the model does not know. Did you mean 'red'"):
        evaluate(bundle, tmp_path)


def test_of_a_split_folder_test_is_judged_before_val(bundle, tmp_path):
    for i, split in enumerate(("train", "val", "test")):
        draw_folder(tmp_path / split, ("red", "green"), 2 + i, seed=50 * i)
    result = evaluate(bundle, tmp_path)
    assert (result.accuracy.split, result.accuracy.n) == ("test", 8)


def test_unreadable_photos_are_listed_not_judged(bundle, tmp_path):
    folder = draw_folder(tmp_path, ("red", "green"), 2, seed=9)
    (folder / "red" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    result = evaluate(bundle, folder)
    assert result.accuracy.n == 4
    assert [q["path"] for q in result.to_json()["quarantined"]] == ["red/bad.jpg"]


def test_cached_features_do_not_hide_a_bundle_that_contradicts_itself(default_bundle, photos, tmp_path):
    """Other weights beside the graph, with matching hashes: what the graph itself says differs, and that is noticed."""
    copy = shutil.copytree(default_bundle.folder, tmp_path / "bundle")
    state = load_file(copy / "model.safetensors")
    state["classifier.bias"] = state["classifier.bias"] + np.float32([0, 1, 2])
    save_file(state, copy / "model.safetensors")
    rehash(copy, "model.safetensors")
    with pytest.raises(BundleError, match="contradicts itself"):
        evaluate(load(copy), photos)


def test_calibration_error_of_known_cases():
    sure = np.array([[1.0, 0.0]] * 10)
    assert expected_calibration_error(sure, np.zeros(10, int)) == pytest.approx(0)
    assert expected_calibration_error(sure, np.ones(10, int)) == pytest.approx(1)
    assert expected_calibration_error(np.array([[0.8, 0.2]] * 10), np.array([0] * 8 + [1] * 2)) == pytest.approx(0)


def test_metrics_of_training_are_those_of_the_saved_bundle(photos, tmp_path, tiny):
    bundle = regraft.train(photos, tmp_path / "run", quiet=True, seed=3)
    rows = map(json.loads, (tmp_path / "run" / "photos.jsonl").read_text().splitlines())
    judged = [row for row in rows if row.get("split") == "val"]
    right = [bundle.predict(photos / row["path"]).label == row["label"] for row in judged]
    assert bundle.manifest["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert bundle.manifest["metrics"]["accuracy"]["n"] == len(judged)


def test_a_notebook_shows_accuracy_and_classes(bundle, photos):
    found = evaluate(bundle, photos)
    page = found._repr_html_()
    assert str(found.accuracy) in page
    assert "<tr><td>red</td><td>10</td><td>1.000</td><td>1.000</td><td>1.000</td></tr>" in page
    hostile = replace(found, per_class=[{**found.per_class[0], "class": "<script>"}])
    assert "<td>&lt;script&gt;</td>" in hostile._repr_html_()
    assert max(len(repr(one)) for one in (found, found.dataset, bundle)) < 500  # what a prompt shows
