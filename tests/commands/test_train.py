"""The story of `regraft train` in every mode: what is promised is what lies on disk, and it is the better of two."""

import itertools
import json
import re
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config

import regraft
from conftest import COLOURS, draw, draw_folder
from faults.processes import long_form, mostly_long
from regraft import run as run_module
from regraft.backbones.features import Features
from regraft.bundle.bundle import load
from regraft.commands.train import configure, start_of, train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import BundleError, ConfigError, TrainError
from regraft.core.files import sha256_file
from regraft.core.progress import Progress
from regraft.data.scan import list_photos
from regraft.data.splits import fold_ids, split
from regraft.models import feature_search as search
from regraft.models.linear_head import solve
from regraft.pipeline import fine_tune, linear_probe, phases
from regraft.pipeline.fine_tune import _learned_and_watched
from regraft.pipeline.selection import HeldOutPredictions
from regraft.run_ownership import SCRATCH
from regraft.training import finetune, loop
from regraft.training.recipe import Recipe, decide
from rounding import rounding

FOLD = 5  # photos in the first of five folds of eight photos of each of three classes
WRONG_OF_EIGHTEEN = 6  # in `mislabelled`: no model that learned its photos does better than 12 of 18


def save_toy(folder, seed=0, dead=False, numb=False, interpolation="bilinear"):
    """Settings for a network of half a million parameters at 64 pixels.

    dead: one to which all photos are alike.  numb: one whose last stage makes them so.
    """
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=2)
    if dead:
        torch.nn.init.zeros_(network.conv1[0].weight)
        torch.nn.init.ones_(network.conv1[1].bias)  # so that it can learn to see
    for norm in (network.layer4[0].bn2, network.layer4[0].downsample[-1]) if numb else ():
        torch.nn.init.zeros_(norm.weight)
        torch.nn.init.ones_(norm.bias)
    folder.mkdir(parents=True)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = {
        "input_size": [3, 64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": interpolation,
    }
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    return {"backbone": "timm/test_resnet", "weights": str(folder / "model.safetensors")}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy") / "weights")


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    """Split by its owner; a third of the photos to judge on lie in the folder of the next colour."""
    root = tmp_path_factory.mktemp("data") / "mislabelled"
    draw_folder(root / "train", ("red", "green", "blue"), 8)
    names = ("red", "green", "blue")
    for c, name in enumerate(names):
        for i in range(6):
            shown = names[(c + (i < 2)) % 3]
            draw(root / "val" / name / f"{i}.jpg", COLOURS[shown], 5000 + 100 * c + i)
    return root


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory):
    """Like `mislabelled`, and a quarter of the photos to learn from lie wrong too: cross-validation leaves room."""
    root = tmp_path_factory.mktemp("data") / "doubtful"
    names = ("red", "green", "blue")
    for split_name, count, wrong in (("train", 8, (6, 7)), ("val", 6, (0, 1))):
        for c, name in enumerate(names):
            for i in range(count):
                shown = names[(c + (i in wrong)) % 3]
                place = root / split_name / name / f"{name}_{i}.jpg"
                draw(place, COLOURS[shown], 3000 * len(split_name) + 100 * c + i)
    return root


class Recorder(Progress):
    """Keeps what is said; calls `on` with each line."""

    def __init__(self, on=lambda line: None):
        super().__init__()
        self.lines, self.on = [], on

    @property
    def epochs(self):
        return [line for line in self.lines if line.startswith("epoch ")]

    def say(self, message):
        self.lines.append(message)
        self.on(message)


class Heard:
    """A tracker of one's own, which notes what it is told."""

    def __init__(self):
        self.started, self.rows, self.finished = [], [], []

    def start(self, out, config):
        self.started.append((out, config))

    def row(self, row):
        self.rows.append(dict(row))

    def finish(self, summary):
        self.finished.append(summary)


class Deaf(Heard):
    def row(self, row):
        raise OSError("nobody listens")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


GENTLE = {"head_start": "solved", "batchnorm": "eval"}
STORIES = {
    "frozen": {"mode": "frozen"},
    "full": {"mode": "full", "epochs": 2} | GENTLE,
    "full, part": {"mode": "full", "epochs": 2, "unfreeze": 1, "views": 1, "ema": 0.5} | GENTLE,
    "scratch": {"mode": "scratch", "epochs": 4, "batch_size": 8},
    "auto": {"epochs": 2, "search": False, "learning_rate": 0.0, "head_learning_rate": 0.0} | GENTLE,
    "tutorial frozen": {
        "mode": "frozen",
        "recipe": "tutorial",
        "epochs": 16,
        "batch_size": 8,
        "head_learning_rate": 1.0,
    },
    "tutorial full": {"mode": "full", "recipe": "tutorial", "epochs": 12, "batch_size": 8, "momentum": 0.9},
    "tutorial scratch": {"mode": "scratch", "recipe": "tutorial", "epochs": 8, "batch_size": 8, "momentum": 0.9},
}


