"""SIGTERM and Ctrl-C: in every phase a run stops within seconds and can be continued. (Rows R5 and R8.)"""

import random
import shutil
import signal
import time

import pytest

from faults.nursery import TRIALS, Trip, record, story

pytestmark = pytest.mark.slow
GRACE_S = 6.0  # one step, or five seconds
PHASES = {
    "trace": "regraft.backbones.trace.export",
    "hash photos": "regraft.data.scan.read_bytes",
    "solve": "regraft.training.solve",
    "decode": "regraft.learn.finetune.decode_to_learn",
    "first step": "regraft.learn.loop.gradients",
    "judge": "regraft.learn.loop.judge",
    "trace the tuned network": "regraft.training.from_network",
    "judge the bundle": "regraft.run.evaluate_dataset",
    "publish": "regraft.run.write_model",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return story(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_any_phase_the_same_command_goes_on(whole, tmp_path, record_property, signum):
    for name, at in PHASES.items():
        cache = tmp_path / "cache" if name == "trace" else None
        trip = Trip(at, 1, signum)
        ended = whole.start(tmp_path / "run", interval=0.0, trips=(trip,), cache=cache).wait()
        assert ended.code == 128 + signum, (name, ended.stderr)
        assert ended.stderr.splitlines()[-1] == "interrupted: the same command goes on from here", name
        assert "Traceback" not in ended.stderr, name
        whole.check(tmp_path / "run", whole.start(tmp_path / "run", cache=cache).wait())
        shutil.rmtree(tmp_path / "run")
    record(record_property, f"R5-phases-{signum.name}", trials=len(PHASES), identical=len(PHASES))


def test_stopped_at_any_time_it_stops_soon_and_goes_on(whole, tmp_path, record_property):
    rng, stopped, slowest = random.Random(5), 0, 0.0
    for _ in range(TRIALS // 2):
        child = whole.start(tmp_path / "run")
        time.sleep(rng.uniform(0.05, 0.95 * whole.seconds))
        child.kill(signal.SIGTERM)
        asked = time.monotonic()
        ended = child.wait()
        slowest = max(slowest, time.monotonic() - asked)
        assert ended.code in (143, 0), ended.stderr  # 0: it had just ended
        stopped += ended.code == 143
        whole.check(tmp_path / "run", whole.start(tmp_path / "run").wait())
        shutil.rmtree(tmp_path / "run")
    assert slowest < GRACE_S
    assert stopped >= TRIALS // 4
    record(record_property, "R5", trials=TRIALS // 2, stopped=stopped, identical=TRIALS // 2, slowest_s=slowest)


def test_work_since_the_last_checkpoint_is_not_lost_when_it_is_asked_to_stop(whole, tmp_path):
    trip = Trip("regraft.learn.loop.gradients", 8, signal.SIGTERM)
    assert whole.start(tmp_path / "run", trips=(trip,)).wait().code == 143
    again = whole.start(tmp_path / "run").wait()
    assert "continued: epoch 3, step 3" in again.stderr  # seven steps of three an epoch, and the eighth was finished
    whole.check(tmp_path / "run", again)


def test_a_second_signal_ends_it_at_once(whole, tmp_path):
    child = whole.start(tmp_path / "run", trips=(Trip("regraft.learn.loop.gradients", 2, signal.SIGTERM, pause=30.0),))
    child.wait_for("recipe:")
    time.sleep(0.5)  # into the pause
    asked = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.wait().code == 143
    assert time.monotonic() - asked < 2.0
    whole.check(tmp_path / "run", whole.start(tmp_path / "run").wait())


def test_changed_flags_are_told_and_nothing_is_lost(whole, tmp_path):
    trip = Trip("regraft.learn.loop.gradients", 5, signal.SIGTERM)
    assert whole.start(tmp_path / "run", trips=(trip,)).wait().code == 143
    for flags, word in (
        (("--seed", 1), "seed 0 (now 1)"),
        (("--batch-size", 6), "batch_size 4 (now 6)"),
        (("--learning-rate", 0.5), "now 0.5"),
        (("--mode", "scratch"), "mode full (now scratch)"),
    ):
        ended = whole.start(tmp_path / "run", *flags).wait()
        assert ended.code == 1
        assert word in ended.stderr.splitlines()[-1]
        assert "--restart" in ended.stderr.splitlines()[-1]
    whole.check(tmp_path / "run", whole.start(tmp_path / "run").wait())


def test_forced_settings_are_applied_and_restart_begins_anew(whole, tmp_path):
    trip = Trip("regraft.learn.loop.gradients", 5, signal.SIGTERM)
    assert whole.start(tmp_path / "run", trips=(trip,)).wait().code == 143
    longer = whole.start(tmp_path / "run", "--epochs", 7, "--force").wait()
    assert "changed on resume: epochs 7, was 5" in longer.stderr
    assert [row["epoch"] for row in longer.summary["history"]] == [1, 2, 3, 4, 5, 6, 7]
    assert whole.start(tmp_path / "run", trips=(trip,)).wait().code == 143
    fresh = whole.start(tmp_path / "run", "--epochs", 2, "--restart").wait()
    assert "continued" not in fresh.stderr
    assert len(fresh.summary["history"]) == 2
