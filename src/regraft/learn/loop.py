"""The loop: one function for an epoch, the same for training and judging, and `fit`, which calls it until it is done.

Everything random is a function of the seed, the epoch and the photo. So a run that is cut and continued from what
`Learner` and `Fit` hold ends with the same weights.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from regraft.ground.errors import TrainError
from regraft.ground.memory import in_pieces
from regraft.ground.progress import Progress
from regraft.ground.signals import held_back
from regraft.learn.batches import Batch, Loader
from regraft.learn.batchnorm import BATCH_NORMS, RunningStatistics
from regraft.learn.learner import Fit, Keeper, Learner, Row, Tally
from regraft.learn.recipe import Recipe

CHECKPOINT_SECONDS = 30.0  # how much work a kill can cost
KEEPING_SHARE = 20.0  # at an epoch's end, times the seconds that a checkpoint takes


def run_epoch(batches: Iterable[Batch], step: Callable[[Batch], Tally], after: Callable[[Tally], bool]) -> Tally:
    """Sums over batches. step: what is done with each.  after: called with each one's sums; true ends the epoch."""
    tally = Tally()
    for batch in batches:
        one = step(batch)
        tally += one
        if after(one):
            break
    return tally


def fit(
    learner: Learner,
    fitted: Fit,
    train: Loader,
    val: Loader,
    folder: Path | None,
    deadline: float,
    progress: Progress,
) -> Fit:
    """Train from where `fitted` stands to the recipe's last epoch, the deadline, or the end of patience.

    folder: the run's, for checkpoints and history.jsonl; None keeps nothing.  deadline: of `time.monotonic`.
    Raises TrainError when the loss is not finite, Interrupted after a checkpoint when a signal came.
    """
    recipe, num_steps = learner.recipe, len(train.batches_of(0))
    keeper = Keeper(folder, learner, fitted)
    step = _training_step(learner, fitted, num_steps, progress)

    def after_step(one: Tally) -> bool:
        fitted.tally += one
        fitted.step += 1
        advance(int(one.n))
        keeper.save_after(CHECKPOINT_SECONDS)
        return must_stop(one)

    def must_stop(_: Tally) -> bool:
        reason = "interrupted" if stop_asked() else "time" if time.monotonic() > deadline else ""
        fitted.stopped = learner.world.agree(reason)
        return bool(fitted.stopped)

    num_photos = (recipe.epochs - fitted.epoch) * len(train.photos)
    with held_back() as stop_asked, progress.step("fine-tune", total=num_photos) as advance:
        learner.network.train()
        hold_still(learner.network, recipe)
        while fitted.epoch < recipe.epochs and not fitted.stopped:
            began = time.monotonic()
            with closing(train.load(fitted.epoch, fitted.step)) as batches:  # its processes end here, not some time
                run_epoch(batches, step, after_step)
            judged = None if fitted.stopped else judge(learner, val, progress, must_stop)
            if judged is not None and not fitted.stopped:
                _end_of_epoch(learner, fitted, judged, time.monotonic() - began)
                progress.say(line(fitted.rows[-1], recipe.epochs))
                keeper.save_after(KEEPING_SHARE * keeper.cost_s)
        keeper.save_after(0.0)
        if fitted.stopped:
            progress.say(f"stopped ({fitted.stopped}) in epoch {fitted.epoch + 1}, after step {fitted.step}")
    return fitted


def hold_still(network: nn.Module, recipe: Recipe) -> None:
    """BatchNorm in evaluation where the recipe says so, and where its own weights do not learn."""
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            is_frozen = module.weight is not None and not module.weight.requires_grad
            module.train(recipe.batchnorm == "train" and not is_frozen)


def judge(
    learner: Learner, photos: Loader, progress: Progress, must_stop: Callable[[Tally], bool] = lambda _: False
) -> Tally:
    """Plain cross entropy and accuracy of the network that would be delivered."""
    network = learner.delivered

    def step(batch: Batch) -> Tally:
        logits = _logits(learner, batch, progress)
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        return _tally(losses, logits, batch, batch.labels)

    was_training = [module for module in network.modules() if module.training]
    network.eval()
    with closing(photos.load(0)) as batches:
        tally = run_epoch(batches, step, must_stop)
    for module in was_training:
        module.training = True
    return Tally(*learner.world.total(asdict(tally).values()))


def answers(learner: Learner, photos: Loader, progress: Progress) -> np.ndarray:
    """`(N,)` int64: the class that the network which would be delivered gives to each photo."""
    world, found = learner.world, np.zeros(len(photos.photos))
    learner.delivered.eval()
    for indices, batch in zip(photos.batches_of(0), photos.load(0), strict=True):
        labels = _logits(learner, batch, progress).argmax(dim=1)
        own = indices[world.rank :: world.size]
        found[own] = labels.cpu().numpy()[: len(own)]
    return np.array(world.total(found), dtype=np.int64)


def _logits(learner: Learner, batch: Batch, progress: Progress) -> Tensor:
    """`(B, C)` float32 of the network that would be delivered, without gradients."""

    def forward(size: int) -> Tensor:
        with torch.inference_mode(), learner.world.autocast():
            return torch.cat([learner.delivered(pixels).float() for pixels in torch.split(batch.pixels, size)])

    at_once = learner.judged_at_once or learner.recipe.val_batch_size
    logits, learner.judged_at_once = in_pieces(at_once, forward, progress)
    return logits


