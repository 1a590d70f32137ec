"""Processes of torchrun: one, two or three, or in turns, the weights are the same up to rounding. (Row R7.)"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from faults.processes import IS_LONG, SHORT, Trip, free_port, long_form, mostly_long, record, story
from rounding import rounding

pytestmark = pytest.mark.slow
BATCH, NUM_STEPS = 5, 15
FLAGS = ("--batch-size", BATCH, "--microbatch-size", 3)  # 12 photos: batches of 5, 5 and 2, none to be divided evenly
# weights and losses are about 1, and each step adds up what a batch's photos say, shared out in another way
CLOSE = rounding(BATCH, num_sums=NUM_STEPS)  # 1.8e-5; a batch of all 12 photos comes in 5 steps, which is no more
STEP = "regraft.training.loop.gradients"
VARIANTS = {
    "BatchNorm in train": ("--batchnorm", "train", "--head-start", "zero"),
    "BatchNorm in eval": ("--batchnorm", "eval", "--head-start", "solved"),
    "sgd": ("--optimizer", "sgd", "--momentum", 0.9, "--learning-rate", 0.01, "--clip", 0.5),
    "average, best epoch": ("--ema", 0.9, "--keep", "best", "--class-weights"),
    "one photo more than a batch": ("--batch-size", 11),
    "all in one": ("--batch-size", 64, "--microbatch-size", 64),
    "views": ("--unfreeze", 1, "--views", 2),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return story(tmp_path_factory.mktemp("whole"), *SHORT, *FLAGS)


def end_together(whole, size, out, *flags, **options):
    """What the main process says; the others end as it does."""
    children = whole.start_together(size, out, *flags, **options)
    ended = [child.wait() for child in children]
    assert {one.code for one in ended} == {ended[0].code}, [one.stderr for one in ended]
    assert not any(one.stdout for one in ended[1:])
    return ended[0]


def difference(one, other) -> float:
    a, b = (load_file(out / "bundle" / "model.safetensors") for out in (one, other))
    assert a.keys() == b.keys()
    names = [name for name in a if not name.endswith("num_batches_tracked")]  # each process counts its own
    return max(float(np.abs(a[name] - b[name]).max()) for name in names)


def assert_same_figures(one, other) -> None:
    assert one["accuracy"] == other["accuracy"]
    assert len(one["history"]) == len(other["history"]) == 5
    for a, b in zip(one["history"], other["history"], strict=True):
        assert a["train_accuracy"] == b["train_accuracy"]
        assert a["val_accuracy"] == b["val_accuracy"]
        assert a["learning_rate"] == b["learning_rate"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=CLOSE)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=CLOSE)


@pytest.mark.parametrize("variant", mostly_long(VARIANTS, "BatchNorm in train"))
def test_two_and_three_processes_end_with_the_weights_of_one(whole, tmp_path, record_property, variant):
    flags, differences = VARIANTS[variant], {}
    sizes = (2, 3) if IS_LONG else (2,)
    alone = whole.start(tmp_path / "1", *flags).wait().summary
    for size in sizes:
        together = end_together(whole, size, tmp_path / str(size), *flags).summary
        assert_same_figures(alone, together)
        differences[size] = difference(tmp_path / "1", tmp_path / str(size))
    assert max(differences.values()) <= CLOSE
    record(record_property, f"R7-{variant.replace(' ', '-')}", processes=sizes, differences=differences)


@pytest.mark.parametrize(
    "sizes", mostly_long([((1, 2, 1),), ((2, 2),), ((2, 1),), ((1, 2),), ((2, 3, 2),)], ((1, 2, 1),))
)
def test_a_run_goes_on_with_another_number_of_processes(whole, tmp_path, record_property, sizes):
    """Killed in the midst of an epoch each time: also the epoch that several numbers had a part in is told right."""
    for size in sizes[:-1]:
        trips = (Trip(STEP, 5, signal.SIGKILL),)
        assert end_together(whole, size, tmp_path / "run", interval=0.0, trips=trips).code == 137
    last = end_together(whole, sizes[-1], tmp_path / "run")
    assert "continued: epoch" in last.stderr
    assert_same_figures(whole.summary, last.summary)
    found = difference(whole.out, tmp_path / "run")
    assert found <= CLOSE
    record(record_property, f"R7-{'-'.join(map(str, sizes))}", largest_difference=found)


def test_features_are_shared_out_and_are_those_of_one(whole, tmp_path):
    together = end_together(whole, 2, tmp_path / "run", cache=tmp_path / "cache")
    assert_same_figures(whole.summary, together.summary)
    shards = [len(list(store.iterdir())) for store in (tmp_path / "cache" / "features").iterdir()]
    assert max(shards) == 2


@pytest.mark.parametrize("mode", mostly_long(["frozen", "scratch", "auto"], "auto"))
def test_every_mode_ends_with_the_model_of_one(whole, tmp_path, mode):
    flags = ("--mode", mode, *(("--weights", "random") if mode == "scratch" else ()))
    alone = whole.start(tmp_path / "1", *flags).wait().summary
    together = end_together(whole, 2, tmp_path / "2", *flags).summary
    assert together["accuracy"] == alone["accuracy"]
    assert difference(tmp_path / "1", tmp_path / "2") <= (CLOSE if mode == "scratch" else 0.0)


def test_a_signal_to_all_stops_all_after_the_same_step(whole, tmp_path):
    children = whole.start_together(2, tmp_path / "run")
    children[0].wait_for("epoch  1/5")
    for child in children:
        child.kill(signal.SIGTERM)
    ended = [child.wait() for child in children]
    assert [one.code for one in ended] == [143, 143]
    assert "Traceback" not in ended[0].stderr + ended[1].stderr
    assert_same_figures(whole.summary, whole.start(tmp_path / "run").wait().summary)


@pytest.mark.parametrize("number", mostly_long([0, 1], 0))
def test_where_one_is_killed_the_others_end_and_say_so(whole, tmp_path, number):
    children = whole.start_together(2, tmp_path / "run")
    children[0].wait_for("epoch  1/5")
    children[number].kill()
    ended = [child.wait(timeout=30) for child in children]
    assert ended[number].code == 137
    other = ended[1 - number]
    assert other.code == 1
    assert other.stderr.splitlines()[-1].startswith("error: Another process of this training has ended")
    assert "Traceback" not in other.stderr
    assert_same_figures(whole.summary, whole.start(tmp_path / "run").wait().summary)


def test_a_folder_in_use_is_refused_by_all(whole, tmp_path):
    first = whole.start(tmp_path / "run", trips=(Trip(STEP, 2, pause=120.0),))
    first.wait_until(first.is_paused)
    main, other = [child.wait() for child in whole.start_together(2, tmp_path / "run")]
    assert (main.code, other.code) == (1, 1)
    assert f"in use by process {first.pid}" in main.stderr
    assert "Traceback" not in main.stderr + other.stderr
    first.kill()
    first.wait()


@long_form
def test_torchrun_stopped_by_sigterm_leaves_a_run_that_one_process_finishes(whole, tmp_path, record_property):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    command += ["-m", "regraft", *map(str, whole.command), "--out", str(tmp_path / "run")]
    env = {**os.environ, "REGRAFT_CACHE": str(whole.cache), "OMP_NUM_THREADS": "1"}
    said = tmp_path / "said"
    with said.open("w") as stream:
        torchrun = subprocess.Popen(command, stdout=stream, stderr=stream, env=env)
        deadline = time.monotonic() + 120
        while "epoch  1/5" not in said.read_text():
            assert time.monotonic() < deadline
            assert torchrun.poll() is None
            time.sleep(0.01)
        torchrun.send_signal(signal.SIGTERM)
        assert torchrun.wait(60) != 0
    assert "stopped (interrupted) in epoch" in said.read_text()
    alone = whole.start(tmp_path / "run").wait()
    assert "continued: epoch" in alone.stderr
    assert_same_figures(whole.summary, alone.summary)
    found = difference(whole.out, tmp_path / "run")
    assert found <= CLOSE
    record(record_property, "R7-torchrun", largest_difference=found)