SHORT_STORIES = [name for name in STORIES if not name.startswith("tutorial")]


@pytest.fixture(scope="module", params=mostly_long(STORIES, *SHORT_STORIES))
def story(request, mislabelled, toy, tmp_path_factory):
    """A finished run in each mode and recipe, with its name and its settings."""
    out = tmp_path_factory.mktemp("story") / "run"
    settings = STORIES[request.param] | toy
    if settings.get("mode") == "scratch":
        del settings["weights"]
    heard, said = Heard(), Recorder()
    run = train_run(mislabelled, out, configure(**settings), said, [Deaf(), heard])
    assert heard.started[0][1] == run.summary["record"]["config"]
    history = out / "history.jsonl"
    assert heard.rows == (read_lines(history) if history.exists() else [])
    assert heard.finished == [run.summary]
    fault = "Deaf failed and is told nothing more: OSError: nobody listens"
    assert said.lines.count(fault) == bool(heard.rows)
    return request.param, settings, run


def test_what_is_printed_stored_and_delivered_is_the_same(story):
    name, settings, run = story
    assert json.loads((run.out / "result.json").read_text()) == run.summary
    manifest = regraft.load(run.out).manifest
    assert manifest["metrics"]["accuracy"] == run.summary["accuracy"]
    assert manifest["provenance"]["mode"] == run.summary["mode"] == settings.get("mode", "frozen")
    assert manifest["provenance"].get("history", []) == run.summary["history"]
    assert bool(run.summary["decision"]) == (name == "auto")
    assert run.summary["accuracy"]["split"] == "val"
    assert round(18 * run.summary["accuracy"]["value"]) == 18 - WRONG_OF_EIGHTEEN
    assert run.summary["seconds"]["total"] > run.summary["seconds"]["save_and_judge"] > 0


def test_the_bundle_predicts_new_photos_and_evaluates_to_what_was_reported(story, mislabelled, tmp_path):
    run = story[2]
    bundle = regraft.load(run.summary["bundle"])
    for seed, name in enumerate(("red", "green", "blue")):
        assert bundle.predict(draw(tmp_path / f"{name}.jpg", COLOURS[name], 9000 + seed)).label == name
    assert regraft.evaluate(bundle, mislabelled).accuracy.to_json() == run.summary["accuracy"]


