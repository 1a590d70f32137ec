from dataclasses import fields, replace

import pytest

from regraft.core.errors import TrainError
from regraft.core.progress import Progress
from regraft.training.recipe import Recipe, tutorial
from regraft.training.resume import APPLIED, REFUSED, CheckpointInfo, continued

IDENTITY = {"photos": "a" * 64, "backbone": "net", "mode": "full", "recipe": "regraft", "seed": "0"}
ASKED = Recipe(keep="best", unfreeze=2, batchnorm="eval")
OTHER = {
    "epochs": 99,
    "batch_size": 99,
    "val_batch_size": 99,
    "microbatch_size": 99,
    "optimizer": "sgd",
    "learning_rate": 0.99,
    "head_learning_rate": 0.99,
    "layer_decay": 0.99,
    "momentum": 0.99,
    "weight_decay": 0.99,
    "schedule": "constant",
    "warmup": 0.99,
    "clip": 0.99,
    "head_start": "random",
    "batchnorm": "train",
    "unfreeze": 1,
    "views": 9,
    "small_epochs": 9,
    "min_crop": 0.99,
    "flip": False,
    "augment": "trivial",
    "mix": "mixup",
    "label_smoothing": 0.99,
    "class_weights": True,
    "ema": 0.99,
    "interpolation": 0.99,
    "keep": "last",
    "patience": 9,
    "compile": True,
}


def resume(asked, *, identity=IDENTITY, force=False, before=None):
    before = before or CheckpointInfo(IDENTITY, ASKED, replace(ASKED, epochs=3))
    return continued(before, identity, asked, force, Progress(quiet=False))


def test_every_setting_has_another_value_here():
    assert set(OTHER) == {field.name for field in fields(Recipe)}
    assert all(getattr(ASKED, name) != value for name, value in OTHER.items())


def test_the_same_command_goes_on_with_the_recipe_that_was_fitted_to_its_time(capsys):
    assert resume(ASKED) == replace(ASKED, epochs=3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", sorted(APPLIED))
def test_what_changes_no_result_is_applied_and_said(name, capsys):
    recipe = resume(replace(ASKED, **{name: OTHER[name]}))
    assert recipe == replace(ASKED, epochs=3, **{name: OTHER[name]})
    assert f"changed on resume: {name} {OTHER[name]}" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("force", [False, True])
def test_what_decides_the_shape_of_the_state_is_refused(name, force):
    with pytest.raises(TrainError, match=rf"{name} .* \(now {OTHER[name]}\).*--restart"):
        resume(replace(ASKED, **{name: OTHER[name]}), force=force)


@pytest.mark.parametrize("name", sorted(set(OTHER) - APPLIED - REFUSED))
def test_what_changes_the_result_needs_force(name, capsys):
    asked = replace(ASKED, **{name: OTHER[name]})
    with pytest.raises(TrainError, match=rf"{name} .* \(now {OTHER[name]}\).*--force"):
        resume(asked)
    assert getattr(resume(asked, force=True), name) == OTHER[name]
    assert f"changed on resume: {name} {OTHER[name]}, was {getattr(ASKED, name)}" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(IDENTITY))
@pytest.mark.parametrize("force", [False, True])
def test_other_photos_network_mode_or_seed_are_refused(name, force):
    with pytest.raises(TrainError, match=rf"{name} .*cannot be continued so"):
        resume(ASKED, identity={**IDENTITY, name: "other"}, force=force)


def test_all_that_has_changed_is_listed():
    with pytest.raises(TrainError, match=r"seed 0 \(now 1\), optimizer adamw \(now sgd\)"):
        resume(replace(ASKED, optimizer="sgd"), identity={**IDENTITY, "seed": "1"})


def test_what_is_said_of_a_run_survives_the_disk():
    about = CheckpointInfo(IDENTITY, ASKED, tutorial("full"))
    assert CheckpointInfo.from_json(about.to_json()) == about
