"""What changes while a network learns, and how it is kept: all that a run which was cut needs to go on."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from regraft.core.ownership import write_output
from regraft.training.checkpoint import Checkpoint, flatten, restore_optimizer, save_checkpoint
from regraft.training.distributed import ProcessGroup
from regraft.training.recipe import Recipe
from regraft.training.resume import CheckpointInfo

HistoryRow = dict[str, Any]


@dataclass(frozen=True)
class EpochMetrics:
    """Sums over photos. loss: weighted, in nats.  weight: sum of the weights.  num_right of n photos."""

    loss: float = 0.0
    weight: float = 0.0
    num_right: float = 0.0
    n: float = 0.0

    def __add__(self, other: "EpochMetrics") -> "EpochMetrics":
        mine, theirs = asdict(self).values(), asdict(other).values()
        return EpochMetrics(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclass
class TrainState:
    """What changes while training. network: pixels `(B, 3, H, W)` uint8 to logits `(B, C)`, on the world's device.

    optimizer: each of its groups has its highest rate under "peak_lr".  about: what its checkpoints say of the run.
    average: running average of the weights.  microbatch_size, judged_at_once: photos that go through the network at
    once, where it learns and where it is judged, halved when memory runs out; 0 for all.  on_row: told of each epoch.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    world: ProcessGroup
    seed: int
    num_classes: int
    about: CheckpointInfo
    average: AveragedModel | None = None
    microbatch_size: int = 0
    judged_at_once: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    on_row: Callable[[HistoryRow], None] = lambda row: None

    @property
    def recipe(self) -> Recipe:
        """As it is carried out."""
        return self.about.carried_out

    @property
    def delivered(self) -> nn.Module:
        """The network that is judged and delivered: the running average where there is one."""
        return self.network if self.average is None else self.average.module


@dataclass
class FitResult:
    """How far a training has come. rows: the history, one for each finished epoch.

    epoch, step: what comes next.  tally: of the epoch that is under way, over all processes.  stopped: why it ended
    before its time.
    """

    rows: list[HistoryRow] = field(default_factory=list)
    epoch: int = 0
    step: int = 0
    tally: EpochMetrics = field(default_factory=EpochMetrics)
    stopped: str = ""

    @property
    def best_epoch(self) -> int:
        """Number of the row with the lowest loss on the photos that choose."""
        return min(range(len(self.rows)), key=lambda i: float(self.rows[i]["val_loss"]))


@dataclass
class Checkpointer:
    """Writes checkpoints, not more often than they are worth. folder: None keeps nothing."""

    folder: Path | None
    train_state: TrainState
    fitted: FitResult
    saved_at: float = field(default_factory=time.monotonic)
    cost_s: float = 0.0

    def save_after(self, seconds: float) -> None:
        """Save if the last time is longer ago."""
        began = time.monotonic()
        if self.folder and self.train_state.world.is_main and began - self.saved_at >= seconds:
            _save(self.folder, self.train_state, self.fitted)
            self.saved_at = time.monotonic()
            self.cost_s = self.saved_at - began


def resume(train_state: TrainState, checkpoint: Checkpoint) -> FitResult:
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
    fitted = checkpoint.state["fit"]
    return FitResult(**{**fitted, "tally": EpochMetrics(**fitted["tally"])})


def _save(folder: Path, train_state: TrainState, fitted: FitResult) -> None:
    tensors = {f"network/{name}": value for name, value in train_state.network.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in flatten(train_state.optimizer).items()}
    if train_state.average is not None:
        tensors |= {f"average/{name}": value for name, value in train_state.average.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in train_state.best.items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        return  # the next step will tell; until then the checkpoint before this is the last good one
    stopped = "patience" if fitted.stopped == "patience" else ""  # other ends are there to be continued from
    state = {"about": train_state.about.to_json(), "fit": {**asdict(fitted), "stopped": stopped}}
    save_checkpoint(folder / "checkpoints", Checkpoint(tensors, state))
    _write_history(folder, fitted.rows)


def _write_history(folder: Path, rows: list[HistoryRow]) -> None:
    """history.jsonl: one JSON object an epoch."""
    write_output(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
