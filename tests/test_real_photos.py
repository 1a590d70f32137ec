"""Real photos with the default backbone: what the README promises, measured through the saved bundle."""

import json
import shutil

import pytest
from sklearn.metrics import roc_auc_score

import regraft
from faults.processes import IS_LONG, long_form, mostly_long
from regraft.bundle.predict import predict
from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.progress import Progress

pytestmark = pytest.mark.slow


def train(folder, out):
    return train_run(folder, out, TrainConfig(mode="frozen", report=False), Progress(quiet=True)).summary


def test_ants_and_bees(real_photos, tmp_path):
    summary = train(real_photos / "hymenoptera", tmp_path)
    assert summary["images"] == {"found": 398, "used": 398, "quarantined": 0}
    assert (summary["accuracy"]["split"], summary["accuracy"]["n"]) == ("val", 153)
    assert summary["accuracy"]["value"] >= 0.94
    assert summary["accuracy"]["low"] < summary["accuracy"]["value"] < summary["accuracy"]["high"]


@long_form
def test_fruit_in_shops_is_judged_on_its_test_folder(real_photos, tmp_path):
    summary = train(real_photos / "grocery_fruit5", tmp_path)
    assert (summary["accuracy"]["split"], summary["accuracy"]["n"]) == ("test", 232)
    assert summary["accuracy"]["value"] >= 0.95


def test_twenty_photos_of_trees(real_photos, tmp_path):
    summary = train(real_photos / "hemlock2", tmp_path)
    assert summary["cross_validated"]["value"] == 1
    assert summary["cross_validated"]["n"] == 20
    assert summary["cross_validated"]["low"] < 0.9


HARD = [("wbc4", 0.60, 0.80), ("signdigits10s", 0.65, 0.85)]


@pytest.mark.parametrize(("name", "least", "most"), mostly_long(HARD, HARD[0]))
def test_hard_sets_are_reported_honestly(real_photos, tmp_path, name, least, most):
    summary = train(real_photos / name, tmp_path)
    assert least <= summary["cross_validated"]["value"] <= most
    assert summary["accuracy"]["n"] == round(0.2 * summary["images"]["used"])


def test_evaluate_repeats_the_figure_of_training(real_photos, tmp_path):
    folder = real_photos / "hymenoptera"
    bundle = regraft.train(folder, tmp_path, quiet=True, mode="frozen", report=False)
    assert regraft.evaluate(bundle, folder / "val").accuracy.value == bundle.manifest["metrics"]["accuracy"]["value"]


def test_junk_among_real_photos_changes_nothing_but_the_record(real_photos, tmp_path):
    folder = shutil.copytree(real_photos / "hemlock2", tmp_path / "photos")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Hemlock" / "notes.txt").write_text("not a photo")
    (folder / "Hemlock" / "cut.jpg").write_bytes(next((folder / "Hemlock").glob("*.jpg")).read_bytes()[:2000])
    summary = train(folder, tmp_path / "run")
    assert summary["images"] == {"found": 22, "used": 20, "quarantined": 2}
    clean = train(real_photos / "hemlock2", tmp_path / "clean")
    assert summary["accuracy"] == clean["accuracy"]
    manifest = json.loads((tmp_path / "run" / "bundle" / "regraft.json").read_text())
    assert manifest["provenance"]["images"]["quarantined"] == 2


def test_photos_of_other_sets_look_new_to_the_ants_and_bees_model(real_photos, tmp_path, record_property):
    """Not worse than what needs no features: how little the largest probability is."""
    bundle = regraft.train(real_photos / "hymenoptera", tmp_path, quiet=True, mode="frozen", report=False)
    own = [answer.prediction for answer in predict(bundle, [real_photos / "hymenoptera" / "val"])]
    others = [
        answer.prediction
        for name in (("wbc4", "grocery_fruit5", "signdigits10s") if IS_LONG else ("wbc4",))
        for answer in predict(bundle, sorted((real_photos / name).rglob("*.[jJ][pP]*"))[:: 5 if IS_LONG else 3])
    ]
    novelty = [one.novelty for one in own if one], [one.novelty for one in others if one]
    doubt = [1 - one.probability for one in (*own, *others) if one]
    labels = [0] * len(novelty[0]) + [1] * len(novelty[1])
    assert len(novelty[1]) > 100
    found, baseline = roc_auc_score(labels, [*novelty[0], *novelty[1]]), roc_auc_score(labels, doubt)
    record_property("auroc", round(found, 4))
    record_property("auroc of the largest probability", round(baseline, 4))
    assert found >= max(0.95, baseline)
    assert sum(value > 1 for value in novelty[0]) <= 0.04 * len(novelty[0])