def test_history_has_a_row_for_each_epoch_and_ends_with_the_reported_accuracy(story):
    _, settings, run = story
    rows = run.summary["history"]
    if run.summary["mode"] == "frozen" and settings.get("recipe") is None:
        assert rows == []
        return
    assert read_lines(run.out / "history.jsonl") == rows
    assert [row["epoch"] for row in rows] == list(range(1, settings["epochs"] + 1))
    numbers = {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"}
    assert all(row.keys() == {"epoch"} | numbers for row in rows)
    assert rows[-1]["val_accuracy"] == pytest.approx(run.summary["accuracy"]["value"])


def test_a_finished_run_leaves_nothing_to_continue(story):
    rows = {"history.jsonl"} if story[2].summary["history"] else set()
    assert (
        set(visible(story[2].out)) == {"bundle", "photos.jsonl", "quarantine.csv", "report.html", "result.json"} | rows
    )
    assert not list(story[2].out.glob(".regraft-partial-*"))


def test_the_recipe_is_saved_whole_as_it_was_carried_out(story):
    _, settings, run = story
    provenance = run.bundle.manifest["provenance"]
    if not run.summary["history"]:
        assert "recipe" not in provenance
        return
    recipe = Recipe(**provenance["recipe"])
    given = {key: value for key, value in settings.items() if hasattr(recipe, key)}
    assert given.items() <= recipe.to_json().items()
    assert provenance["epoch"] == settings["epochs"]
    assert provenance["stopped"] == ""
    if settings.get("recipe") == "tutorial":
        assert (recipe.optimizer, recipe.learning_rate, recipe.schedule) == ("sgd", 0.01, "constant")


STARTS = [
    ({}, "softened"),
    ({"batchnorm": "train"}, "softened"),
    ({"head_start": "zero"}, "zero"),
    ({"weights": "random"}, "zero"),
]


@pytest.mark.parametrize(("given", "head_start"), mostly_long(STARTS, STARTS[0]))
def test_training_begins_from_the_solved_head_of_a_network_that_knows_something(
    mislabelled, toy, tmp_path, given, head_start
):
    config = configure(**{"mode": "full", "epochs": 1, "report": False, **toy, **given})
    run = train_run(mislabelled, tmp_path / "run", config, Progress(quiet=True))
    assert run.bundle.manifest["provenance"]["recipe"]["head_start"] == head_start


def test_a_softened_head_answers_as_the_solved_one_and_is_half_as_sure(mislabelled, toy, tmp_path):
    still = {"mode": "full", "epochs": 1, "learning_rate": 0.0, "head_learning_rate": 0.0, "batchnorm": "eval"}
    still |= {"report": False, **toy}
    weights = {}
    for start in ("solved", "softened"):
        run = train_run(mislabelled, tmp_path / start, configure(**still, head_start=start), Progress(quiet=True))
        weights[start] = run.bundle.head
    (solved, bias), (softened, soft_bias) = weights["solved"], weights["softened"]
    factor = float((softened * solved).sum() / (solved * solved).sum())
    assert 0 < factor < 0.9
    assert softened == pytest.approx(factor * solved, rel=1e-5)
    assert soft_bias == pytest.approx(factor * bias, rel=1e-5)


def test_what_is_not_to_learn_does_not_move(story, toy):
    name, _, run = story
    before, after = load_file(toy["weights"]), load_file(run.bundle.folder / "model.safetensors")
    moved = {key for key in before if not key.startswith("fc.") and not torch.equal(before[key], after[key])}
    frozen_sha256 = run.bundle.manifest["provenance"].get("frozen_sha256")
    if run.summary["mode"] == "frozen":
        assert not moved
    elif name == "full, part":
        assert {key.partition(".")[0] for key in moved} == {"layer4"}
        assert re.fullmatch("[0-9a-f]{64}", frozen_sha256)
    else:
        assert {"conv1", "layer1", "layer4"} <= {key.partition(".")[0] for key in moved}
        assert frozen_sha256 is None


def test_timm_loads_the_bundle_and_gives_our_logits(story, mislabelled):
    bundle = load(story[2].bundle.folder, precision="f32")
    network = timm.create_model(f"local-dir:{bundle.folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(network))
    paths = sorted(mislabelled.rglob("*.jpg"))[::7]
    with torch.inference_mode():
        theirs = network(torch.stack([transform(Image.open(path)) for path in paths])).numpy()
    ours = bundle.engine(np.stack([bundle.to_input(path) for path in paths]))["logits"]
    np.testing.assert_allclose(theirs, ours, atol=2e-3 * np.abs(ours).max())
    assert len(set(ours.argmax(axis=1))) == 3


def with_test_photos(mislabelled, folder):
    """The same photos to learn from and to watch, and nine to judge on, all in their own folders."""
    shutil.copytree(mislabelled, folder)
    for c, name in enumerate(("red", "green", "blue")):
        for i in range(3):
            draw(folder / "test" / name / f"{i}.jpg", COLOURS[name], 7000 + 10 * c + i)
    return folder


def test_a_given_test_split_is_judged_and_val_is_watched(mislabelled, toy, tmp_path):
    photos = with_test_photos(mislabelled, tmp_path / "photos")
    one_epoch = {"mode": "full", "epochs": 1, "report": False, **GENTLE, **toy}
    run = train_run(photos, tmp_path / "run", configure(**one_epoch), Progress(quiet=True))
    assert (run.summary["accuracy"]["split"], run.summary["accuracy"]["n"]) == ("test", 9)
    assert run.summary["accuracy"]["value"] == 1.0
    assert run.summary["history"][-1]["val_accuracy"] == pytest.approx(12 / 18)
    assert regraft.evaluate(run.bundle, photos).accuracy.to_json() == run.summary["accuracy"]


def test_auto_stops_at_frozen_when_nothing_is_left_to_gain(photos, toy, tmp_path):
    said = Recorder()
    run = train_run(photos, tmp_path / "run", configure(**toy), said)
    expected = "frozen: it has none of 24 cross-validated photos wrong, too few to show that any model is better"
    assert run.summary["decision"] == expected
    assert run.summary["mode"] == run.bundle.manifest["provenance"]["mode"] == "frozen"
    assert visible(run.out) == ["bundle", "photos.jsonl", "quarantine.csv", "report.html", "result.json"]
    assert not [line for line in said.lines if "usable now" in line or "epoch" in line]


def test_auto_stops_at_frozen_when_there_is_no_time(doubtful, toy, tmp_path):
    run = train_run(doubtful, tmp_path / "run", configure(time_s=3, **toy), Progress(quiet=True))
    assert run.summary["decision"] == "frozen: there was no time left to fine-tune"
    assert visible(run.out) == ["bundle", "photos.jsonl", "quarantine.csv", "report.html", "result.json"]


def test_auto_announces_and_saves_the_frozen_model_before_it_goes_on_and_a_tie_leaves_it(doubtful, toy, tmp_path):
    seen = []

    def look(line):
        if line.startswith("usable now: "):
            bundle = regraft.load(tmp_path / "run")
            mode = json.loads((tmp_path / "run" / "result.json").read_text())["mode"]
            label = bundle.predict(doubtful / "train" / "red" / "red_0.jpg").label
            seen.append((mode, label, len(said.epochs), sha256_file(bundle.folder / "model.onnx")))

    said = Recorder(look)
    run = train_run(doubtful, tmp_path / "run", configure(**STORIES["auto"], **toy), said)
    mode, label, epochs_before, model = seen[0]
    assert (mode, label, epochs_before) == ("frozen", "red", 0)
    assert len(said.epochs) == 2
    assert sha256_file(run.bundle.folder / "model.onnx") == model
    assert regraft.load(run.out).manifest["provenance"]["mode"] == "frozen"
    assert run.summary["decision"] == (
        f"frozen: of {FOLD} set-aside photos full alone is right on 0, frozen alone on 0 (p = 1); "
        "without a clear gain the simpler one stays"
    )


LEARN = {
    "epochs": 5,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "head_learning_rate": 3e-3,
    "head_start": "random",
    "batchnorm": "eval",
    "augment": "crop",
    "min_crop": 0.9,
    "label_smoothing": 0.0,
}


@pytest.fixture
def only_right_answers_tell(monkeypatch):
    """No losses tell models apart."""
    monkeypatch.setattr(HeldOutPredictions, "clearly_less_loss", lambda *_: None)


def test_auto_takes_the_tuned_model_where_its_loss_is_clearly_less(tmp_path, photos):
    """Five photos that choose are too few to tell by right answers."""
    blind = save_toy(tmp_path / "blind", dead=True)
    run = train_run(
        photos, tmp_path / "run", configure(**LEARN, **blind, search=False, report=False), Progress(quiet=True)
    )
    pattern = (
        r"full: of 5 set-aside photos full alone is right on \d, frozen alone on 0 \(p = \S+\); "
        r"its log loss is clearly less, 0\.\d+ instead of 1\.\d+\. .*"
    )
    assert re.fullmatch(pattern, run.summary["decision"])
    assert run.summary["mode"] == "full"


def rounding_of_loss(bundle, photos):
    """How far a mean log loss may move by the order of photos: a logit by rounding, a loss by twice its logits."""
    (weight, _), paths = bundle.head, sorted(path for path in photos.rglob("*") if path.is_file())
    features = bundle.engine(np.stack([bundle.to_input(path) for path in paths]))["features"]
    largest = float((abs(features) @ abs(weight).T).max())
    return 2 * rounding(weight.shape[1], largest) / bundle.manifest["temperature"]


@pytest.mark.usefixtures("only_right_answers_tell")
def test_auto_takes_the_tuned_model_where_it_is_clearly_better(tmp_path, monkeypatch):
    """Also where it was stopped in one of the folds: those before it are not trained again."""
    monkeypatch.setattr(loop, "KEEPING_SHARE", 0.0)  # a checkpoint after every epoch, however long it takes
    photos = draw_folder(tmp_path / "photos" / "train", ("red", "green", "blue"), 8).parent
    draw_folder(photos / "val", ("red", "green", "blue"), 6, seed=5000)
    linear_probe = []

    def look(line):
        if line.startswith("usable now: "):
            linear_probe.append(json.loads((tmp_path / "run" / "result.json").read_text())["accuracy"]["value"])

    def stop(line):
        if line.startswith("epoch  3/") and "fold 3 of 5" in stopped.lines:
            raise KeyboardInterrupt

    config = configure(search=False, report=False, **LEARN, **save_toy(tmp_path / "blind", dead=True))
    stopped, said = Recorder(stop), Recorder(look)
    with pytest.raises(KeyboardInterrupt):
        train_run(photos, tmp_path / "run", config, stopped)
    run = train_run(photos, tmp_path / "run", config, said)
    third, fourth = (said.lines.index(f"fold {number} of 5") for number in (3, 4))
    assert [line for line in said.lines[third:fourth] if line.startswith("continued: epoch ")]
    assert len(said.epochs) == 3 + 3 * LEARN["epochs"], "the rest of a fold, two folds, and all photos"
    assert linear_probe[0] < 0.5
    assert run.summary["accuracy"]["value"] > 0.8
    pattern = r"full: of 24 cross-validated photos full alone is right on \d+, frozen alone on \d \(p = \S+\)\. "
    end = "then it learned from all 24 photos, those that chose too"
    assert re.fullmatch(pattern + end, run.summary["decision"])
    provenance = regraft.load(run.out).manifest["provenance"]
    assert run.summary["mode"] == provenance["mode"] == "full"
    chosen_on = provenance["chosen_on"]
    assert (provenance["refit"], chosen_on["photos"], chosen_on["n"]) == (24, "set-aside", 5)
    again = regraft.evaluate(run.bundle, photos / "val")
    assert again.accuracy.value == run.summary["accuracy"]["value"]
    assert run.evaluation.log_loss == run.bundle.manifest["metrics"]["log_loss"], "of what is there"
    assert again.log_loss == pytest.approx(run.evaluation.log_loss, abs=rounding_of_loss(run.bundle, photos / "val"))
    assert run.summary["history"] == read_lines(run.out / "history.jsonl")
    assert len(run.summary["history"]) == 5
    assert not any((run.out / name).exists() for name in SCRATCH)


def ladder(photos, tmp_path, **toy):
    """What auto says and does when nothing of the recipe is fixed."""
    said = Recorder()
    config = configure(search=False, report=False, **save_toy(tmp_path / "toy", **toy))
    return train_run(photos, tmp_path / "run", config, said), said


def drawn_splits(root, **counts):
    """Three colours in each split, so many photos of each."""
    for number, (name, count) in enumerate(counts.items()):
        draw_folder(root / name, ("red", "green", "blue"), count, seed=5000 * number)
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("only_right_answers_tell")
def test_auto_trains_the_last_stages_first_and_keeps_them_where_all_layers_are_no_better(tmp_path, monkeypatch):
    monkeypatch.setattr(
        fine_tune, "decide", lambda *known, **_: decide(*known)
    )  # a numb stage wakes at a high rate only
    run, said = ladder(drawn_splits(tmp_path / "photos", train=30, val=6), tmp_path, numb=True)
    assert run.summary["accuracy"]["value"] > 0.6
    pattern = r"last stages: of \d+ \S+ photos last stages alone is right on \d+, frozen alone on \d \(p = \S+\)\. "
    end = r"last stages: of \d+ \S+ photos full alone is right on \d, .*; without a clear gain the simpler one stays\. "
    end += "then it learned from all 90 photos, those that chose too"
    assert re.fullmatch(pattern + end, run.summary["decision"])
    recipe = run.bundle.manifest["provenance"]["recipe"]
    assert recipe["unfreeze"] >= 1
    assert recipe["views"] == 6
    assert len([line for line in said.lines if line.startswith("usable now: ")]) == 3


@pytest.mark.slow
@long_form
def test_auto_trains_all_layers_where_the_last_stages_see_nothing(tmp_path):
    """Photos of val choose, so that nothing has to be cross-validated."""
    run, _ = ladder(drawn_splits(tmp_path / "photos", train=8, val=12, test=6), tmp_path, dead=True)
    of_stages, of_all = run.summary["decision"].split("full: ")
    assert re.match(r"frozen: of \d+ \S+ photos last stages alone is right on ", of_stages)
    assert re.match(r"of \d+ \S+ photos full alone is right on ", of_all)
    assert run.summary["accuracy"]["value"] > 0.6
    assert (run.bundle.manifest["provenance"]["recipe"]["views"], run.summary["mode"]) == (0, "full")
    assert not (run.out / "stages").exists()


@pytest.mark.slow
@long_form
@pytest.mark.usefixtures("only_right_answers_tell")
def test_auto_cross_validates_where_a_few_photos_leave_it_open(photos, tmp_path):
    """Five photos that choose: four right more are not enough, those of all folds are."""
    said = Recorder()
    blind = save_toy(tmp_path / "blind", dead=True)
    run = train_run(photos, tmp_path / "run", configure(**LEARN, **blind), said)
    assert [line for line in said.lines if line.endswith("undecided, so both are cross-validated")]
    assert "fold 5 of 5" in said.lines
    assert re.match(r"full: of 24 cross-validated photos full alone is right on \d+, ", run.summary["decision"])
    assert re.search(r"\. (then it learned from|trained again on) all ", run.summary["decision"])
    assert run.summary["mode"] == "full"
    assert visible(run.out) == [
        "bundle",
        "history.jsonl",
        "photos.jsonl",
        "quarantine.csv",
        "report.html",
        "result.json",
    ]


@pytest.mark.slow
def test_auto_needs_no_torch_when_it_stops_at_frozen(run, regraft_main, photos, toy, tmp_path):
    start = ["train", photos, "--backbone", toy["backbone"], "--weights", toy["weights"], "--json"]
    assert regraft_main(*start, "--mode", "frozen", "--out", tmp_path / "first").returncode == 0  # traces the backbone
    done = run(*start, "--out", tmp_path / "run", forbid="torch")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["decision"].startswith("frozen: it has none of 24")
    refused = run(*start, "--mode", "full", "--epochs", 1, "--out", tmp_path / "full", forbid="torch")
    assert refused.returncode == 1
    assert "pip install 'regraft[train]'" in refused.stderr


def test_an_interrupted_auto_keeps_the_frozen_model_and_the_same_command_goes_on(doubtful, toy, tmp_path):
    def stop(line):
        if line.startswith("epoch  2/"):
            raise KeyboardInterrupt

    config = configure(**STORIES["auto"], **toy)
    heard = Heard()
    with pytest.raises(KeyboardInterrupt):
        train_run(doubtful, tmp_path / "run", config, Recorder(stop), [heard])
    assert len(heard.rows) == 2
    assert heard.finished == [{}]
    assert regraft.load(tmp_path / "run").manifest["provenance"]["mode"] == "frozen"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["mode"], result["accuracy"]["n"]) == ("frozen", 18)
    assert (tmp_path / "run" / "checkpoints").is_dir()
    said, heard = Recorder(), Heard()
    run = train_run(doubtful, tmp_path / "run", config, said, [heard])
    assert heard.rows == read_lines(run.out / "history.jsonl")
    assert "continued: epoch 2, step 1" in said.lines
    assert len(said.epochs) == 1
    assert run.summary["decision"].startswith(f"frozen: of {FOLD} set-aside photos")
    assert len(read_lines(run.out / "history.jsonl")) == 2
    assert not (run.out / "checkpoints").exists()


def test_a_loss_that_is_not_finite_leaves_the_frozen_model(doubtful, toy, tmp_path):
    wild = {"optimizer": "sgd", "learning_rate": 100.0, "head_learning_rate": 100.0, "clip": 0.0}
    config = configure(epochs=3, search=False, report=False, **wild, **toy)
    with pytest.raises(TrainError, match=r"The loss is (nan|inf) .*Lower --learning-rate"):
        train_run(doubtful, tmp_path / "run", config, Progress(quiet=True))
    assert regraft.load(tmp_path / "run").manifest["provenance"]["mode"] == "frozen"


LAYOUTS = ("", "val", "test", "val test")


def laid_out(root, layout):
    """Photos without a split, or split by their owner."""
    if not layout:
        return draw_folder(root, ("a", "b"), 10)
    for c, name in enumerate(["train", *layout.split()]):
        draw_folder(root / name, ("a", "b"), 10 if name == "train" else 4, seed=100 * c)
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_photos_that_choose_an_epoch_are_never_those_that_judge(tmp_path, layout):
    splits = split(list_photos(laid_out(tmp_path / "photos", layout)))
    evaluated = set(splits.eval_photos.hashes)
    train, chosen = _learned_and_watched(splits, Recipe(keep="best"), TrainConfig())
    assert chosen.hashes
    assert not evaluated & {*chosen.hashes, *train.hashes}
    assert not set(chosen.hashes) & set(train.hashes)
    set_apart = splits.train.hashes if layout != "val test" else (*splits.train.hashes, *splits.val.hashes)
    assert sorted((*train.hashes, *chosen.hashes)) == sorted(set_apart)
    train, watched = _learned_and_watched(splits, Recipe(keep="last"), TrainConfig())
    assert train is splits.train
    assert set(watched.hashes) == (set(splits.val.hashes) or evaluated)


CHOOSING = {  # modes and what they choose by: penalty, features, epoch, model
    "frozen, searched": {"mode": "frozen", "search": True},
    "full, best epoch": {"mode": "full", "keep": "best", "epochs": 1},
    "auto": {"search": False, "epochs": 1, "keep": "best"},
}


@pytest.fixture
def audited(monkeypatch):
    """Contents of the photos that anything was decided by, and of those that judged."""
    decided, evaluated = set(), set()

    def note(place, name, of):
        whole = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, **named: of(*given) or whole(*given, **named))

    note(search, "cached_head", lambda features, *_: decided.update(features.hashes))
    note(linear_probe, "solve", lambda features, *_: decided.update(features.hashes))
    note(finetune, "finetune", lambda network, job, recipe, *_: decided.update(choosing_of(job, recipe)))
    note(fine_tune, "answers_of", lambda model, photos, context: decided.update(photos.hashes))
    note(phases, "trial_answers", lambda one, selection, start: decided.update(selection.photos.hashes))
    note(run_module, "evaluate_dataset", lambda bundle, dataset, name: evaluated.update(dataset.hashes))
    return decided, evaluated