def rate_factor(recipe: Recipe, step: int, num_steps: int) -> float:
    """Share of its highest rate with which a step, counted over all epochs, learns.

    Cosine: I. Loshchilov and F. Hutter, "SGDR", ICLR 2017, without restarts.
    """
    warm = recipe.warmup * num_steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, num_steps - warm)))


def line(row: Row, num_epochs: int) -> str:
    """One epoch in one line."""
    return (
        f"epoch {row['epoch']:>2}/{num_epochs}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.3f}"
        f"  val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.3f}  {row['seconds']:.1f} s"
    )


def _end_of_epoch(learner: Learner, fitted: Fit, judged: Tally, seconds: float) -> None:
    recipe, num_steps = learner.recipe, fitted.step
    if not math.isfinite(judged.loss):
        raise _not_finite(judged.loss, f"on the photos that are judged after epoch {fitted.epoch + 1}", recipe)
    rate = rate_factor(recipe, (fitted.epoch + 1) * num_steps - 1, recipe.epochs * num_steps)
    done = fitted.tally
    fitted.rows.append(
        {
            "epoch": fitted.epoch + 1,
            "train_loss": done.loss / done.weight,
            "train_accuracy": done.num_right / done.n,
            "val_loss": judged.loss / judged.weight,
            "val_accuracy": judged.num_right / judged.n,
            "learning_rate": learner.optimizer.param_groups[0]["peak_lr"] * rate,
            "seconds": round(seconds, 3),
        }
    )
    learner.on_row(fitted.rows[-1])
    best = fitted.best_epoch
    if recipe.keep == "best" and best == fitted.epoch:
        learner.best = {name: value.detach().clone() for name, value in learner.delivered.state_dict().items()}
    if recipe.patience and fitted.epoch - best >= recipe.patience:
        fitted.stopped = "patience"
    fitted.epoch, fitted.step, fitted.tally = fitted.epoch + 1, 0, Tally()


def _not_finite(loss: float, where: str, recipe: Recipe) -> TrainError:
    return TrainError(
        f"The loss is {loss} {where}. Expected a finite number. Lower --learning-rate (it is "
        f"{recipe.learning_rate:g}) and --head-learning-rate ({recipe.head_learning_rate:g}), or set --clip 1."
    )


def _training_step(learner: Learner, fitted: Fit, num_steps: int, progress: Progress) -> Callable[[Batch], Tally]:
    """One step of gradient descent, as a function of a batch."""
    recipe, world = learner.recipe, learner.world
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]

    def step(batch: Batch) -> Tally:
        number = fitted.epoch * num_steps + fitted.step
        for group in learner.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_factor(recipe, number, recipe.epochs * num_steps)
        torch.manual_seed(_seed(learner.seed, number, world.rank))  # of dropout and mixing
        own = gradients(learner, batch, progress)
        world.add_up([p.grad for p in parameters if p.grad is not None])
        tally = Tally(*world.total(asdict(own).values()))
        if not math.isfinite(tally.loss):
            where = f"at step {fitted.step + 1} of epoch {fitted.epoch + 1}"
            raise _not_finite(tally.loss / batch.total, where, recipe)
        if recipe.clip:
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
        learner.optimizer.step()
        if learner.average is not None:
            learner.average.update_parameters(learner.network)
        return tally

    return step


def gradients(learner: Learner, batch: Batch, progress: Progress) -> Tally:
    """Gradients of a batch's mean loss, added up over microbatches that fit into memory.

    Raises TrainError where not even one photo does.
    """
    statistics = RunningStatistics(learner.network)

    def add_up(size: int) -> Tally:
        learner.optimizer.zero_grad()
        torch.manual_seed(torch.initial_seed())  # as if no attempt had been before
        statistics.begin()
        tally = Tally()
        for part in batch.split(size, statistics.least):
            statistics.rewind()
            one = _backward(learner, part)
            statistics.add(int(one.n))
            tally += one
        return tally

    at_once = learner.microbatch_size or learner.recipe.batch_size
    tally, learner.microbatch_size = in_pieces(at_once, add_up, progress)
    statistics.settle(learner.world)
    return tally


def _backward(learner: Learner, batch: Batch) -> Tally:
    recipe = learner.recipe
    pixels, targets = _mixed(learner, batch)
    with learner.world.autocast():
        logits = learner.network(pixels).float()
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=recipe.label_smoothing)
    (losses @ batch.weights / batch.total).backward()  # type: ignore[no-untyped-call]
    return _tally(losses.detach(), logits.detach(), batch, batch.labels)


def _mixed(learner: Learner, batch: Batch) -> tuple[Tensor, Tensor]:
    """Pixels and targets: class numbers `(B,)`, or shares of classes `(B, C)` where photos were mixed."""
    if learner.recipe.mix == "none" or len(batch.labels) < 2:
        return batch.pixels, batch.labels
    mix = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[learner.recipe.mix](num_classes=learner.num_classes)
    pixels, targets = mix(batch.pixels.float(), batch.labels)
    return pixels, targets


def _tally(losses: Tensor, logits: Tensor, batch: Batch, labels: Tensor) -> Tally:
    counts = batch.weights > 0
    right = (logits.argmax(dim=1) == labels) & counts
    sums = torch.stack(
        [losses.double() @ batch.weights.double(), batch.weights.double().sum(), right.sum(), counts.sum()]
    )
    return Tally(*sums.tolist())


def _seed(*parts: int) -> int:
    """A seed that depends on all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
