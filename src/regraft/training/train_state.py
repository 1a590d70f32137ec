"""What changes while a network learns, and how it is kept: all that a run which was cut needs to go on."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from regraft.core.trackers import write_history
from regraft.training.checkpoint import Checkpoint, flatten, restore_optimizer, save_checkpoint
from regraft.training.distributed import ProcessGroup
from regraft.training.folded_batchnorm import Norms
from regraft.training.parallel import Threads
from regraft.training.recipe import Recipe
from regraft.training.resume import CheckpointInfo

HistoryRow = dict[str, Any]

METRICS = "tally"  # what a checkpoint calls the sums of the epoch that is under way


@dataclass(frozen=True)
class EpochMetrics:
    """Sums over photos.

    Attributes:
        loss: Weighted, in nats.
        weight: Sum of the weights.
        num_right: How many of the n photos are classified right.
        n: How many photos there are.
    """

    loss: float = 0.0
    weight: float = 0.0
    num_right: float = 0.0
    n: float = 0.0

    def __add__(self, other: "EpochMetrics") -> "EpochMetrics":
        mine, theirs = asdict(self).values(), asdict(other).values()
        return EpochMetrics(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclass
class TrainState:
    """What changes while training.

    Attributes:
        network: Pixels `(B, 3, H, W)` uint8 to logits `(B, C)`, on the process group's device.
        optimizer: Each of its groups has its highest rate under "peak_lr".
        world: The processes that train together.
        seed: Of all that is random.
        num_classes: Number C of classes.
        about: What its checkpoints say of the run.
        average: Running average of the weights; None for none.
        microbatch_size: Photos that go through the network at once where it learns, halved when memory runs out; 0 for
            all.
        val_microbatch_size: The same where it is evaluated.
        best: Weights of the best epoch, by name; empty where that is not kept.
        folded: BatchNorm layers that the convolutions before them compute; None before the first step.
        is_random: Whether the network draws random numbers while it learns; None before the first step.
        threads: That compute microbatches at once; None for one after the other.
        on_row: Called with each finished epoch.
        choose_threads: Called before microbatches that come one after the other.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    world: ProcessGroup
    seed: int
    num_classes: int
    about: CheckpointInfo
    average: AveragedModel | None = None
    microbatch_size: int = 0
    val_microbatch_size: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    folded: Norms | None = None
    is_random: bool | None = None
    threads: Threads | None = None
    on_row: Callable[[HistoryRow], None] = lambda row: None
    choose_threads: Callable[[], None] = lambda: None

    @property
    def recipe(self) -> Recipe:
        """The recipe as it is carried out."""
        return self.about.carried_out

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def delivered(self) -> nn.Module:
        """The network that is evaluated and delivered: the running average where there is one."""
        return self.network if self.average is None else self.average.module


@dataclass
class FitResult:
    """How far a training has come.

    Attributes:
        rows: The history, one for each finished epoch.
        epoch: Number of the epoch that comes next or is under way, from 0.
        step: Number of the step in it that comes next, from 0.
        metrics: Of the epoch that is under way, over all processes.
        stopped: Why it ended before its time, "" if not.
    """

    rows: list[HistoryRow] = field(default_factory=list)
    epoch: int = 0
    step: int = 0
    metrics: EpochMetrics = field(default_factory=EpochMetrics)
    stopped: str = ""

    @property
    def best_epoch(self) -> int:
        """Index of the row with the lowest loss on the photos that choose."""
        return min(range(len(self.rows)), key=lambda i: float(self.rows[i]["val_loss"]))


@dataclass
class Checkpointer:
    """Writes checkpoints, not more often than they are worth.

    Attributes:
        folder: The run's; None keeps nothing.
        train_state: What is saved.
        fitted: How far the training has come, which is saved too.
        saved_at: Of `time.monotonic`, when the last one was written; at first, when this object was made.
        cost_s: Seconds that the last one took.
    """

    folder: Path | None
    train_state: TrainState
    fitted: FitResult
    saved_at: float = field(default_factory=time.monotonic)
    cost_s: float = 0.0

    def save_after(self, seconds: float) -> None:
        """Save a checkpoint if the last one was written at least so many seconds ago."""
        began = time.monotonic()
        if self.folder and self.train_state.world.is_main and began - self.saved_at >= seconds:
            _save(self.folder, self.train_state, self.fitted)
            self.saved_at = time.monotonic()
            self.cost_s = self.saved_at - began


def restore_checkpoint(train_state: TrainState, checkpoint: Checkpoint) -> FitResult:
    """Put a checkpoint's tensors back, and return how far it had come."""
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "average": {}, "best": {}}
    for key, value in checkpoint.tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    train_state.network.load_state_dict(parts["network"])
    restore_optimizer(train_state.optimizer, parts["optimizer"])
    if train_state.average is not None:
        train_state.average.load_state_dict(parts["average"])
    train_state.best = parts["best"]
    fitted = dict(checkpoint.state["fit"])
    metrics = EpochMetrics(**fitted.pop(METRICS))
    return FitResult(**fitted, metrics=metrics)


def _save(folder: Path, train_state: TrainState, fitted: FitResult) -> None:
    tensors = {f"network/{name}": value for name, value in train_state.network.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in flatten(train_state.optimizer).items()}
    if train_state.average is not None:
        tensors |= {f"average/{name}": value for name, value in train_state.average.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in train_state.best.items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        return  # the next step will tell; until then the checkpoint before this is the last good one
    stopped = "patience" if fitted.stopped == "patience" else ""  # other ends are there to be continued from
    fit = {**asdict(fitted), "stopped": stopped}
    fit[METRICS] = fit.pop("metrics")
    state = {"about": train_state.about.to_json(), "fit": fit}
    save_checkpoint(folder / "checkpoints", Checkpoint(tensors, state))
    write_history(folder, fitted.rows)