def choosing_of(job, recipe):
    """What a training learns from, and what chooses its epoch or its weights."""
    return {*job.train.hashes, *(job.val.hashes if recipe.keep == "best" or job.val_chooses else ())}


AUDITED = [("auto", ""), ("auto", "val test"), ("full, best epoch", "val"), ("frozen, searched", "test")]
AUDITS = mostly_long(itertools.product(CHOOSING, LAYOUTS), *AUDITED)


@pytest.mark.parametrize(("mode", "layout"), AUDITS)
def test_no_photo_decides_anything_and_judges(tmp_path, toy, audited, mode, layout):
    photos = laid_out(tmp_path / "photos", layout)
    learned = photos / "train" if layout else photos
    for i in range(3):  # so that there is room for other models
        for own, other in (("a", "b"), ("b", "a")):
            (learned / own / f"{own}_{i}.jpg").rename(learned / other / f"wrong_{i}.jpg")
    said = Recorder()
    train_run(photos, tmp_path / "run", configure(report=False, **CHOOSING[mode], **toy), said)
    decided, evaluated = audited
    assert decided
    assert evaluated
    assert not decided & evaluated
    assert bool(said.epochs) == (mode != "frozen, searched")


@pytest.mark.slow
@long_form
def test_labels_of_the_photos_that_judge_turn_no_decision(doubtful, toy, tmp_path):
    """Turned round, they change the accuracy that is reported and nothing else."""
    turned, runs = {"red": "green", "green": "blue", "blue": "red"}, []
    for name in ("right", "wrong"):
        shutil.copytree(doubtful / "train", tmp_path / name / "train")
        for label in turned:
            place = turned[label] if name == "wrong" else label
            shutil.copytree(doubtful / "val" / label, tmp_path / name / "val" / place)
        config = configure(search=False, epochs=1, report=False, **toy)
        runs.append(train_run(tmp_path / name, tmp_path / f"run {name}", config, Progress(quiet=True)))
    right, wrong = runs
    assert right.summary["accuracy"]["value"] > wrong.summary["accuracy"]["value"]
    assert right.summary["decision"] == wrong.summary["decision"]
    assert "set-aside photos" in right.summary["decision"]
    models = [sha256_file(run.bundle.folder / "model.onnx") for run in runs]
    assert models[0] == models[1]


