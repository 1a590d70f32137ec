"""Trackers, each by what its own library reads back. What is not installed is skipped by name."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from regraft.core import trackers
from regraft.core.errors import ConfigError, MissingExtra
from regraft.core.progress import QUIET
from regraft.core.trackers import TRACKERS, create_trackers

ROWS = [{"epoch": epoch, "val_loss": 1 / epoch, "val_accuracy": 1 - 0.5**epoch, "seconds": 1.5} for epoch in (1, 2)]
CONFIG = {"mode": "full", "offline": True, "settings": {"epochs": 2}, "weights": None}
SUMMARY = {
    "accuracy": {"value": 0.75, "low": 0.6, "high": 0.9, "n": 20, "split": "val"},
    "cross_validated": {"value": 0.8},
    "seconds": {"total": 12.5},
}
LAST_STAGES = [{n if n == "epoch" else f"last_stages/{n}": value for n, value in row.items()} for row in ROWS]
FIGURES = {
    "accuracy": 0.75,
    "accuracy_low": 0.6,
    "accuracy_high": 0.9,
    "cross_validated_accuracy": 0.8,
    "total_seconds": 12.5,
}
TELL = """
import json, sys
from pathlib import Path
from regraft.core.progress import QUIET
from regraft.core.trackers import create_trackers
name, out, rows, config, summary, times = sys.argv[1], Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
for _ in range(times):
    with create_trackers([name], [], QUIET) as listening:
        listening.start(out, config)
        for part in ("last_stages", ""):
            for row in rows:
                listening.row(row, part)
        listening.summary = summary
        assert listening.trackers, "it failed"
"""


def tell(name, out, times=1, **environment):
    """A whole training's messages, in a process of its own: these libraries leave threads and files open.

    times: that it begins anew.
    """
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", TELL, name, out, *map(json.dumps, (ROWS, CONFIG, SUMMARY, times))]
    env = {**os.environ, "HOME": str(out), **environment}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, cwd=out, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # stdout is data


def in_process(code, *arguments, **environment):
    """What a library says of what it has stored, as JSON."""
    env = {**os.environ, **environment}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout)


TENSORBOARD = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}))
"""


def test_tensorboard_shows_each_curve_once_also_of_a_training_that_went_on(tmp_path):
    pytest.importorskip("tensorboard")
    tell("tensorboard", tmp_path / "run", times=2)
    read = in_process(TENSORBOARD, tmp_path / "run/tensorboard")
    for name in ("val_loss", "val_accuracy", "seconds"):
        points = [[row["epoch"], pytest.approx(row[name])] for row in ROWS]
        assert read.pop(name) == read.pop(f"last_stages/{name}") == points
    assert read == {f"result/{name}": [[0, pytest.approx(value)]] for name, value in FIGURES.items()}


MLFLOW = """
import json
from mlflow import MlflowClient
client = MlflowClient()
run, = client.search_runs([client.get_experiment_by_name("regraft").experiment_id])
losses = [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, "val_loss")]
print(json.dumps([run.info.status, run.info.run_name, run.data.params, run.data.metrics, losses]))
"""


def test_mlflow_has_a_run_with_parameters_curves_and_figures(tmp_path):
    pytest.importorskip("mlflow")
    env = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    tell("mlflow", tmp_path / "run", **env)
    status, name, params, metrics, losses = in_process(MLFLOW, **env)
    assert (status, name) == ("FINISHED", str(tmp_path / "run"))
    assert params == {key: str(value) for key, value in CONFIG.items()}
    assert losses == [[row["epoch"], row["val_loss"]] for row in ROWS]
    assert FIGURES.items() <= metrics.items()


WANDB = """
import json, sys
from wandb.proto import wandb_internal_pb2 as records
data = open(sys.argv[1], "rb").read()
rows, summary, place, whole = [], {}, 7, b""
while place + 7 <= len(data):  # a log as LevelDB writes it: blocks of 32 KB, each record after its length and kind
    if (rest := 32768 - place % 32768) < 7:
        place += rest
        continue
    size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
    whole += data[place + 7 : (place := place + 7 + size)]
    if kind in (1, 4):
        record, whole = records.Record.FromString(whole), b""
        read = lambda items: {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
        rows += [read(record.history.item)] if record.history.item else []
        summary |= read(record.summary.update)
sys.__stdout__.write(json.dumps([rows, summary]))
"""


def test_weights_and_biases_keeps_an_offline_run_in_the_runs_folder(tmp_path):
    pytest.importorskip("wandb")
    tell("wandb", tmp_path / "run")
    (file,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    rows, summary = in_process(WANDB, file)
    assert [{name: row[name] for name in row if not name.startswith("_")} for row in rows] == [*LAST_STAGES, *ROWS]
    assert FIGURES.items() <= summary.items()


def test_trackio_stores_curves_and_figures_on_this_machine(tmp_path):
    pytest.importorskip("trackio")
    tell("trackio", tmp_path / "run", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio/regraft.db") as base:
        stored = [json.loads(text) for (text,) in base.execute("select metrics from metrics order by id")]
    assert stored[:4] == [*LAST_STAGES, *ROWS]
    assert stored[4] == {f"result/{name}": value for name, value in FIGURES.items()}


def test_what_cannot_be_told_is_said_before_anything_begins(monkeypatch):
    with pytest.raises(ConfigError, match=r"Unknown tracker 'tensorbord'.*Did you mean 'tensorboard'"):
        create_trackers(["tensorbord"], [], QUIET)
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    with pytest.raises(MissingExtra, match=r"'mlflow', which is not installed.*pip install 'regraft\[mlflow\]'"):
        create_trackers(["mlflow"], [], QUIET)


def test_a_library_is_imported_for_its_own_tracker_only(monkeypatch):
    asked = []
    monkeypatch.setattr(trackers, "import_module", asked.append)
    create_trackers([], [], QUIET)
    assert asked == []
    create_trackers(["wandb"], [], QUIET)
    assert asked == ["wandb"]


def test_the_command_line_knows_the_same_names():
    from regraft.cli import train

    (option,) = [one for one in train.params if one.name == "track"]
    assert list(option.type.choices) == list(TRACKERS)
