"""The command line as people and programs see it: stdout is data, errors are one line, exit codes are kept.

Most of it in this process (`regraft_main`); what belongs to a process of its own, in one (`run`).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest
import torch
from torchvision import models

from conftest import draw, draw_folder
from regraft.core.files import exclusive

COMMANDS = ("scan", "train", "compare", "predict", "evaluate", "backbones", "demo")


def only_line(done, code=1):
    """The one line of an error, after making sure that it is one, with the right exit code and no traceback."""
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def test_train_prints_the_object_of_the_contract(run, photos, tmp_path):
    done = run("train", photos, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["classes"] == ["blue", "green", "red"]
    assert result["images"] == {"found": 30, "used": 30, "quarantined": 0}
    assert set(result["accuracy"]) == {"value", "low", "high", "n", "split"}
    assert result["accuracy"]["n"] == 6
    assert result["cross_validated"]["n"] == 30
    assert result["seconds"]["total"] > 0
    assert Path(result["bundle"], "regraft.json").is_file()
    assert "photos: 30 used of 30 found" in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result


def test_train_for_people_says_how_good_and_what_next(regraft_main, photos, tmp_path):
    done = regraft_main("train", photos, "--out", tmp_path / "run", "--quiet")
    assert "95 % interval" in done.stdout
    assert f"regraft predict {tmp_path / 'run'}" in done.stdout
    assert done.stderr == ""


def test_default_run_folder_is_named_after_the_photos(regraft_main, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = regraft_main("train", photos, "--quiet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "colours" / "bundle" / "regraft.json").is_file()


def test_predict_prints_one_object_a_line_and_fails_at_the_end(regraft_main, bundle, photos, tmp_path):
    (tmp_path / "bad.jpg").write_text("<html>")
    done = regraft_main(
        "predict", bundle.folder, photos / "red" / "red_0.jpg", tmp_path / "bad.jpg", photos / "blue", "--json"
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 12
    assert rows[0]["label"] == "red"
    assert set(rows[1]) == {"path", "error"}
    assert [row["label"] for row in rows[2:]] == ["blue"] * 10
    assert "1 of the photos could not be read" in only_line(done)


def test_scan_prints_the_object_of_the_contract(regraft_main, tmp_path):
    folder = draw_folder(tmp_path / "data", ("a", "b"), 2)
    (folder / "a" / "bad.jpg").touch()
    done = regraft_main("scan", folder, "--json")
    result = json.loads(done.stdout)
    assert result["classes"] == {"a": 2, "b": 2}
    assert (result["found"], result["used"]) == (5, 4)
    assert result["quarantined"] == [{"path": "a/bad.jpg", "reason": "the file is empty"}]


def test_evaluate_for_people_names_classes_and_interval(regraft_main, bundle, photos):
    done = regraft_main("evaluate", bundle.folder, photos)
    assert "accuracy 100.0 % of 30 new photos" in done.stdout
    assert "green" in done.stdout


def test_backbones_lists_what_matches(regraft_main):
    done = regraft_main("backbones", "mobilenetv3_small", "--json")
    rows = json.loads(done.stdout)
    assert "timm/mobilenetv3_small_100" in [row["name"] for row in rows]
    assert all(row["num_params"] > 1e5 and row["input_size"] and row["licence"] for row in rows)


def _no_folder(tmp, photos, bundle):
    (tmp / "photo").mkdir()
    return ["train", tmp / "photos"], ["There is no folder", "Did you mean 'photo'?"]


def _images_inside(tmp, photos, bundle):
    for i in range(3):
        draw(tmp / "flat" / f"{i}.jpg", (9, 9, 9), i)
    return ["train", tmp / "flat"], ["has no class folders", "found 3 files directly inside", "Put the photos"]


def _one_class(tmp, photos, bundle):
    return ["train", draw_folder(tmp / "one", ("cat",), 3)], ["one class only, 'cat'", "Add a folder"]


def _no_images(tmp, photos, bundle):
    for name in ("a", "b"):
        (tmp / "none" / name).mkdir(parents=True)
        (tmp / "none" / name / "notes.txt").write_text("no photo")
    return ["train", tmp / "none"], ["has no readable photos", "found 2 files"]


def _empty_folder(tmp, photos, bundle):
    (tmp / "empty").mkdir()
    return ["train", tmp / "empty"], ["has no readable photos", "<class>/<image>"]


def _unknown_val_class(tmp, photos, bundle):
    draw_folder(tmp / "split" / "train", ("cat", "dog"), 2)
    draw_folder(tmp / "split" / "val", ("cat", "dogs"), 2)
    return ["train", tmp / "split"], ["class 'dogs', which train does not have", "Did you mean 'dog'?"]


def _unknown_backbone(tmp, photos, bundle):
    return ["train", photos, "--backbone", "resnet5"], ["Unknown backbone 'resnet5'", "Did you mean", "'resnet50'"]


def _weights_of_another(tmp, photos, bundle):
    torch.save(models.resnet18().state_dict(), tmp / "w.pth")
    arguments = ["train", photos, "--backbone", "mobilenet_v2", "--weights", tmp / "w.pth"]
    return arguments, ["w.pth was made for another network", "--backbone"]


def _pickle_that_runs_code(tmp, photos, bundle):
    torch.save({"state_dict": _Touch(tmp / "canary")}, tmp / "evil.pth")
    arguments = ["train", photos, "--backbone", "resnet18", "--weights", tmp / "evil.pth"]
    return arguments, ["refused unexecuted", "Save model.state_dict()"]


def _missing_weights_offline(tmp, photos, bundle):
    arguments = ["train", photos, "--backbone", "resnet50", "--offline"]
    return arguments, ["are not on this machine", "resnet50-0676ba61.pth", "--weights"]


def _damaged_bundle(tmp, photos, bundle):
    copy = shutil.copytree(bundle.folder, tmp / "bundle")
    data = bytearray((copy / "model.onnx").read_bytes())
    data[1000] ^= 1
    (copy / "model.onnx").write_bytes(data)
    return ["predict", copy, photos / "red"], ["model.onnx is damaged", "restore a copy"]


def _no_bundle(tmp, photos, bundle):
    return ["predict", tmp, photos / "red"], ["There is no bundle", "regraft train"]


def _out_is_a_file(tmp, photos, bundle):
    (tmp / "file").touch()
    return ["train", photos, "--out", tmp / "file" / "run"], ["Cannot write to the output folder", "Choose another"]


def _out_inside_photos(tmp, photos, bundle):
    return ["train", photos, "--out", photos / "run"], ["lies inside the photos' folder", "--out"]


def _read_only_out(tmp, photos, bundle):
    return ["train", photos, "--out", "/proc/regraft"], ["Cannot write to the output folder /proc/regraft"]


ERRORS = (
    _no_folder,
    _images_inside,
    _one_class,
    _no_images,
    _empty_folder,
    _unknown_val_class,
    _unknown_backbone,
    _weights_of_another,
    _pickle_that_runs_code,
    _missing_weights_offline,
    _damaged_bundle,
    _no_bundle,
    _out_is_a_file,
    _out_inside_photos,
    _read_only_out,
)


class _Touch:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.__name__.strip("_"))
def test_errors_are_one_line_with_the_cure(regraft_main, photos, bundle, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    arguments, expected = case(tmp_path, photos, bundle)
    line = only_line(regraft_main(*arguments))
    for text in expected:
        assert text in line
    assert not (tmp_path / "canary").exists()


def test_debug_shows_the_traceback(run, tmp_path):
    done = run("--debug", "scan", tmp_path / "none")
    assert "Traceback" in done.stderr


def test_a_folder_in_use_names_its_holder(run, photos, tmp_path):
    with exclusive(tmp_path / "run"):
        line = only_line(run("train", photos, "--out", tmp_path / "run"))
    assert f"process {os.getpid()}" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(regraft_main, command):
    done = regraft_main(command, "--help")
    assert done.returncode == 0
    assert f"regraft {command}" in done.stdout.partition("Usage")[2].partition("\n")[2]


def test_wrong_usage_exits_with_2(regraft_main):
    assert regraft_main("train").returncode == 2
    assert regraft_main("train", "x", "--mode", "none").returncode == 2
    assert regraft_main("nothing").returncode == 2


def test_names_from_disk_cannot_drive_the_terminal(regraft_main, tmp_path):
    folder = draw_folder(tmp_path / "data", ("a\x1b[2J", "b\u202e"), 2)
    (folder / "a\x1b[2J" / "bad\x1b]0;x.jpg").touch()
    done = regraft_main("scan", folder)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\u202e" not in done.stdout


def test_a_reader_that_goes_away_ends_the_command_quietly(bundle, photos):
    command = (
        f"{quote(sys.executable)} -m regraft predict {quote(str(bundle.folder))} {quote(str(photos))} --json | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)
    assert "Traceback" not in done.stderr


def test_works_without_home_terminal_or_locale(run, bundle, photos):
    done = run("predict", bundle.folder, photos / "red" / "red_0.jpg", HOME="/nonexistent", LANG="C", TERM="dumb")
    assert done.returncode == 0, done.stderr