GROWING = {"epochs": 4, "batch_size": 4, "learning_rate": 0.05, "head_learning_rate": 0.05, "warmup": 1.0, "clip": 0.0}


@pytest.mark.parametrize("layout", mostly_long(["", "val test"], ""))
def test_the_best_epoch_is_delivered_by_photos_that_do_not_judge(tmp_path, toy, monkeypatch, layout):
    jobs, whole = [], finetune.finetune
    monkeypatch.setattr(
        finetune, "finetune", lambda network, job, *rest: jobs.append(job) or whole(network, job, *rest)
    )
    photos = laid_out(tmp_path / "photos", layout)
    config = configure(mode="full", keep="best", report=False, **GROWING, **GENTLE, **toy)
    run = train_run(photos, tmp_path / "run", config, Progress(quiet=True))
    trackers = {row["sha256"]: row["split"] for row in read_lines(run.out / "photos.jsonl")}
    judged = run.summary["accuracy"]["split"]
    (job,) = jobs
    assert {trackers[content] for content in job.train.hashes} == {"train"}
    assert {trackers[content] for content in job.val.hashes} == {"val" if layout else "train"}
    assert run.summary["accuracy"]["n"] == sum(name == judged for name in trackers.values())
    losses = [row["val_loss"] for row in run.summary["history"]]
    assert run.bundle.manifest["provenance"]["epoch"] == 1 + losses.index(min(losses)) < len(losses)
    p = np.array([list(run.bundle.predict(job.val.root / path).probabilities.values()) for path in job.val.paths])
    delivered = -np.log(p[np.arange(len(p)), job.val.labels]).mean()
    assert abs(delivered - min(losses)) < 0.25 * (losses[-1] - min(losses)), "the best epoch, not the last"


