"""Processes of torchrun: one, two or in turns, the weights are the same up to rounding. (Row R7.)"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from faults.nursery import SHORT, record, story

pytestmark = pytest.mark.slow
CLOSE = 1e-5
FLAGS = ("--batch-size", 5, "--microbatch-size", 3)  # 12 photos: batches of 5, 5 and 2, none divisible by two


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return story(tmp_path_factory.mktemp("whole"), *SHORT, *FLAGS)


def torchrun(whole, out, *flags, size=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += ["-m", "regraft", *map(str, whole.command), "--out", str(out), *map(str, flags)]
    env = {**os.environ, "REGRAFT_CACHE": str(whole.cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def finished(process):
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return json.loads(stdout)


def largest_difference(one, other) -> float:
    a, b = (load_file(out / "bundle" / "model.safetensors") for out in (one, other))
    assert a.keys() == b.keys()
    weights = [name for name in a if not name.endswith("num_batches_tracked")]
    return max(float(np.abs(a[name] - b[name]).max()) for name in weights)


def assert_same_history(one, other):
    assert len(one) == len(other) == 5
    for a, b in zip(one, other, strict=True):
        assert (a["train_accuracy"], a["val_accuracy"]) == (b["train_accuracy"], b["val_accuracy"])
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-5)
        assert a["val_loss"] == pytest.approx(b["val_loss"], abs=1e-5)


@pytest.mark.parametrize("batchnorm", ["train", "eval"])
def test_two_processes_end_with_the_weights_of_one(whole, tmp_path, record_property, batchnorm):
    flags = ("--batchnorm", batchnorm)
    alone = whole.start(tmp_path / "one", *flags).wait().summary
    both = finished(torchrun(whole, tmp_path / "two", *flags))
    difference = largest_difference(tmp_path / "one", tmp_path / "two")
    assert difference <= CLOSE
    assert_same_history(alone["history"], both["history"])
    assert both["accuracy"] == alone["accuracy"]
    record(record_property, f"R7-{batchnorm}", processes=2, largest_difference=difference)


def test_a_run_goes_on_with_another_number_of_processes(whole, tmp_path, record_property):
    """Two processes, stopped by SIGTERM to torchrun; then one to the end."""
    flags = ("--epochs", "5")
    process = torchrun(whole, tmp_path / "run", *flags)
    history = tmp_path / "run" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not history.exists() or not history.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    alone = whole.start(tmp_path / "run", *flags).wait()
    assert "continued: epoch" in alone.stderr
    assert len(alone.summary["history"]) == 5
    undisturbed = whole.start(tmp_path / "one", *flags).wait()
    difference = largest_difference(tmp_path / "one", tmp_path / "run")
    assert difference <= CLOSE
    assert_same_history(undisturbed.summary["history"], alone.summary["history"])
    record(record_property, "R7-2-1", largest_difference=difference)
