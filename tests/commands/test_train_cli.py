"""`regraft train` and `regraft compare` on the command line: options, exit codes, and stdout that is data alone."""

import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import regraft.cli
from commands.test_train import save_toy
from conftest import draw_folder
from regraft.core.config import TrainConfig
from regraft.core.settings import settings_of
from regraft.core.signals import Interrupted
from regraft.training.recipe import Recipe

STANDING = ["--epochs", 1, "--learning-rate", 0, "--head-learning-rate", 0, "--head-start", "random"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    settings = save_toy(tmp_path_factory.mktemp("toy") / "weights")
    return ["--backbone", settings["backbone"], "--weights", settings["weights"]]


def only_line(done):
    """The one line of an error that the user can mend."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    assert "Traceback" not in done.stderr
    return lines[0]


def config_of(monkeypatch, *arguments):
    """What `regraft train photos ...` would train with."""
    seen = []

    def train_run(folder, out, config, progress):
        seen.append((folder, out, config, progress.quiet))
        return SimpleNamespace(summary={})

    monkeypatch.setattr("regraft.commands.train.train_run", train_run)
    done = CliRunner().invoke(regraft.cli.cli, ["train", "photos", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return seen[0]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("3m", 180), ("1h", 3600), ("0.5m", 30), ("1e2", 100), ("2.5", 2.5)]
)
def test_times_are_read_as_people_write_them(monkeypatch, text, seconds):
    assert config_of(monkeypatch, "--time", text)[2].limit_s == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "ten", "10 minutes", "5d", "m", "nan", "inf", "1e400h", "3m20s"])
@pytest.mark.parametrize("command", ["train", "compare"])
def test_what_is_no_time_is_wrong_usage(regraft_main, command, text):
    done = regraft_main(command, "photos", "--time", text)
    assert done.returncode == 2
    assert f"{text!r} is no time. Expected one like 90s, 10m or 1h." in done.stderr


def test_auto_alone_has_a_limit_of_its_own(monkeypatch):
    assert config_of(monkeypatch)[2].limit_s == 600
    for mode in ("frozen", "full", "scratch"):
        assert config_of(monkeypatch, "--mode", mode)[2].limit_s is None


def test_without_options_all_is_as_decided(monkeypatch):
    assert config_of(monkeypatch) == ("photos", None, TrainConfig(), False)


def test_options_become_settings_and_only_those_that_were_given(monkeypatch):
    options = ["--mode", "full", "--recipe", "tutorial", "--seed", 3, "--workers", 0, "--restart", "--force", "--quiet"]
    recipe = ["--epochs", 3, "--no-flip", "--class-weights", "--head-start", "zero", "--unfreeze", -1, "--clip", 1]
    folder, out, config, quiet = config_of(monkeypatch, *options, *recipe, "--out", "here", "--offline")
    assert (folder, out, quiet) == ("photos", "here", True)
    settings = {"epochs": 3, "flip": False, "class_weights": True, "head_start": "zero", "unfreeze": -1, "clip": 1.0}
    expected = {"mode": "full", "recipe": "tutorial", "seed": 3, "workers": 0, "restart": True, "force": True}
    assert config == TrainConfig(**expected, offline=True, settings=settings)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_explains_every_setting(command):
    done = CliRunner().invoke(regraft.cli.cli, [command, "--help"], terminal_width=100)
    words = " ".join(done.output.split())
    own = [one for one in settings_of(TrainConfig) if one.name not in ("settings", "mode", "restart", "force")]
    assert len(settings_of(Recipe)) == len(fields(Recipe)) > 20
    for one in (*own, *settings_of(Recipe)):
        assert f"--{one.name.removesuffix('_s').replace('_', '-')}" in words, one.name
        assert one.text
        assert one.text.split(".")[0][:40] in words, one.name


def test_an_option_that_is_not_given_leaves_the_default(monkeypatch):
    _, _, config, _ = config_of(monkeypatch)
    assert config == TrainConfig()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--epochs", 0], "--epochs 0 is out of range. Expected 1 to 100000."),
        (["--batch-size", 0], "--batch-size 0 is out of range"),
        (["--learning-rate", -1], "--learning-rate -1.0 is out of range"),
        (["--learning-rate", "nan"], "--learning-rate nan is out of range"),
        (["--min-crop", 0], "--min-crop 0.0 is out of range"),
        (["--label-smoothing", 1], "--label-smoothing 1.0 is out of range"),
        (["--ema", 1], "--ema 1.0 is out of range"),
        (["--unfreeze", -2], "--unfreeze -2 is out of range"),
        (["--patience", 3], "--patience needs --keep best"),
        (["--seed", -1], "--seed -1 is negative"),
    ],
)
@pytest.mark.parametrize("command", [["train", "--mode", "full"], ["train"], ["compare"]], ids=" ".join)
def test_what_is_out_of_range_is_told_in_one_line(regraft_main, photos, tmp_path, command, options, told):
    done = regraft_main(command[0], photos, *command[1:], *options, "--out", tmp_path / "run")
    assert told in only_line(done)
    assert not list(tmp_path.rglob("bundle"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--mode", "full", "--unfreeze", 99], "--unfreeze 99 is more than timm/test_resnet has: 5 stages"),
        (
            ["--mode", "scratch", "--weights", "random", "--head-start", "solved"],
            "--head-start solved needs a pretrained backbone",
        ),
    ],
)
def test_what_this_network_cannot_do_is_told_in_one_line(regraft_main, photos, toy, tmp_path, options, told):
    assert told in only_line(regraft_main("train", photos, *toy, *options, "--out", tmp_path / "run"))


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adam"],
        ["--keep", "first"],
        ["--augment", "all"],
        ["--epochs", "many"],
        ["--epochs", 1.5],
        ["--flip", "yes"],
        ["--mode", "ful"],
        ["--recipe", "mine"],
        ["--epoch", 3],
        ["--seed", "x"],
    ],
    ids=str,
)
def test_wrong_usage_exits_with_2(regraft_main, photos, options):
    done = regraft_main("train", photos, *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: " in done.stderr


def _no_folder(tmp, photos):
    return [tmp / "photoz"], "There is no folder"


def _empty(tmp, photos):
    (tmp / "empty").mkdir()
    return [tmp / "empty"], "has no readable photos"


def _only_corrupt(tmp, photos):
    for name in ("a", "b"):
        (tmp / "bad" / name).mkdir(parents=True)
        (tmp / "bad" / name / "x.jpg").write_text("<html>")
    return [tmp / "bad"], "has no readable photos"


def _one_class_left(tmp, photos):
    folder = draw_folder(tmp / "half", ("a",), 3)
    (folder / "b").mkdir()
    (folder / "b" / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    return [folder], "has photos of one class only, 'a'"


def _one_photo_each(tmp, photos):
    return [draw_folder(tmp / "single", ("a", "b"), 1)], "leaves no photos to judge"


def _out_inside(tmp, photos):
    return [photos, "--out", photos / "red" / "run"], "lies inside the photos' folder"


def _out_cannot_be_written(tmp, photos):
    return [photos, "--out", "/proc/regraft"], "Cannot write to the output folder"


def _out_is_a_file(tmp, photos):
    (tmp / "file").touch()
    return [photos, "--out", tmp / "file"], "Cannot write to the output folder"


BAD = (
    _no_folder,
    _empty,
    _only_corrupt,
    _one_class_left,
    _one_photo_each,
    _out_inside,
    _out_cannot_be_written,
    _out_is_a_file,
)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.__name__.strip("_"))
@pytest.mark.parametrize(
    "command",
    [["train", "--mode", "full"], ["train", "--mode", "scratch"], ["train", "--recipe", "tutorial"], ["compare"]],
    ids=" ".join,
)
def test_bad_input_is_one_line_in_every_mode(regraft_main, photos, toy, tmp_path, monkeypatch, command, case):
    monkeypatch.chdir(tmp_path)
    arguments, told = case(tmp_path, photos)
    weights = [] if "scratch" in command else toy[2:]
    done = regraft_main(command[0], *arguments, *command[1:], *toy[:2], *weights, "--epochs", 1, "--json", "--quiet")
    assert told in only_line(done)
    assert not list((photos / "red").glob("run*"))


def test_train_prints_json_alone_and_talks_elsewhere(regraft_main, photos, toy, tmp_path):
    done = regraft_main("train", photos, *toy, "--mode", "full", "--epochs", 2, "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    contract = {"bundle", "mode", "backbone", "classes", "images", "accuracy", "seconds"}
    assert result.keys() == contract | {"cross_validated", "decision", "history", "photos", "findings", "record"}
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert [row["epoch"] for row in result["history"]] == [1, 2]
    talk = done.stderr.splitlines()
    assert [line[:10] for line in talk if line.startswith("epoch ")] == ["epoch  1/2", "epoch  2/2"]
    (recipe,) = [line for line in talk if line.startswith("recipe: 2 epochs of batches of 32; adamw rate ")]
    progress = ("epoch ", "fine-tune: ", "extract features: ", "write report ...", "draw report: ")
    assert talk[-1].startswith(progress), recipe


def test_train_for_people_says_what_came_of_it(regraft_main, photos, toy, tmp_path):
    done = regraft_main("train", photos, *toy, "--out", tmp_path / "run", "--quiet")
    assert done.returncode == 0
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert "mode     frozen" in lines
    chosen = [
        line for line in lines if line.startswith("chosen   frozen: it has none of 24 cross-validated photos wrong")
    ]
    assert len(chosen) == 1
    assert [line for line in lines if line.startswith("accuracy 100.0 % of 6 val photos (95 % interval ")]
    assert lines[-1].strip() == f"regraft predict {tmp_path / 'run'} PHOTO..."


def test_compare_prints_a_table_and_verdicts(regraft_main, photos, toy, tmp_path):
    options = [*STANDING, "--modes", "frozen,full", "--out", tmp_path / "out", "--quiet"]
    done = regraft_main("compare", photos, *toy, *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    header, *rows = [line.split() for line in done.stdout.splitlines() if line.strip(" ─━")]
    assert header == ["mode", "accuracy", "95", "%", "interval", "photos", "seconds"]
    assert [row[:3] for row in rows[:2]] == [["frozen", "100.0", "%"], ["full", rows[1][1], "%"]]
    assert [row[-2] for row in rows[:2]] == ["6", "6"]
    assert " ".join(rows[2]).startswith(("frozen is better than full", "frozen and full do not differ"))
    (pair,) = json.loads((tmp_path / "out" / "compare.json").read_text())["pairs"]
    assert " ".join(rows[2]) == f"{pair['verdict']} (p = {pair['p_value']:.2g})"


def test_compare_prints_json_alone(regraft_main, photos, toy, tmp_path):
    options = [*STANDING, "--modes", "full,frozen", "--no-report", "--out", tmp_path / "out", "--json"]
    done = regraft_main("compare", photos, *toy, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["modes"]) == ["full", "frozen"]
    assert [line for line in done.stderr.splitlines() if line.startswith("-- ")] == ["-- full", "-- frozen"]


@pytest.mark.parametrize("modes", ["frozen,auto", "ful", "", "frozen,,full"])
def test_compare_with_an_unknown_mode_names_it(regraft_main, photos, tmp_path, modes):
    line = only_line(regraft_main("compare", photos, "--modes", modes, "--out", tmp_path / "out"))
    assert "Unknown mode '" in line
    assert "Expected some of: frozen, full, scratch." in line
    assert not (tmp_path / "out").exists()


def test_train_begins_from_a_bundle(regraft_main, photos, toy, tmp_path):
    first = regraft_main("train", photos, *toy, "--mode", "full", "--epochs", 1, "--out", tmp_path / "a", "--json")
    options = ["--mode", "frozen", "--out", tmp_path / "b", "--json"]
    done = regraft_main("train", photos, "--from", tmp_path / "a", *options)
    assert json.loads(done.stdout)["backbone"] == json.loads(first.stdout)["backbone"]
    assert "from file model.safetensors" in done.stderr


def test_from_what_is_no_bundle_is_told_in_one_line(regraft_main, photos, tmp_path):
    assert "There is no bundle at" in only_line(regraft_main("train", photos, "--from", tmp_path))


@pytest.mark.parametrize("options", [["--weights", "w.pth"], ["--weights", "random"], ["--backbone", "resnet18"]])
def test_from_and_another_place_for_weights_contradict_each_other(regraft_main, photos, tmp_path, options):
    done = regraft_main("train", photos, "--from", tmp_path, *options)
    assert done.returncode == 2
    assert "--from names the backbone and its weights" in done.stderr


@pytest.mark.parametrize(("signum", "code"), [(2, 130), (15, 143)])
def test_a_signal_ends_with_its_code_and_says_how_to_go_on(regraft_main, photos, monkeypatch, signum, code):
    def stopped(*_):
        raise Interrupted(signum)

    monkeypatch.setattr("regraft.commands.train.train_run", stopped)
    done = regraft_main("train", photos)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.splitlines()[-1] == "interrupted: the same command goes on from here"


@pytest.mark.slow
def test_a_process_of_its_own_prints_the_same(run, photos, tmp_path):
    """Without torch, whose import alone takes seconds; the program that has it is in `faults/test_stopped.py`."""
    done = run("train", photos, "--mode", "frozen", "--no-report", "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "result.json").read_text())
    assert "photos: 30 used of 30 found" in done.stderr
    unknown = run("compare", photos, "--modes", "auto")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: Unknown mode 'auto'")