def test_keep_best_without_a_photo_to_set_apart_says_so(tmp_path, toy):
    photos = draw_folder(tmp_path / "photos", ("a", "b"), 2)
    config = configure(mode="full", keep="best", epochs=1, **toy)
    with pytest.raises(ConfigError, match="--keep best needs a class with two photos"):
        train_run(photos, tmp_path / "run", config, Progress(quiet=True))


MODES = {
    "frozen": {"mode": "frozen"},
    "full": {"mode": "full", "epochs": 1, "report": False},
    "scratch": {"mode": "scratch", "epochs": 1, "weights": "random", "report": False},
    "tutorial": {"mode": "full", "recipe": "tutorial", "epochs": 1, "report": False},
    "auto": {"epochs": 1, "report": False},
}


@pytest.mark.parametrize("mode", mostly_long(MODES, "frozen", "tutorial", "auto"))
def test_files_that_are_no_photos_and_a_class_of_one_are_no_obstacle(tmp_path, toy, mode):
    photos = draw_folder(tmp_path / "photos", ("a", "b"), 5)
    draw(photos / "single" / "only.jpg", COLOURS["blue"], 77)
    (photos / "a" / "cut.jpg").write_bytes((photos / "a" / "a_0.jpg").read_bytes()[:500])
    (photos / "a" / "empty.png").touch()
    (photos / "b" / "page.jpg").write_text("<html>not found</html>")
    said = Recorder()
    run = train_run(photos, tmp_path / "run", configure(**toy | MODES[mode]), said)
    assert run.summary["images"] == {"found": 14, "used": 11, "quarantined": 3}
    rows = read_lines(run.out / "photos.jsonl")
    reasons = {row["path"]: row["quarantined"] for row in rows if "quarantined" in row}
    assert list(reasons) == ["a/cut.jpg", "a/empty.png", "b/page.jpg"]
    assert [f"  left out: {path}: {reason}" in said.lines for path, reason in reasons.items()] == [True] * 3
    splits = {row["path"]: row["split"] for row in rows if "split" in row}
    assert splits["single/only.jpg"] == "train"
    assert [list(splits.values()).count(name) for name in ("train", "val")] == [9, 2]
    assert run.bundle.classes == ("a", "b", "single")
    expected = split(list_photos(photos).without({2: "", 3: ""})).val
    assert run.summary["accuracy"]["n"] == len(expected)


