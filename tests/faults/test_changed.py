"""A run that is continued with other flags: applied and said, or refused with the cure. (Row R8.)"""

import shutil
import signal

import pytest

from conftest import draw
from faults.processes import Trip, mostly_long, record, shared_story, toy
from regraft.bundle.bundle import load

pytestmark = pytest.mark.slow
STOPPED = (Trip("regraft.training.loop.gradients", 5, signal.SIGTERM),)

NO_EFFECT = {
    "all of these": ("--workers", 1, "--time", "10m", "--offline", "--force"),
    "the same": (),
    "workers": ("--workers", 1),
    "time that suffices": ("--time", "10m"),
    "offline": ("--offline",),
    "force without a change": ("--force",),
}
APPLIED = {
    "val_batch_size": ("--val-batch-size", 2),
    "compile": ("--compile",),
}
NEED_FORCE = {
    "epochs": ("--epochs", 7),
    "microbatch_size": ("--microbatch-size", 2),
    "learning_rate": ("--learning-rate", 0.0123),
    "head_learning_rate": ("--head-learning-rate", 0.0123),
    "layer_decay": ("--layer-decay", 0.5),
    "momentum": ("--momentum", 0.5),
    "weight_decay": ("--weight-decay", 0.5),
    "schedule": ("--schedule", "constant"),
    "warmup": ("--warmup", 0.5),
    "clip": ("--clip", 0.5),
    "batchnorm": ("--batchnorm", "train"),
    "min_crop": ("--min-crop", 0.9),
    "flip": ("--no-flip",),
    "augment": ("--augment", "trivial"),
    "mix": ("--mix", "mixup"),
    "label_smoothing": ("--label-smoothing", 0.3),
    "class_weights": ("--class-weights",),
}
FORCED = ("epochs", "learning_rate", "layer_decay", "schedule", "batchnorm", "mix")
REFUSED = {
    "batch_size": ("--batch-size", 6),
    "optimizer": ("--optimizer", "sgd"),
    "head_start": ("--head-start", "zero"),
    "unfreeze": ("--unfreeze", 1),
    "views": ("--unfreeze", 1, "--views", 2),
    "ema": ("--ema", 0.5),
    "keep": ("--keep", "best"),
    "mode": ("--mode", "scratch", "--weights", "random"),
    "recipe": ("--recipe", "tutorial"),
    "seed": ("--seed", 1),
}


def all_of(options: dict[str, tuple[object, ...]], *but: str) -> tuple[object, ...]:
    """Options of several rows in one command."""
    return tuple(word for row, words in options.items() if row not in but for word in words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return shared_story(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def unfinished(whole, tmp_path_factory):
    """A run that was stopped in its second epoch."""
    out = tmp_path_factory.mktemp("unfinished") / "run"
    assert whole.start(out, trips=STOPPED).wait().code == 143
    return out


@pytest.fixture
def out(unfinished, tmp_path):
    return shutil.copytree(unfinished, tmp_path / "run")


def was_refused(ended, out, unfinished) -> str:
    """The message. Nothing is lost."""
    assert ended.code == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    for path in (unfinished / "checkpoints").rglob("*.*"):
        assert (out / path.relative_to(unfinished)).read_bytes() == path.read_bytes()
    return ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("row", mostly_long(NO_EFFECT, "all of these"))
def test_what_changes_no_result_changes_nothing(whole, out, row):
    ended = whole.start(out, *NO_EFFECT[row]).wait()
    whole.check(out, ended)
    assert "continued: epoch 2, step 3" in ended.stderr
    assert "changed on resume" not in ended.stderr


@pytest.mark.parametrize("row", mostly_long(APPLIED, "val_batch_size"))
def test_what_is_applied_is_said(whole, out, row):
    ended = whole.start(out, *APPLIED[row]).wait()
    whole.check(out, ended, same_batches=row != "val_batch_size")
    assert f"changed on resume: {row} " in ended.stderr


def test_all_that_make_another_recipe_are_listed(whole, out, unfinished):
    message = was_refused(whole.start(out, *all_of(NEED_FORCE)).wait(), out, unfinished)
    assert [row for row in NEED_FORCE if f" {row} " not in message] == []
    assert message.count("(now ") == len(NEED_FORCE)
    assert "--force" in message
    assert "--restart" in message


@pytest.mark.parametrize("row", mostly_long(NEED_FORCE, "mix"))
def test_what_makes_another_recipe_needs_force(whole, out, unfinished, row):
    message = was_refused(whole.start(out, *NEED_FORCE[row]).wait(), out, unfinished)
    assert f"{row} " in message
    assert "(now " in message
    assert "--force" in message
    assert "--restart" in message


@pytest.mark.parametrize("row", mostly_long(FORCED, "epochs", "learning_rate"))
def test_what_is_forced_is_applied_and_said(whole, out, row):
    ended = whole.start(out, *NEED_FORCE[row], "--force").wait()
    assert ended.code == 0, ended.stderr
    assert f"changed on resume: {row} " in ended.stderr
    assert "continued: epoch 2, step 3" in ended.stderr
    assert measured_rows(ended)[0] == whole.figures[3][0]  # the epoch before the change
    assert measured_rows(ended) != whole.figures[3]
    changed, before = load(out).manifest["provenance"]["recipe"][row], load(whole.out).manifest["provenance"]["recipe"]
    assert changed != before[row]


def measured_rows(ended):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in ended.summary["history"]]


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["plain", "forced"])
def test_all_that_do_not_fit_the_checkpoint_are_listed(whole, out, unfinished, force):
    message = was_refused(whole.start(out, *all_of(REFUSED), *force).wait(), out, unfinished)
    assert [row for row in REFUSED if f" {row} " not in message] == []
    assert message.count("(now ") >= len(REFUSED)
    assert "cannot be continued" in message
    assert "--restart" in message


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["plain", "forced"])
@pytest.mark.parametrize("row", mostly_long(REFUSED))
def test_what_does_not_fit_the_checkpoint_is_refused(whole, out, unfinished, row, force):
    message = was_refused(whole.start(out, *REFUSED[row], *force).wait(), out, unfinished)
    assert f"{row} " in message
    assert "(now " in message
    assert "cannot be continued" in message
    assert "--restart" in message


