"""The stories: training is repeatable, honest about what it used, and leaves whole results or none."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torchvision import models

import regraft
from commands.test_train import save_toy
from conftest import draw, draw_folder
from faults.processes import mostly_long
from regraft.core.errors import ConfigError, DataError, OutputError
from regraft.core.files import sha256_file


def model_hash(run):
    return sha256_file(run / "bundle" / "model.safetensors")


def test_the_same_photos_give_the_same_bytes(photos, tmp_path, monkeypatch):
    regraft.train(photos, tmp_path / "a", quiet=True, report=False)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    regraft.train(photos, tmp_path / "b", quiet=True, report=False)
    assert model_hash(tmp_path / "a") == model_hash(tmp_path / "b")
    assert sha256_file(tmp_path / "a/bundle/model.onnx") == sha256_file(tmp_path / "b/bundle/model.onnx")


@pytest.mark.usefixtures("tiny")
def test_names_of_files_do_not_matter(photos, tmp_path):
    renamed = tmp_path / "renamed"
    for i, path in enumerate(sorted(photos.rglob("*.jpg"), reverse=True)):
        (renamed / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, renamed / path.parent.name / f"{i}.jpeg")
    a = regraft.train(photos, tmp_path / "a", quiet=True)
    b = regraft.train(renamed, tmp_path / "b", quiet=True)
    assert a.manifest["metrics"]["accuracy"] == b.manifest["metrics"]["accuracy"]
    assert a.manifest["provenance"]["data_sha256"] == b.manifest["provenance"]["data_sha256"]
    assert np.array_equal(a.head[0], b.head[0])


@pytest.mark.usefixtures("tiny")
def test_a_bad_file_is_left_out_and_recorded(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "red" / "red_00.jpg").write_bytes((folder / "red" / "red_0.jpg").read_bytes()[:400])
    bundle = regraft.train(folder, tmp_path / "run", quiet=True)
    assert bundle.manifest["provenance"]["images"] == {"found": 31, "used": 30, "quarantined": 1}
    rows = [json.loads(line) for line in (tmp_path / "run" / "photos.jsonl").read_text().splitlines()]
    assert len(rows) == 31
    (bad,) = [row for row in rows if "quarantined" in row]
    assert bad["path"] == "red/red_00.jpg"
    regraft.train(photos, tmp_path / "clean", quiet=True)
    assert model_hash(tmp_path / "run") == model_hash(tmp_path / "clean")


@pytest.mark.usefixtures("tiny")
def test_a_new_run_replaces_the_old_one_whole(photos, tmp_path):
    first = regraft.train(photos, tmp_path / "run", quiet=True)
    two = draw_folder(tmp_path / "two", ("cat", "dog"), 4)
    second = regraft.train(two, tmp_path / "run", quiet=True)
    assert first.classes != second.classes
    assert regraft.load(tmp_path / "run").classes == ("cat", "dog")
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")) == [
        "bundle",
        "photos.jsonl",
        "quarantine.csv",
        "report.html",
        "result.json",
    ]


@pytest.mark.usefixtures("tiny")
def test_a_run_that_fails_keeps_the_old_bundle(photos, tmp_path, monkeypatch):
    regraft.train(photos, tmp_path / "run", quiet=True)
    before = model_hash(tmp_path / "run")
    monkeypatch.setattr("regraft.run.evaluate_dataset", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match="no space left"):
        regraft.train(draw_folder(tmp_path / "two", ("cat", "dog"), 4), tmp_path / "run", quiet=True)
    assert model_hash(tmp_path / "run") == before
    assert regraft.load(tmp_path / "run").classes == ("blue", "green", "red")
    assert not list((tmp_path / "run").glob(".regraft-partial-*"))


@pytest.mark.usefixtures("tiny")
def test_what_a_killed_run_left_is_swept_away(photos, tmp_path):
    (tmp_path / "run" / f".regraft-partial-{32 * '0'}").mkdir(parents=True)
    regraft.train(photos, tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run").glob(".regraft-partial-*"))


@pytest.mark.usefixtures("tiny")
def test_numeric_classes_keep_their_names(tmp_path):
    folder = draw_folder(tmp_path / "digits", ("10", "2", "1"), 4)
    bundle = regraft.train(folder, tmp_path / "run", quiet=True)
    assert bundle.classes == ("1", "2", "10")
    assert bundle.predict(draw(tmp_path / "new.jpg", (200, 40, 40), 999)).label == "10"


def test_tiny_sets_train_or_refuse(tmp_path):
    toy = {**save_toy(tmp_path / "toy"), "quiet": True, "report": False}
    bundle = regraft.train(draw_folder(tmp_path / "two", ("a", "b"), 2), tmp_path / "run", **toy)
    assert bundle.manifest["metrics"]["accuracy"]["n"] == 2
    with pytest.raises(DataError, match="no photos to judge"):
        regraft.train(draw_folder(tmp_path / "one", ("a", "b"), 1), tmp_path / "run1", **toy)
    uneven = draw_folder(tmp_path / "uneven", ("a", "b"), 6)
    draw(uneven / "single" / "x.jpg", (40, 60, 200), 3)
    assert regraft.train(uneven, tmp_path / "run2", **toy).classes == ("a", "b", "single")


@pytest.mark.parametrize("wrap", mostly_long(["plain", "parallel", "checkpoint"], "checkpoint"))
def test_torchvision_weights_from_a_file_however_they_were_saved(photos, tmp_path, wrap, capsys):
    torch.manual_seed(1)
    network = models.resnet18()
    parallel = torch.nn.DataParallel(network).state_dict()
    content = {
        "plain": network.state_dict(),
        "parallel": parallel,
        "checkpoint": {"epoch": 3, "arch": "resnet18", "state_dict": parallel, "best_prec1": 71.0},
    }[wrap]
    torch.save(content, tmp_path / "model_best.pth.tar")
    settings = {"backbone": "resnet18", "weights": str(tmp_path / "model_best.pth.tar"), "mode": "frozen"}
    bundle = regraft.train(photos, tmp_path / "run", report=False, **settings)
    assert "122 of 122 tensors loaded; from file model_best.pth.tar" in capsys.readouterr().err
    saved = load_file(bundle.folder / "model.safetensors")
    assert np.array_equal(saved["layer4.1.conv2.weight"], network.layer4[1].conv2.weight.detach().numpy())
    assert saved["fc.weight"].shape == (3, 512)


def test_random_weights_follow_the_seed(photos, tmp_path):
    settings = {"mode": "frozen", "backbone": "timm/test_resnet", "weights": "random", "report": False}
    runs = [regraft.train(photos, tmp_path / name, quiet=True, seed=s, **settings) for name, s in (("a", 0), ("b", 1))]
    stems = [load_file(run.folder / "model.safetensors")["conv1.0.weight"] for run in runs]
    assert not np.array_equal(*stems)


@pytest.mark.usefixtures("tiny")
def test_accuracy_reported_is_chance_when_labels_are_noise(tmp_path):
    """No leak from judging into learning: photos of one colour under three names."""
    for c, name in enumerate("abc"):
        for i in range(20):
            draw(tmp_path / "noise" / name / f"{i}.jpg", (120, 120, 120), 1000 * c + i)
    bundle = regraft.train(tmp_path / "noise", tmp_path / "run", quiet=True, mode="frozen")
    assert bundle.manifest["metrics"]["cross_validated"]["value"] < 0.6


def test_training_inside_the_photos_is_refused(photos, monkeypatch):
    monkeypatch.chdir(photos)
    with pytest.raises(OutputError, match="inside the photos' folder"):
        regraft.train(".", quiet=True)


def test_fine_tuning_is_one_call_and_repeatable(photos, tmp_path):
    toy = save_toy(tmp_path / "toy")
    settings = {"mode": "full", "epochs": 2, "batch_size": 8, "mix": "mixup", "augment": "trivial"}
    bundle = regraft.train(photos, tmp_path / "a", quiet=True, **settings, **toy)
    provenance = bundle.manifest["provenance"]
    assert [row["epoch"] for row in provenance["history"]] == [1, 2]
    assert provenance["config"]["settings"] == {name: settings[name] for name in settings if name != "mode"}
    regraft.train(photos, tmp_path / "b", quiet=True, **settings, **toy)
    assert model_hash(tmp_path / "a") == model_hash(tmp_path / "b")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epoch": 3}, "Unknown setting 'epoch'. Did you mean 'epochs'"),
        ({"learningrate": 0.1}, "Did you mean 'learning_rate'"),
        ({"zzz": 1}, "Unknown setting 'zzz'.$"),
        ({"mode": "ful"}, "Unknown mode 'ful'. Expected one of: auto, frozen, full, scratch."),
        ({"recipe": "Tutorial"}, "Unknown recipe 'Tutorial'. Expected one of: regraft, tutorial."),
        ({"mode": "full", "epochs": "3"}, "--epochs '3' is of the wrong kind"),
        ({"mode": "full", "optimizer": "adam"}, "--optimizer 'adam' is unknown. Expected adamw, sgd"),
        ({"mode": "full", "flip": 1}, "--flip 1 is of the wrong kind"),
    ],
    ids=str,
)
def test_settings_that_are_unknown_or_cannot_be_are_refused(photos, tmp_path, settings, told):
    with pytest.raises(ConfigError, match=told):
        regraft.train(photos, tmp_path / "run", quiet=True, **settings)
    assert not (tmp_path / "run").exists()