def test_a_training_begins_from_a_bundle(mislabelled, toy, tmp_path):
    first = regraft.train(mislabelled, tmp_path / "first", quiet=True, report=False, **STORIES["full"], **toy)
    others = draw_folder(tmp_path / "others", ("x", "y"), 4)
    start = start_of(tmp_path / "first")
    assert start == {"backbone": "timm/test_resnet", "weights": str(first.folder / "model.safetensors")}
    second = regraft.train(others, tmp_path / "second", quiet=True, report=False, mode="frozen", **start)
    one, two = (load_file(bundle.folder / "model.safetensors") for bundle in (first, second))
    assert all(torch.equal(value, two[key]) for key, value in one.items() if not key.startswith("fc."))
    assert not torch.equal(one["conv1.0.weight"], load_file(toy["weights"])["conv1.0.weight"])
    assert second.preprocessing == first.preprocessing
    assert second.classes == ("x", "y")
    with pytest.raises(BundleError, match="There is no bundle at"):
        start_of(tmp_path)


def test_a_run_without_epochs_leaves_no_history_of_the_run_before(photos, toy, tmp_path):
    regraft.train(photos, tmp_path / "run", quiet=True, mode="full", epochs=1, report=False, **toy)
    assert (tmp_path / "run" / "history.jsonl").exists()
    regraft.train(photos, tmp_path / "run", quiet=True, mode="frozen", **toy)
    assert visible(tmp_path / "run") == ["bundle", "photos.jsonl", "quarantine.csv", "report.html", "result.json"]