def test_other_photos_and_other_weights_are_refused(whole, out, unfinished, tmp_path):
    other = shutil.copytree(whole.photos, tmp_path / "photos")
    draw(other / "red" / "one_more.jpg", (200, 30, 30), 77)
    command = [other if argument == whole.photos else argument for argument in whole.command]
    message = was_refused(whole.start(out, command=tuple(command)).wait(), out, unfinished)
    assert "photos " in message
    weights = toy(tmp_path / "dead", dead=True)
    message = was_refused(whole.start(out, *weights).wait(), out, unfinished)
    assert "backbone " in message
    from_bundle = (*whole.command[:2], "--from", whole.out / "bundle", *whole.command[6:])
    message = was_refused(whole.start(out, command=from_bundle).wait(), out, unfinished)
    assert "backbone " in message


def test_photos_under_other_names_are_the_same_photos(whole, out, tmp_path):
    moved = shutil.copytree(whole.photos, tmp_path / "elsewhere")
    for number, path in enumerate(sorted(moved.glob("*/*.jpg"))):
        path.rename(path.with_name(f"photo{-number}.jpg"))
    command = [moved if argument == whole.photos else argument for argument in whole.command]
    ended = whole.start(out, command=tuple(command)).wait()
    assert ended.code == 0, ended.stderr
    assert "continued: epoch 2" in ended.stderr


def test_settings_that_were_forced_stay_until_they_are_changed_again(whole, out, unfinished):
    forced = ("--learning-rate", 0.0123, "--force")
    again = (Trip("regraft.training.loop.gradients", 2, signal.SIGTERM),)
    assert whole.start(out, *forced, trips=again).wait().code == 143
    back = whole.start(out).wait()
    assert back.code == 1
    assert "learning_rate 0.0123 (now " in back.stderr.splitlines()[-1]
    ended = whole.start(out, "--learning-rate", 0.0123).wait()
    assert ended.code == 0, ended.stderr
    assert "changed on resume" not in ended.stderr
    assert load(out).manifest["provenance"]["recipe"]["learning_rate"] == 0.0123


def test_fewer_epochs_than_were_done_deliver_what_is_there(whole, out):
    ended = whole.start(out, "--epochs", 1, "--force").wait()
    assert ended.code == 0, ended.stderr
    assert len(ended.summary["history"]) == 1


def test_restart_begins_anew_with_any_flags(whole, out, record_property):
    ended = whole.start(out, "--restart").wait()
    whole.check(out, ended)
    assert "continued" not in ended.stderr
    rows = sum(map(len, (NO_EFFECT, APPLIED, NEED_FORCE, FORCED, REFUSED, REFUSED))) + 8
    record(record_property, "R8", rows=rows, silent=0)


def test_restart_takes_what_would_be_refused(whole, out):
    ended = whole.start(out, "--restart", "--seed", 1, "--batch-size", 6).wait()
    assert ended.code == 0, ended.stderr
    assert "continued" not in ended.stderr
    assert len(ended.summary["history"]) == 5
