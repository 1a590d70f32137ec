"""Killed at any moment and started again, a training ends with the same model. (Row R1 of the fault tests.)"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from regraft.ground.files import sha256_file

TRIALS = int(os.environ.get("REGRAFT_TRIALS", "20"))


def start(photos, out, cache):
    command = [sys.executable, "-m", "regraft", "train", str(photos), "--out", str(out), "--json", "--quiet"]
    env = {**os.environ, "REGRAFT_CACHE": str(cache)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def finish(photos, out, cache):
    began = time.monotonic()
    stdout, stderr = (process := start(photos, out, cache)).communicate()
    assert process.returncode == 0, stderr
    return json.loads(stdout), time.monotonic() - began


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_model_when_run_again(photos, tmp_path, record_property):
    cold, traced = tmp_path / "cold", tmp_path / "traced"
    result, cold_s = finish(photos, tmp_path / "reference", cold)
    expected = sha256_file(tmp_path / "reference" / "bundle" / "model.safetensors")
    shutil.copytree(cold / "graphs", traced / "graphs")
    _, traced_s = finish(photos, tmp_path / "reference2", shutil.copytree(traced, tmp_path / "probe"))
    rng, killed = random.Random(0), 0
    for trial in range(TRIALS):
        out, cache = tmp_path / f"run{trial}", tmp_path / f"cache{trial}"
        if trial % 2:
            shutil.copytree(traced, cache)
        process = start(photos, out, cache)
        time.sleep(rng.uniform(0.1, 0.9 * (traced_s if trial % 2 else cold_s)))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        again, _ = finish(photos, out, cache)
        assert sha256_file(out / "bundle" / "model.safetensors") == expected
        assert again["accuracy"] == result["accuracy"]
        assert not list(out.glob(".partial-*"))
        shutil.rmtree(cache)
    record_property("killed", killed)
    assert killed >= TRIALS // 2
