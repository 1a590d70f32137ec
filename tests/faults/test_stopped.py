"""SIGTERM and Ctrl-C at any time: the right exit code, soon, and the same command goes on. (Row R5.)

Soon is counted: what a stopped program still does after the signal is at most the step that it was in.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from faults.processes import IS_LONG, LONG, TRIALS, Trip, long_form, mostly_long, record, shared_story

pytestmark = pytest.mark.slow
IN_HAND = 4  # photos that threads have just begun with when a signal comes
NOTE = "interrupted: the same command goes on from here"
BOTH = (signal.SIGTERM, signal.SIGINT)
CACHED = ("trace the backbone", "extract features", "keep features", "solve the head")  # so they need an empty cache
PHASES = {
    "scan": ("regraft.commands.train.list_photos", 1),
    "trace the backbone": ("regraft.backbones.onnx_export.export", 1),
    "extract features": ("regraft.backbones.features._decoded", 4),
    "keep features": ("regraft.data.feature_cache.write_atomic", 1),
    "solve the head": ("regraft.models.standardised.fit_logistic", 3),
    "decode": ("regraft.training.batches._large_enough", 6),
    "first step": ("regraft.training.loop.gradients", 1),
    "seventh step": ("regraft.training.loop.gradients", 7),
    "last step": ("regraft.training.loop.gradients", 15),
    "evaluate an epoch": ("regraft.training.loop.validate", 2),
    "evaluate the last epoch": ("regraft.training.loop.validate", 5),
    "write a checkpoint": ("regraft.training.checkpoint.output_folder", 4),
    "trace what was trained": ("regraft.pipeline.fine_tune.from_network", 1),
    "write the bundle": ("regraft.run.write_model", 1),
    "evaluate the bundle": ("regraft.run.evaluate_dataset", 1),
    "seal the bundle": ("regraft.run.seal", 2),
    "list the photos": ("regraft.run_dir.write_output", 1),
    "forget checkpoints": ("regraft.pipeline.phases.remove_unfinished", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return shared_story(tmp_path_factory.getbasetemp())


def was_stopped(ended, signum: int) -> None:
    assert ended.code == 128 + signum, ended.stderr
    assert ended.stderr.splitlines()[-1] == NOTE
    assert "Traceback" not in ended.stderr


IN_TURN = {  # calls counted from where the run before was stopped
    **{phase: PHASES[phase] for phase in ("scan", "extract features", "first step")},
    "evaluate an epoch": ("regraft.training.loop.validate", 1),
    **{phase: PHASES[phase] for phase in ("trace what was trained", "evaluate the bundle", "seal the bundle")},
}


def test_stopped_in_one_phase_after_the_other_it_goes_on_to_the_same_model(whole, tmp_path, record_property):
    """Each time the same command goes on, up to where it is stopped next."""
    for number, (phase, (at, call)) in enumerate(IN_TURN.items()):
        trips, signum = (Trip(at, call, BOTH[number % 2]),), BOTH[number % 2]
        ended = whole.start(tmp_path / "run", interval=0.0, trips=trips, cache=tmp_path / "cache").wait()
        assert ended.code != 0, phase
        was_stopped(ended, signum)
    whole.check(tmp_path / "run", whole.start(tmp_path / "run", cache=tmp_path / "cache").wait())
    record(record_property, "R5-in-turn", trials=len(IN_TURN), stopped=len(IN_TURN), identical=1)


@long_form
def test_stopped_in_any_phase_it_goes_on_to_the_same_model(whole, tmp_path, record_property):
    for number, (phase, (at, call)) in enumerate(PHASES.items()):
        cache, signum = tmp_path / "cache", BOTH[number % 2]
        if phase not in CACHED:
            cache = whole.cache
        ended = whole.start(tmp_path / "run", interval=0.0, trips=(Trip(at, call, signum),), cache=cache).wait()
        assert ended.code != 0, phase
        was_stopped(ended, signum)
        whole.check(tmp_path / "run", whole.start(tmp_path / "run", cache=cache).wait())
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    record(record_property, "R5-phases", trials=len(PHASES), stopped=len(PHASES), identical=len(PHASES))


def test_stopped_at_any_time_it_ends_soon_and_goes_on_to_the_same_model(whole, tmp_path, record_property):
    rng, trials, stopped, most = random.Random(6), TRIALS // 2 if IS_LONG else 1, 0, Counter()
    for trial in range(4 * trials):
        if stopped == trials:
            break
        signum, cache = BOTH[trial % 2], tmp_path / "cache"
        child = whole.start(tmp_path / "run", cache=cache)
        child.wait_until(child.has_begun)
        time.sleep(rng.uniform(0.0, 0.8 * whole.seconds))
        child.kill(signum)
        ended = child.wait()
        if ended.code != 0:  # it had not just ended
            most |= child.after_signal()
            was_stopped(ended, signum)
            stopped += 1
        whole.check(tmp_path / "run", whole.start(tmp_path / "run", cache=cache).wait())
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(cache)
    assert stopped == trials, "most had just ended"
    assert most["gradients"] <= 1, "a step that had just been begun"
    assert most["validate"] <= 1
    assert most["_decoded"] + most["_large_enough"] <= IN_HAND
    figures = {"trials": trials, "stopped": stopped, "identical": stopped, "after_signal": dict(most)}
    record(record_property, "R5", **figures)


@long_form
def test_a_checkpoint_is_written_after_the_step_that_the_signal_came_in(whole, tmp_path):
    ended = whole.start(tmp_path / "run", trips=(Trip("regraft.training.loop.gradients", 8, signal.SIGTERM),)).wait()
    assert "stopped (interrupted) in epoch 3, after step 2" in ended.stderr
    again = whole.start(tmp_path / "run").wait()
    assert "continued: epoch 3, step 3" in again.stderr
    whole.check(tmp_path / "run", again)


WHERE = (
    "regraft.training.loop.gradients",  # where the first signal is held back
    "regraft.training.train_state.save_checkpoint",
    "regraft.training.batches._large_enough",  # where it raised, and a thread has to end
)
SECONDS = ((WHERE[0], BOTH[0]), (WHERE[1], BOTH[1]), (WHERE[2], BOTH[0]))
ALONE = [pytest.param((case,), marks=LONG) for case in itertools.product(WHERE, BOTH)]


@pytest.mark.parametrize("cases", [pytest.param(SECONDS, id="in turn"), *ALONE])
def test_a_second_signal_ends_it_at_once(whole, tmp_path, cases):
    for at, second in cases:
        child = whole.start(tmp_path / "run", interval=0.0, trips=(Trip(at, 4, pause=60.0),))
        child.wait_until(child.is_paused)
        child.kill(signal.SIGTERM)
        time.sleep(0.2)
        assert child.is_alive()
        child.kill(second)
        assert child.wait(timeout=30).code == 128 + second  # the pause is twice as long
    whole.check(tmp_path / "run", whole.start(tmp_path / "run").wait())


@pytest.mark.parametrize("signum", mostly_long(BOTH, signal.SIGINT))
def test_a_signal_to_the_whole_group_lets_workers_finish_their_step(whole, tmp_path, signum):
    """As a terminal sends Ctrl-C, and systemd SIGTERM."""
    child = whole.start(tmp_path / "run", "--workers", 2)
    child.wait_for("epoch  1/5")
    child.wait_until(lambda: len(child.children()) == 2)
    time.sleep(0.05)
    child.kill(signum, group=True)
    was_stopped(child.wait(), signum)
    whole.check(tmp_path / "run", whole.start(tmp_path / "run", "--workers", 2).wait())


def test_a_long_feature_pass_ends_soon_wherever_it_is(whole, tmp_path):
    """Photos still to come are not decoded first."""
    slow = tuple(Trip("regraft.backbones.features._decoded", call, pause=0.5) for call in range(2, 16))
    for at, call in (("data.feature_cache._Shard.add", 1), ("backbones.features._decoded", 3)):
        trips = (*slow, Trip(f"regraft.{at}", call, signal.SIGTERM))
        child = whole.start(tmp_path / "run", trips=trips, cache=tmp_path / "cache")
        child.wait_until(child.is_paused)
        was_stopped(child.wait(), signal.SIGTERM)
        assert child.after_signal()["_decoded"] <= IN_HAND
        shutil.rmtree(tmp_path / "cache")


def test_the_program_itself_exits_so(whole, tmp_path):
    """The command line in an interpreter of its own, with all that taking it down costs."""
    command = [sys.executable, "-m", "regraft", *map(str, whole.command), "--out", str(tmp_path / "run")]
    env = {**os.environ, "REGRAFT_CACHE": str(whole.cache), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("epoch  1/5"):
            break
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143, stderr
    assert stderr.splitlines()[-1] == NOTE
    whole.check(tmp_path / "run", whole.start(tmp_path / "run").wait())
