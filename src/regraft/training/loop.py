"""The loop: one function for an epoch of training or of evaluation, and `fit`, which calls it until it is done.

Everything random is a function of the seed, the epoch and the photo. So a run that is cut and continued from what
`TrainState` and `FitResult` hold ends with the same weights.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from regraft.core.errors import TrainError
from regraft.core.memory import in_pieces
from regraft.core.progress import Progress
from regraft.core.signals import held_back
from regraft.training.batches import Batch, Loader
from regraft.training.batchnorm import BATCH_NORMS, RunningStatistics
from regraft.training.folded_batchnorm import FoldedNorms, foldable_norms
from regraft.training.parallel import Threads, draws_at_random, gradients_at_once, side_by_side
from regraft.training.recipe import Recipe
from regraft.training.train_state import Checkpointer, EpochMetrics, FitResult, HistoryRow, TrainState

CHECKPOINT_SECONDS = 30.0  # how much work a kill can cost
KEEPING_SHARE = 20.0  # at an epoch's end, times the seconds that a checkpoint takes


def run_epoch(
    batches: Iterable[Batch], step: Callable[[Batch], EpochMetrics], after: Callable[[EpochMetrics], bool]
) -> EpochMetrics:
    """Add up what a step gives over batches.

    Args:
        batches: Of an epoch.
        step: What is done with each.
        after: Called with each one's sums; true ends the epoch.
    """
    metrics = EpochMetrics()
    for batch in batches:
        one = step(batch)
        metrics += one
        if after(one):
            break
    return metrics


def fit(
    train_state: TrainState,
    fitted: FitResult,
    train: Loader,
    val: Loader,
    folder: Path | None,
    deadline: float,
    progress: Progress,
) -> FitResult:
    """Train from where `fitted` stands to the recipe's last epoch, the deadline, or the end of patience.

    Args:
        train_state: What changes while training.
        fitted: How far the training has come; it is updated.
        train: Photos to learn from.
        val: Photos that the network is evaluated on after each epoch.
        folder: The run's, for checkpoints and history.jsonl; None keeps nothing.
        deadline: Of `time.monotonic`, seconds.
        progress: Is told what is done.

    Returns:
        How far it has come.

    Raises:
        TrainError: The loss is not finite.
        Interrupted: A signal came; a checkpoint was saved before.
    """
    recipe, num_steps = train_state.recipe, len(train.batches_of(0))
    checkpointer = Checkpointer(folder, train_state, fitted)
    step = _training_step(train_state, fitted, num_steps, progress)

    def after_step(one: EpochMetrics) -> bool:
        fitted.metrics += one
        fitted.step += 1
        advance(int(one.n))
        checkpointer.save_after(CHECKPOINT_SECONDS)
        return must_stop(one)

    def must_stop(_: EpochMetrics) -> bool:
        reason = "interrupted" if stop_asked() else "time" if time.monotonic() > deadline else ""
        fitted.stopped = train_state.world.broadcast(reason)
        return bool(fitted.stopped)

    num_photos = (recipe.epochs - fitted.epoch) * len(train.photos)
    with held_back() as stop_asked, progress.step("fine-tune", total=num_photos) as advance:
        put_into_training(train_state.network, recipe)
        while fitted.epoch < recipe.epochs and not fitted.stopped:
            began = time.monotonic()
            with closing(train.load(fitted.epoch, fitted.step)) as batches:  # its processes end here, not some time
                run_epoch(batches, step, after_step)
            val_metrics = None if fitted.stopped else validate(train_state, val, progress, must_stop)
            if val_metrics is not None and not fitted.stopped:
                _end_of_epoch(train_state, fitted, val_metrics, time.monotonic() - began)
                progress.say(line(fitted.rows[-1], recipe.epochs))
                checkpointer.save_after(KEEPING_SHARE * checkpointer.cost_s)
        checkpointer.save_after(0.0)
        if fitted.stopped:
            progress.say(f"stopped ({fitted.stopped}) in epoch {fitted.epoch + 1}, after step {fitted.step}")
    return fitted


def put_into_training(network: nn.Module, recipe: Recipe) -> None:
    """Have a network compute as it does while it learns."""
    network.train()
    hold_still(network, recipe)
    write_elsewhere(network)


def hold_still(network: nn.Module, recipe: Recipe) -> None:
    """Put BatchNorm into evaluation mode where the recipe says so, and where its own weights do not learn."""
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            is_frozen = module.weight is not None and not module.weight.requires_grad
            module.train(recipe.batchnorm == "train" and not is_frozen)


def write_elsewhere(network: nn.Module) -> None:
    """Have activations write their result elsewhere whose gradient needs what they are given: in place they copy it."""
    for module in network.modules():
        if isinstance(module, (nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Mish)):
            module.inplace = False


def validate(
    train_state: TrainState,
    photos: Loader,
    progress: Progress,
    must_stop: Callable[[EpochMetrics], bool] = lambda _: False,
) -> EpochMetrics:
    """Evaluate the network that would be delivered, by plain cross entropy and accuracy.

    Args:
        train_state: Holds the network.
        photos: To evaluate it on.
        progress: Is told where memory runs out.
        must_stop: Called with each batch's sums; true ends the evaluation.

    Returns:
        Sums over the photos of all processes.
    """
    network = train_state.delivered

    def step(batch: Batch) -> EpochMetrics:
        logits = _logits(train_state, batch, progress)
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        return _metrics_of(losses, logits, batch, batch.labels)

    was_training = [module for module in network.modules() if module.training]
    network.eval()
    with closing(photos.load(0)) as batches:
        metrics = run_epoch(batches, step, must_stop)
    for module in was_training:
        module.training = True
    return EpochMetrics(*train_state.world.total(asdict(metrics).values()))


def network_logits(train_state: TrainState, photos: Loader, progress: Progress) -> np.ndarray:
    """Return `(N, C)` float64: what the network which would be delivered makes of each photo."""
    world, all_logits = train_state.world, np.zeros((len(photos.photos), train_state.num_classes))
    train_state.delivered.eval()
    for indices, batch in zip(photos.batches_of(0), photos.load(0), strict=True):
        logits = _logits(train_state, batch, progress)
        rank_indices = indices[world.rank :: world.size]
        all_logits[rank_indices] = logits.cpu().numpy()[: len(rank_indices)]
    return np.array(world.total(all_logits.ravel())).reshape(all_logits.shape)


def _logits(train_state: TrainState, batch: Batch, progress: Progress) -> Tensor:
    """Return `(B, C)` float32 of the network that would be delivered, without gradients."""
    threads = train_state.threads

    def logits_of(pixels: Tensor) -> Tensor:
        with torch.inference_mode(), train_state.world.autocast():
            return cast(Tensor, train_state.delivered(pixels).float())

    def forward(size: int) -> Tensor:
        if threads is None:
            return torch.cat([logits_of(pixels) for pixels in torch.split(batch.pixels, size)])
        pieces = torch.split(batch.pixels, min(size, -(-len(batch.pixels) // threads.count)))
        return torch.cat(list(side_by_side([partial(logits_of, pixels) for pixels in pieces], threads)))

    at_once = train_state.val_microbatch_size or train_state.recipe.val_batch_size
    logits, train_state.val_microbatch_size = in_pieces(at_once, forward, progress)
    return logits


def rate_factor(recipe: Recipe, step: int, num_steps: int) -> float:
    """Return the share of its highest rate with which a step learns.

    Args:
        recipe: With the schedule.
        step: Number of the step, counted over all epochs.
        num_steps: How many there are over all epochs.

    References:
        The cosine of I. Loshchilov and F. Hutter, "SGDR", ICLR 2017, without restarts.
    """
    warm = recipe.warmup * num_steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, num_steps - warm)))


def line(row: HistoryRow, num_epochs: int) -> str:
    """Describe one epoch in one line."""
    return (
        f"epoch {row['epoch']:>2}/{num_epochs}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.3f}"
        f"  val loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.3f}  {row['seconds']:.1f} s"
    )


def _end_of_epoch(train_state: TrainState, fitted: FitResult, val_metrics: EpochMetrics, seconds: float) -> None:
    recipe, num_steps = train_state.recipe, fitted.step
    if not math.isfinite(val_metrics.loss):
        raise _not_finite(val_metrics.loss, f"on the photos that are judged after epoch {fitted.epoch + 1}", recipe)
    rate = rate_factor(recipe, (fitted.epoch + 1) * num_steps - 1, recipe.epochs * num_steps)
    train_metrics = fitted.metrics
    fitted.rows.append(
        {
            "epoch": fitted.epoch + 1,
            "train_loss": train_metrics.loss / train_metrics.weight,
            "train_accuracy": train_metrics.num_right / train_metrics.n,
            "val_loss": val_metrics.loss / val_metrics.weight,
            "val_accuracy": val_metrics.num_right / val_metrics.n,
            "learning_rate": train_state.optimizer.param_groups[0]["peak_lr"] * rate,
            "seconds": round(seconds, 3),
        }
    )
    train_state.on_row(fitted.rows[-1])
    best = fitted.best_epoch
    if recipe.keep == "best" and best == fitted.epoch:
        train_state.best = {name: value.detach().clone() for name, value in train_state.delivered.state_dict().items()}
    if recipe.patience and fitted.epoch - best >= recipe.patience:
        fitted.stopped = "patience"
    fitted.epoch, fitted.step, fitted.metrics = fitted.epoch + 1, 0, EpochMetrics()


def _not_finite(loss: float, where: str, recipe: Recipe) -> TrainError:
    return TrainError(
        f"The loss is {loss} {where}. Expected a finite number. Lower --learning-rate (it is "
        f"{recipe.learning_rate:g}) and --head-learning-rate ({recipe.head_learning_rate:g}), or set --clip 1."
    )


def _training_step(
    train_state: TrainState, fitted: FitResult, num_steps: int, progress: Progress
) -> Callable[[Batch], EpochMetrics]:
    """Return one step of gradient descent, as a function of a batch."""
    recipe, world = train_state.recipe, train_state.world
    parameters = train_state.parameters

    def step(batch: Batch) -> EpochMetrics:
        number = fitted.epoch * num_steps + fitted.step
        for group in train_state.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate_factor(recipe, number, recipe.epochs * num_steps)
        world.seed(_seed(train_state.seed, number, world.rank))  # of dropout and mixing
        metrics = gradients(train_state, batch, progress)
        world.all_reduce([p.grad for p in parameters if p.grad is not None])
        metrics = EpochMetrics(*world.total(asdict(metrics).values()))
        if not math.isfinite(metrics.loss):
            where = f"at step {fitted.step + 1} of epoch {fitted.epoch + 1}"
            raise _not_finite(metrics.loss / batch.total, where, recipe)
        if recipe.clip:
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
        train_state.optimizer.step()
        if train_state.average is not None:
            train_state.average.update_parameters(train_state.network)
        return metrics

    return step


def gradients(train_state: TrainState, batch: Batch, progress: Progress) -> EpochMetrics:
    """Compute the gradients of a batch's mean loss, added up over microbatches that fit into memory.

    Returns:
        Sums over the batch's photos.

    Raises:
        TrainError: Not even one photo fits.
    """
    statistics = RunningStatistics(train_state.network)

    def accumulate(size: int) -> EpochMetrics:
        train_state.optimizer.zero_grad()
        train_state.world.seed(torch.initial_seed())  # as if no attempt had been before
        statistics.begin()
        microbatches = list(batch.split(size, statistics.least))
        if threads := _threads_for(train_state, microbatches):
            return _at_once(train_state, statistics, microbatches, threads)
        train_state.choose_threads()
        metrics = EpochMetrics()
        for part in microbatches:
            statistics.rewind()
            loss, of_part = _loss(train_state, train_state.network, part)
            loss.backward()  # type: ignore[no-untyped-call]
            one = of_part()
            statistics.add(int(one.n))
            metrics += one
        return metrics

    at_once = train_state.microbatch_size or train_state.recipe.batch_size
    metrics, train_state.microbatch_size = in_pieces(at_once, accumulate, progress)
    statistics.settle(train_state.world)
    return metrics


def _threads_for(train_state: TrainState, microbatches: Sequence[Batch]) -> Threads | None:
    """Return the threads that compute microbatches at once; None where random numbers are drawn in their order."""
    threads = train_state.threads
    if threads is None or len(microbatches) < 2 or train_state.recipe.mix != "none":
        return None
    if train_state.is_random is None:
        train_state.is_random = draws_at_random(train_state.network, microbatches[0].pixels[:1])
    return None if train_state.is_random else threads


def _at_once(
    train_state: TrainState, statistics: RunningStatistics, microbatches: Sequence[Batch], threads: Threads
) -> EpochMetrics:
    _folding(train_state, microbatches[0].pixels[:1])  # found out once, not by each thread
    networks = statistics.twins(len(microbatches))
    works = [partial(_loss, train_state, *both) for both in zip(networks, microbatches, strict=True)]
    metrics = [one() for one in gradients_at_once(works, train_state.parameters, threads)]
    for network, one in zip(networks, metrics, strict=True):
        statistics.add(int(one.n), network)
    return sum(metrics, EpochMetrics())


def _loss(train_state: TrainState, network: nn.Module, batch: Batch) -> tuple[Tensor, Callable[[], EpochMetrics]]:
    """Return a microbatch's share of the loss, and what gives its sums, for which a GPU is waited for."""
    recipe = train_state.recipe
    pixels, targets = _mixed(train_state, batch)
    folding = _folding(train_state, pixels[:1])
    with train_state.world.autocast(), folding:
        logits = network(pixels).float()
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=recipe.label_smoothing)
    of_batch = partial(_metrics_of, losses.detach(), logits.detach(), batch, batch.labels)
    return losses @ batch.weights / batch.total, of_batch