@pytest.mark.parametrize("mode", ["frozen", "full", "scratch", "auto"])
def test_settings_that_cannot_be_are_refused_in_every_mode_before_anything_begins(photos, tmp_path, mode):
    for wrong, trackers in (
        ({"epochs": 0}, "--epochs 0 is out of range"),
        ({"patience": 2}, "--patience needs --keep best"),
    ):
        with pytest.raises(ConfigError, match=trackers):
            regraft.train(photos, tmp_path / "run", quiet=True, mode=mode, **wrong)
    assert not (tmp_path / "run").exists()


def test_weights_that_scratch_would_not_use_are_refused(photos, toy, tmp_path):
    with pytest.raises(ConfigError, match="--weights and --from have no use in it"):
        regraft.train(photos, tmp_path / "run", quiet=True, mode="scratch", **toy)


def test_settings_of_steps_that_frozen_does_not_take_are_said_to_be_without_effect(photos, toy, tmp_path, capsys):
    regraft.train(photos, tmp_path / "run", mode="frozen", report=False, epochs=3, weight_decay=0.1, **toy)
    assert "without effect: --epochs, --weight-decay;" in capsys.readouterr().err


def test_features_that_differ_by_rounding_alone_teach_nothing():
    rng = np.random.default_rng(0)
    x = (0.3 * (1 + rng.integers(-1, 2, (24, 40)) * 2.0**-23)).astype(np.float32)
    y = np.arange(24) % 3
    features = Features(x, y, tuple(map(str, range(24))))
    head = solve(features, 3, fold_ids(y, features.hashes))
    assert np.abs(head.weight).max() < 1e3
    assert np.abs(head.logits(x) - head.logits(x[:1])).max() < 1e-2
