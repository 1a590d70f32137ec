"""Trackers: TensorBoard, MLflow, Weights & Biases, Trackio, or anything else with the same three methods.

history.jsonl is written in any case. A tracker's library is imported when the tracker is asked for, and not before.
Where a tracker fails, that is said once, and the training goes on without it.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from regraft.core.errors import ConfigError, MissingExtra, nearest
from regraft.core.ownership import write_output
from regraft.core.progress import Progress

PROJECT = "regraft"
SILENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}  # who asks for a tracker has not asked for its maker's statistics


class Tracker(Protocol):
    """What a training calls, in this order: start, row after each epoch, finish. Any of them may raise."""

    def start(self, out: Path, config: dict[str, Any]) -> None:
        """Begin: a training starts.

        Args:
            out: The training's folder.
            config: The fields of `TrainConfig`.
        """

    def row(self, row: dict[str, Any]) -> None:
        """Record an epoch that is over.

        Where a training is continued, its earlier epochs come first. Mode auto trains several times, and epochs begin
        anew each time: figures of the last stages are named `last_stages/...`, those of the chosen training done again
        on all photos `refit/...`.

        Args:
            row: The epoch's line of history.jsonl; losses in nats, accuracies 0..1, seconds, epochs from 1.
        """

    def finish(self, summary: dict[str, Any]) -> None:
        """End: the training is over.

        Args:
            summary: What result.json says; empty where the training did not come to its end.
        """


def write_history(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write history.jsonl: one JSON object an epoch.

    Raises:
        OutputError: It cannot be written, or something else is there, which stays.
    """
    write_output(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


@dataclass
class TrackerSet:
    """The trackers of one training, as one; a tracker that fails is called no more.

    Attributes:
        trackers: Those that have not failed.
        progress: Says when one fails.
        summary: What they are given at the end.
        started: Whether the training has begun; until then, none of them is called.
    """

    trackers: list[Tracker]
    progress: Progress
    summary: dict[str, Any]
    started: bool = False

    def start(self, out: Path, config: dict[str, Any]) -> None:
        """Tell the trackers that a training begins; without this, none of them is called.

        Args:
            out: The training's folder.
            config: The fields of `TrainConfig`.
        """
        self.started = True
        self._tell(lambda tracker: tracker.start(out, config))

    def row(self, row: dict[str, Any], part: str = "") -> None:
        """Tell the trackers that an epoch is over.

        Args:
            row: As for `Tracker.row`.
            part: Which of several trainings the epoch belongs to, put before the names of its figures; "" for the last
                one.
        """
        named = {f"{part}/{name}" if part and name != "epoch" else name: value for name, value in row.items()}
        self._tell(lambda tracker: tracker.row(named))

    def __enter__(self) -> "TrackerSet":
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(lambda tracker: tracker.finish(self.summary))

    def _tell(self, message: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers) if self.started else []:
            try:
                with redirect_stdout(sys.stderr):  # stdout is data
                    message(tracker)
            except Exception as error:
                self.trackers.remove(tracker)
                why = f"{type(error).__name__}: {error}"
                self.progress.say(f"{type(tracker).__name__} failed and is told nothing more: {why}")


def create_trackers(names: Sequence[str], further: Sequence[Tracker], progress: Progress) -> TrackerSet:
    """Create trackers by name, and join them with a user's own.

    Args:
        names: Some of `TRACKERS`.
        further: Trackers of the user.
        progress: Says when one fails.

    Raises:
        ConfigError: A name is unknown.
        MissingExtra: A tracker's library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(
                f"Unknown tracker {name!r}. Expected some of: {', '.join(TRACKERS)}.{nearest(name, TRACKERS)}"
            )
        _library(name)
    return TrackerSet([*(TRACKERS[name]() for name in names), *further], progress, {})


def scalars(summary: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of result.json that runs are compared by: accuracies 0..1 and seconds.

    Args:
        summary: What result.json says; where it is empty, so is what is returned.
    """
    if not summary:
        return {}
    accuracy, whole = summary["accuracy"], summary["cross_validated"]
    values = {"accuracy": accuracy["value"], "accuracy_low": accuracy["low"], "accuracy_high": accuracy["high"]}
    if whole is not None:
        values["cross_validated_accuracy"] = whole["value"]
    return {**values, "total_seconds": summary["seconds"]["total"]}


class TensorBoard:
    """Tracker that writes to `OUT/tensorboard`; look at it with `tensorboard --logdir OUT`."""

    def start(self, out: Path, config: dict[str, Any]) -> None:
        """Begin anew: what an earlier training of the same folder wrote is hidden."""
        writers: Any = import_module("torch.utils.tensorboard")
        self._writer = writers.SummaryWriter(str(out / "tensorboard"), purge_step=0)
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```")

    def row(self, row: dict[str, Any]) -> None:
        """Add a point to each curve."""
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Record the figures of the delivered model."""
        for name, value in scalars(summary).items():
            self._writer.add_scalar(f"result/{name}", value, 0)
        self._writer.close()


class MLflow:
    """Tracker with a run of the experiment "regraft", or of MLFLOW_EXPERIMENT_NAME.

    The run is kept where MLflow's own settings say, such as MLFLOW_TRACKING_URI.
    """

    def start(self, out: Path, config: dict[str, Any]) -> None:
        """Create a run with the settings as parameters."""
        self._client: Any = _library("mlflow").MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=str(out)).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, key, value)

    def row(self, row: dict[str, Any]) -> None:
        """Log the metrics of an epoch."""
        for name, value in row.items():
            self._client.log_metric(self._run, name, value, step=row["epoch"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the figures, and how the run ended: FINISHED, or KILLED where the summary is empty."""
        for name, value in scalars(summary).items():
            self._client.log_metric(self._run, name, value)
        self._client.set_terminated(self._run, "FINISHED" if summary else "KILLED")


class WandB:
    """Tracker with a run of the project "regraft", or of WANDB_PROJECT; with `--offline` it stays in `OUT/wandb`."""

    def start(self, out: Path, config: dict[str, Any]) -> None:
        """Create a run; users who are not logged in are not asked to."""
        wandb: Any = _library("wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=str(out),
            dir=str(out),
            config=config,
            mode="offline" if config["offline"] else None,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="epoch")  # its own steps may only grow

    def row(self, row: dict[str, Any]) -> None:
        """Log the metrics of an epoch."""
        self._run.log(row)

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the figures, and how the run ended: exit code 0, or 1 where the summary is empty."""
        self._run.summary.update(scalars(summary))
        self._run.finish(exit_code=0 if summary else 1)


class Trackio:
    """Tracker with a run of the project "regraft" on this machine; look at it with `trackio show`."""

    def start(self, out: Path, config: dict[str, Any]) -> None:
        """Create a run with the settings."""
        self._library = _library("trackio")
        self._run: Any = self._library.init(project=PROJECT, name=str(out), config=config, embed=False)

    def row(self, row: dict[str, Any]) -> None:
        """Log the metrics of an epoch."""
        self._run.log(dict(row), step=row["epoch"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the figures and end the run."""
        if summary:
            self._run.log({f"result/{name}": value for name, value in scalars(summary).items()})
        self._library.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
    "trackio": Trackio,
}


def _library(name: str) -> Any:
    """Import the library of a tracker, with its maker's statistics switched off. Raises MissingExtra."""
    for variable, value in SILENT.items():
        os.environ.setdefault(variable, value)
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtra(name, name) from error