def _folding(train_state: TrainState, image: Tensor) -> AbstractContextManager[Any]:
    """Return what folds BatchNorm while the network computes; nothing that takes time where there is none to fold."""
    if train_state.folded is None:
        may_fold = train_state.recipe.batchnorm == "eval" and not train_state.world.is_gpu
        train_state.folded = foldable_norms(train_state.network, image) if may_fold else {}
    return FoldedNorms(train_state.folded) if train_state.folded else nullcontext()


def _mixed(train_state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return pixels and targets: class numbers `(B,)`, or shares of classes `(B, C)` where photos were mixed."""
    if train_state.recipe.mix == "none" or len(batch.labels) < 2:
        return batch.pixels, batch.labels
    mix = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[train_state.recipe.mix](num_classes=train_state.num_classes)
    pixels, targets = mix(batch.pixels.float(), batch.labels)
    return pixels, targets


def _metrics_of(losses: Tensor, logits: Tensor, batch: Batch, labels: Tensor) -> EpochMetrics:
    counts = batch.weights > 0
    correct = (logits.argmax(dim=1) == labels) & counts
    sums = torch.stack(
        [losses.double() @ batch.weights.double(), batch.weights.double().sum(), correct.sum(), counts.sum()]
    )
    return EpochMetrics(*sums.tolist())


def _seed(*parts: int) -> int:
    """Return a seed that depends on all parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
