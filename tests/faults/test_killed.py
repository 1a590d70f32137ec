"""Killed at any moment and started again, a training ends with the same model. (Rows R1, R4, R9 and F7.)"""

import os
import random
import shutil
import signal
import time

import pytest

from faults.processes import IS_LONG, TRIALS, Trip, long_form, record, shared_story, story, weights_of
from regraft.core.progress import QUIET
from regraft.training.checkpoint import latest_checkpoint

pytestmark = pytest.mark.slow
INTERVALS = (0.0, 0.1, 30.0)  # of checkpoints: after each step, within epochs, at the ends of epochs alone


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return shared_story(tmp_path_factory.getbasetemp())


def rows_to_keep(out) -> int:
    """Epochs that an unfinished run has told of."""
    history = out / "history.jsonl"
    unfinished = history.exists() and not (out / "result.json").exists()
    return len(history.read_text().splitlines()) if unfinished else 0


def ends_as_if_nothing_had_been(whole, out, **options) -> None:
    rows = rows_to_keep(out)
    ended = whole.start(out, **options).wait()
    whole.check(out, ended)
    assert not rows or f"epoch {rows}/5" not in ended.stderr.replace("  ", " "), "an epoch was done again"
    shutil.rmtree(out)


@pytest.mark.parametrize(("mode", "share", "short"), [("full", 0.6, 1), ("frozen", 0.4, 1)], ids=["full", "frozen"])
def test_killed_at_any_time_it_ends_with_the_same_model(whole, tmp_path, record_property, mode, share, short):
    rng, kills, trials = random.Random(1), [], round(share * TRIALS) if IS_LONG else short
    whole = whole if mode == "full" else story(tmp_path / "frozen", "--mode", "frozen")
    for trial in range(trials):
        options = {"cache": tmp_path / f"cache{trial}", "interval": INTERVALS[trial % 3]}
        if trial % 2:
            shutil.copytree(whole.cache, options["cache"])
        for _ in range(1 + trial % 2):
            child = whole.start(tmp_path / "run", **options)
            time.sleep(rng.uniform(0.0, 0.95 * whole.seconds))
            kills.append(child.is_alive())
            child.kill(group=True)
            child.wait()
        ends_as_if_nothing_had_been(whole, tmp_path / "run", **options)
        shutil.rmtree(options["cache"])
    assert sum(kills) >= trials // 2
    record(record_property, f"R1-{mode}", trials=trials, killed=sum(kills), identical=trials)


IN_TURN = (  # calls counted from where the run before was killed
    ("os.replace", 1),
    ("os.fsync", 6),
    ("regraft.training.loop.gradients", 2),
    ("os.replace", 7),
    ("regraft.training.loop.gradients", 3),
    ("shutil.rmtree", 2),
    ("os.fsync", 12),
)


def test_killed_again_and_again_it_ends_with_the_same_model(whole, tmp_path, record_property):
    """Also while it resumes."""
    for number, (at, call) in enumerate(IN_TURN):
        ended = whole.start(tmp_path / "run", interval=0.0, trips=(Trip(at, call, signal.SIGKILL),)).wait()
        assert ended.code == 137, (number, ended.stderr)
    ends_as_if_nothing_had_been(whole, tmp_path / "run")
    record(record_property, "R1-in-turn", trials=1, killed=len(IN_TURN), identical=1)


@long_form
def test_killed_at_any_step_it_ends_with_the_same_model(whole, tmp_path, record_property):
    steps = range(1, 16)
    for step in steps:
        trip = Trip("regraft.training.loop.gradients", step, signal.SIGKILL)
        ended = whole.start(tmp_path / "run", interval=INTERVALS[step % 3], trips=(trip,)).wait()
        assert ended.code == 137, ended.stderr
        ends_as_if_nothing_had_been(whole, tmp_path / "run")
    record(record_property, "R1-steps", trials=len(steps), killed=len(steps), identical=len(steps))


@long_form
@pytest.mark.parametrize(("at", "calls"), [("os.fsync", 90), ("os.replace", 90), ("shutil.rmtree", 30)])
def test_killed_while_it_writes_it_ends_with_the_same_model(whole, tmp_path, record_property, at, calls):
    killed = 0
    for call in range(1, calls):
        ended = whole.start(tmp_path / "run", interval=0.0, trips=(Trip(at, call, signal.SIGKILL),)).wait()
        if ended.code == 0:
            break  # it does not write so often
        assert ended.code == 137, ended.stderr
        ends_as_if_nothing_had_been(whole, tmp_path / "run")
        killed += 1
    assert killed >= 2
    record(record_property, f"R1-{at}", trials=killed, killed=killed, identical=killed)


