"""Killed at any moment and started again, a training ends with the same model. (Rows R1, R4, R9 and F7.)"""

import json
import os
import random
import shutil
import signal
import time

import pytest

from faults.nursery import (
    INTERVAL,
    IS_LONG,
    SHORT,
    TOY,
    TRIALS,
    Trip,
    draw_few,
    leftovers,
    measured,
    nursery,
    record,
    weights_of,
)

pytestmark = pytest.mark.slow
INTERVALS = (0.0, 0.2, 30.0)  # of checkpoints: after each step, within epochs, at the ends of epochs alone


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return draw_few(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    """A run that nothing disturbs, from an empty cache. (photos, cache, hash of its model, its figures, seconds)"""
    folder = tmp_path_factory.mktemp("whole")
    ended = nursery().run("train", few, *SHORT, "--out", folder / "run", REGRAFT_CACHE=str(folder / "cache"))
    return few, folder / "cache", weights_of(folder / "run"), measured(ended.summary), ended.seconds


def rows_to_keep(out) -> int:
    """Epochs that an unfinished run has told of."""
    history = out / "history.jsonl"
    unfinished = history.exists() and not (out / "result.json").exists()
    return len(history.read_text().splitlines()) if unfinished else 0


def ends_as_if_it_had_not_been(out, whole, again) -> None:
    """again: starts the command once more."""
    rows = rows_to_keep(out)
    ended = again()
    assert measured(ended.summary) == whole[3]
    assert weights_of(out) == whole[2]
    assert leftovers(out) == []
    assert not (out / "checkpoints").exists()
    assert not rows or f"epoch {rows}/3" not in ended.stderr.replace("  ", " "), "an epoch was done again"


def test_killed_at_any_time_it_ends_with_the_same_model(whole, tmp_path, record_property):
    photos, traced, _, _, seconds = whole
    rng, kills = random.Random(1), []
    for trial in range(TRIALS):
        out, cache = tmp_path / f"run{trial}", tmp_path / f"cache{trial}"
        if trial % 2:
            shutil.copytree(traced, cache)
        change = {INTERVAL: INTERVALS[trial % 3]}

        def start(out=out, change=change, cache=cache):
            return nursery().start("train", photos, *SHORT, "--out", out, change=change, REGRAFT_CACHE=str(cache))

        for _ in range(1 + trial % 2):
            child = start()
            time.sleep(rng.uniform(0.0, 0.95 * seconds))
            kills.append(child.is_alive())
            child.kill(group=True)
            child.wait()
        ends_as_if_it_had_not_been(out, whole, lambda start=start: start().wait())
        shutil.rmtree(out)
        shutil.rmtree(cache)
    assert sum(kills) >= TRIALS
    record(record_property, "R1", trials=TRIALS, killed=sum(kills), identical=TRIALS)


def test_killed_while_it_writes_it_ends_with_the_same_model(whole, tmp_path, record_property):
    photos, cache, *_ = whole
    number = 0
    for at, calls in (("os.fsync", 60), ("os.replace", 60), ("shutil.rmtree", 20)):
        for call in range(1, calls, 1 if IS_LONG else calls // 3):
            out, number = tmp_path / f"run{number}", number + 1

            def run(*trips, out=out):
                common = {"change": {INTERVAL: 0.0}, "REGRAFT_CACHE": str(cache)}
                return nursery().run("train", photos, *SHORT, "--out", out, trips=trips, **common)

            ended = run(Trip(at, call, signal.SIGKILL))
            if ended.code == 0:
                break  # it does not write so often
            assert ended.code == 137, ended.stderr
            ends_as_if_it_had_not_been(out, whole, run)
            shutil.rmtree(out)
    assert number >= 8
    record(record_property, "R1-writing", trials=number, killed=number, identical=number)


def test_killed_twice_while_it_resumes_it_ends_with_the_same_model(whole, tmp_path, record_property):
    photos, cache, _, _, seconds = whole
    rng, trials = random.Random(4), 30 if IS_LONG else 2
    for trial in range(trials):
        out = tmp_path / f"run{trial}"

        def start(*trips, out=out):
            common = {"change": {INTERVAL: 0.0}, "REGRAFT_CACHE": str(cache)}
            return nursery().start("train", photos, *SHORT, "--out", out, trips=trips, **common)

        assert start(Trip("regraft.learn.loop.gradients", rng.randint(2, 5), signal.SIGKILL)).wait().code == 137
        for _ in range(2):
            child = start()
            time.sleep(rng.uniform(0.0, 0.5 * seconds))
            child.kill(group=True)
            child.wait()
        ends_as_if_it_had_not_been(out, whole, lambda start=start: start().wait())
        shutil.rmtree(out)
    record(record_property, "R4", trials=trials, identical=trials)


def test_auto_killed_at_any_time_decides_the_same(tmp_path, record_property):
    """Also while it cross-validates: every fold has checkpoints of its own."""
    photos = draw_few(tmp_path)
    for number, folder in enumerate(sorted(photos.iterdir())):  # a third of the photos in the wrong place
        for path in sorted(folder.iterdir())[:2]:
            path.rename(sorted(photos.iterdir())[(number + 1) % 3] / f"moved_{path.name}")
    command = ("train", photos, "--mode", "auto", *TOY[2:], "--epochs", "2", "--json")

    def start(out, *trips):
        return nursery().start(*command, "--out", out, change={INTERVAL: 0.0}, trips=trips)

    expected = start(tmp_path / "whole").wait()
    figures, weights = measured(expected.summary), weights_of(tmp_path / "whole")
    assert "fold 5 of 5" in expected.stderr
    num_steps = expected.stderr.count("epoch ") + 1
    trials = max(4, TRIALS // 5)
    rng, done = random.Random(5), []
    for trial in range(trials):
        out = tmp_path / f"run{trial}"
        call = 1 + (num_steps - 1) * trial // trials + rng.randint(0, 1)
        killed = start(out, Trip("regraft.learn.loop.gradients", call, signal.SIGKILL)).wait()
        assert killed.code == 137, killed.stderr
        again = start(out).wait()
        assert measured(again.summary) == figures
        assert weights_of(out) == weights
        assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))
        done.append("fold" in killed.stderr)
    assert set(done) == {True, False}
    record(record_property, "R1-auto", trials=trials, killed=trials, identical=trials)


def test_fresh_runs_end_with_the_same_model_in_every_kind_of_process(whole, run, tmp_path, record_property):
    photos, cache, expected, _, _ = whole
    outs = [tmp_path / name for name in ("cold", "traced", "program")]
    nursery().run("train", photos, *SHORT, "--out", outs[0], REGRAFT_CACHE=str(tmp_path / "cache"))
    nursery().run("train", photos, *SHORT, "--out", outs[1], REGRAFT_CACHE=str(cache))
    done = run("train", photos, *SHORT, "--out", outs[2], REGRAFT_CACHE=str(cache), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert [weights_of(out) for out in outs] == [expected] * 3
    record(record_property, "R9", runs=4, identical=4)


def workers_of(pid: int) -> list[int]:
    return [int(child) for child in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def test_a_worker_that_is_killed_is_named_and_the_run_goes_on_from_its_checkpoint(whole, tmp_path, record_property):
    photos, cache, *_ = whole
    for trial in range(2):
        out = tmp_path / f"run{trial}"

        def start(*options, out=out):
            common = {"change": {INTERVAL: 0.0}, "REGRAFT_CACHE": str(cache)}
            return nursery().start("train", photos, *SHORT, *options, "--out", out, **common)

        child = start("--workers", 2)
        child.wait_for("epoch  1/3")
        child.wait_until(lambda child=child: len(workers_of(child.pid)) == 2)
        os.kill(workers_of(child.pid)[trial], signal.SIGKILL)
        ended = child.wait()
        assert ended.code == 1
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("error: A process that changes photos was killed")
        assert "--workers 0" in last
        assert "Traceback" not in ended.stderr
        ends_as_if_it_had_not_been(out, whole, lambda start=start: start().wait())
    record(record_property, "F7-worker", trials=2, named=2, identical=2)


def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_last_good_checkpoint(whole, tmp_path, record_property):
    photos, cache, *_ = whole

    def run(*options):
        flags = (*SHORT, "--batchnorm", "eval", "--optimizer", "sgd", "--warmup", "0", *options)
        common = {"change": {INTERVAL: 0.0}, "REGRAFT_CACHE": str(cache)}
        return nursery().run("train", photos, *flags, "--out", tmp_path / "run", **common)

    high = ("--learning-rate", "100", "--head-learning-rate", "100")
    for _ in range(2):  # the same command comes to the same end, not to a worse one
        ended = run(*high)
        assert ended.code == 1, ended.stderr
        assert ended.stderr.splitlines()[-1].startswith("error: The loss is nan at step ")
        assert "--learning-rate" in ended.stderr.splitlines()[-1]
    states = [json.loads(path.read_text()) for path in (tmp_path / "run" / "checkpoints").glob("*/state.json")]
    assert states
    gentle = run("--force")
    assert gentle.code == 0, gentle.stderr
    assert "continued: epoch 1, step" in gentle.stderr
    losses = [row["val_loss"] for row in gentle.summary["history"]]
    assert all(0 < loss < 100 for loss in losses), losses
    record(record_property, "F7-nan", trials=2, named=2, recovered=1)