@long_form
def test_killed_twice_while_it_resumes_it_ends_with_the_same_model(whole, tmp_path, record_property):
    rng, trials = random.Random(4), 30
    for _ in range(trials):
        trip = Trip("regraft.training.loop.gradients", rng.randint(2, 9), signal.SIGKILL)
        assert whole.start(tmp_path / "run", interval=0.0, trips=(trip,)).wait().code == 137
        for _ in range(2):
            child = whole.start(tmp_path / "run", interval=0.0)
            time.sleep(rng.uniform(0.0, 0.5 * whole.seconds))
            child.kill(group=True)
            child.wait()
        ends_as_if_nothing_had_been(whole, tmp_path / "run")
    record(record_property, "R4", trials=trials, identical=trials)


@long_form
def test_auto_killed_at_any_step_decides_the_same(tmp_path, record_property):
    """Also while it cross-validates: every fold has checkpoints of its own."""
    learn = ("--epochs", 10, "--batch-size", 12, "--learning-rate", 1e-2, "--head-learning-rate", 1e-2)
    learn += ("--head-start", "random", "--batchnorm", "eval", "--clip", 0, "--augment", "crop", "--min-crop", 0.9)
    learn += ("--no-search", "--no-report")
    whole = story(tmp_path, "--mode", "auto", *learn, dead=True)
    assert "cross-validated" in whole.figures[2]
    num_steps = 10 + 5 * 10  # of the split, and of five folds: all photos at once, ten times
    trials = TRIALS // 5
    steps = [2 + (num_steps - 2) * trial // (trials - 1) for trial in range(trials)]
    done = []
    for step in steps:
        trip = Trip("regraft.training.loop.gradients", step, signal.SIGKILL)
        killed = whole.start(tmp_path / "run", interval=0.0, trips=(trip,)).wait()
        assert killed.code == 137, killed.stderr
        again = whole.start(tmp_path / "run", interval=0.0).wait()
        whole.check(tmp_path / "run", again)
        done.append("fold 5" in killed.stderr)
        shutil.rmtree(tmp_path / "run")
    assert set(done) == {True, False}
    record(record_property, "R1-auto", trials=len(steps), killed=len(steps), identical=len(steps))


def test_fresh_runs_end_with_the_same_model_in_every_kind_of_process(whole, run, tmp_path, record_property):
    outs = [tmp_path / name for name in ("cold", "traced", "program")]
    whole.check(outs[0], whole.start(outs[0], cache=tmp_path / "cache").wait())
    if IS_LONG:  # else the program itself is stopped and continued in test_stopped
        whole.check(outs[1], whole.start(outs[1]).wait())
        done = run(*whole.command, "--out", outs[2], REGRAFT_CACHE=str(whole.cache), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        assert weights_of(outs[2]) == whole.weights
    record(record_property, "R9", runs=4 if IS_LONG else 2, identical=4 if IS_LONG else 2)


def test_a_worker_that_is_killed_is_named_and_the_run_goes_on_from_its_checkpoint(whole, tmp_path, record_property):
    numbers = (0, 1) if IS_LONG else (1,)
    for number in numbers:
        child = whole.start(tmp_path / "run", "--workers", 2, interval=0.0)
        child.wait_for("epoch  1/5")
        child.wait_until(lambda child=child: len(child.children()) == 2)
        os.kill(child.children()[number], signal.SIGKILL)
        ended = child.wait()
        assert ended.code == 1
        said = ended.stderr.splitlines()[-1]
        assert said.startswith("error: A process that changes photos was killed")
        assert "--workers 0" in said
        assert "Traceback" not in ended.stderr
        ends_as_if_nothing_had_been(whole, tmp_path / "run")
    record(record_property, "F7-worker", trials=len(numbers), named=len(numbers), identical=len(numbers))


def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_last_good_checkpoint(whole, tmp_path, record_property):
    """The head grows 9,900-fold a step, until a step whose loss is finite leaves weights that are not."""
    grow = ("--optimizer", "sgd", "--schedule", "constant", "--warmup", "0", "--unfreeze", "-1", "--learning-rate", "0")
    for _ in range(2):  # the same command comes to the same end
        options = (*grow, "--head-learning-rate", "100", "--weight-decay", "99")
        ended = whole.start(tmp_path / "run", *options, interval=0.0).wait()
        assert ended.code == 1, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("error: The loss is nan at step ")
        assert "--learning-rate" in last
        assert "Traceback" not in ended.stderr
        good = latest_checkpoint(tmp_path / "run" / "checkpoints", QUIET)
        assert all(bool(tensor.isfinite().all()) for tensor in good.tensors.values())
    options = (*grow, "--head-learning-rate", "0.01", "--weight-decay", "0", "--restart")
    gentle = whole.start(tmp_path / "run", *options).wait()
    assert all(row["val_loss"] < 10 for row in gentle.summary["history"])
    record(record_property, "F7-nan", trials=2, named=2, recovered=1)
