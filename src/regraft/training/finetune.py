"""A network, photos and a recipe to a network that has learned them."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regraft.backbones.network import Network, Normalise, with_new_head
from regraft.backbones.onnx_export import tensor_hash
from regraft.backbones.split_network import SplitNetwork, divide
from regraft.backbones.stages import stages
from regraft.backbones.torch_defaults import torch_defaults
from regraft.core.errors import ConfigError, TrainError
from regraft.core.files import sha256_json
from regraft.core.progress import Progress
from regraft.core.runtime import keep_freed_memory
from regraft.data.scan import Dataset
from regraft.models.linear_head import Head
from regraft.training.augmentation import augmentation, small_augmentation
from regraft.training.batches import Loader, choose_workers, decode_for_training, decode_for_validation
from regraft.training.cached_activations import cache_activations
from regraft.training.checkpoint import latest_checkpoint
from regraft.training.distributed import ProcessGroup
from regraft.training.interpolation import copied, put_between
from regraft.training.loop import fit, gradients
from regraft.training.parallel import parallel_threads
from regraft.training.planning import SAFETY, TooLittleTime, plan
from regraft.training.recipe import Recipe
from regraft.training.resume import CheckpointInfo, continued
from regraft.training.threads import threads_beside_others
from regraft.training.train_state import FitResult, HistoryRow, TrainState, restore_checkpoint

PROBED_STEPS = 2  # that measure how long an epoch takes
VALIDATION_COST = 0.35  # of a photo that is evaluated, relative to one that is learned from
FROZEN_SHARE = 0.3  # of the time, that running the frozen stages may take
NEAR_ZERO = 0.01  # spread of a head's first weights that lets every class begin alike


@dataclass(frozen=True)
class FineTuneJob:
    """What a fine-tuning works on.

    Attributes:
        train: Photos to learn from.
        val: Photos that the network is evaluated on after each epoch, and that choose the epoch under keep "best".
        seed: Of order, augmentation and first weights.
        workers: Processes that augment photos; -1 to decide.
        budget_s: Seconds it may take, None for as long as it takes.
        folder: The run's, for checkpoints; None keeps nothing.
        identity: What must be the same for a checkpoint to be continued.
        force: Continue although settings of the recipe have changed.
        on_row: Called with each finished epoch, also with those before a checkpoint that is continued.
        least: Share of its epochs without which it is not begun; 0 for as many as fit into the time, one at least.
        may_shrink: Whether first epochs may learn from smaller photos where time is short.
        val_chooses: Whether photos of val, which then must not be those that the model is evaluated on, choose between
            the learned weights and those between the first and the learned ones that the recipe asks for.
    """

    train: Dataset
    val: Dataset
    seed: int = 0
    workers: int = -1
    budget_s: float | None = None
    folder: Path | None = None
    identity: dict[str, str] = field(default_factory=dict)
    force: bool = False
    on_row: Callable[[HistoryRow], None] = lambda row: None
    least: float = 0.0
    may_shrink: bool = False
    val_chooses: bool = False


@dataclass(frozen=True)
class Tuned:
    """A network that was fine-tuned, and how that went.

    Attributes:
        network: In evaluation mode, on the CPU.
        recipe: As it was carried out.
        rows: The history.
        epoch: The one that is delivered, from 1.
        stopped: Why before the recipe's end, "" if not.
        frozen_sha256: Hash of the tensors that were not to move, the same before and after; None where all learned.
        answers: `(N,)` int64, the class given to each photo of the job's val.
    """

    network: Network
    recipe: Recipe
    rows: list[HistoryRow]
    epoch: int
    stopped: str
    frozen_sha256: str | None
    answers: np.ndarray


@torch_defaults()
def finetune(
    network: Network, job: FineTuneJob, recipe: Recipe, head: Head | None, world: ProcessGroup, progress: Progress
) -> Tuned:
    """Train a network on photos.

    Args:
        network: The network to start from, pretrained or random.
        job: Photos, time and folder.
        recipe: How to train.
        head: Solved on the network's features, for a recipe whose head starts there.
        world: The processes that train together.
        progress: Is told what is done.

    Raises:
        TrainError: The training cannot be continued, or its loss is not finite; or a process that helps it was killed.
        ConfigError: The recipe does not suit the network, or needs a head that is not given.
        DataError: A photo cannot be used any more.
        TooLittleTime: Fewer epochs fit into the job's time than it needs.
    """
    deadline = float("inf") if job.budget_s is None else time.monotonic() + job.budget_s
    keep_freed_memory()
    checkpoint = latest_checkpoint(job.folder / "checkpoints", progress) if job.folder else None
    about = CheckpointInfo(job.identity, recipe, recipe)
    if checkpoint:
        before = CheckpointInfo.from_json(checkpoint.state["about"])
        about = replace(about, carried_out=continued(before, job.identity, recipe, job.force, progress))
    network = _with_first_head(network, about.asked, head, len(job.train.classes), job.seed)
    first = copied(network.module) if about.asked.interpolation < 1 else {}
    learning = _learning(network, about.asked)
    frozen = _frozen_sha256(network, learning)
    train, val = _loaders(network, job, about.carried_out, world, progress)
    division = _division(network, learning, about.asked, progress)
    if division:
        until = math.inf if checkpoint else time.monotonic() + FROZEN_SHARE * (deadline - time.monotonic())
        train, val, about = _behind_frozen(division, train, val, about, until, progress)
    train_state = _learner(_classifier(network, division), learning, about, world, job)
    fitted = restore_checkpoint(train_state, checkpoint) if checkpoint else FitResult()
    if checkpoint:
        progress.say(f"continued: epoch {fitted.epoch + 1}, step {fitted.step + 1}")
        for row in fitted.rows:
            job.on_row(row)
    with (
        parallel_threads(world) as train_state.threads,
        threads_beside_others(world, progress) as train_state.choose_threads,
        _killed_helpers_explained(),
    ):
        if not checkpoint and job.budget_s is not None:
            _fit_to_time(train_state, train, val, deadline, job, progress)
        train = replace(train, small_epochs=train_state.recipe.small_epochs)
        progress.say(f"recipe: {train_state.recipe}")
        fitted = fit(train_state, fitted, train, val, job.folder, deadline, progress)
        trained, answers = _taken_out(network, first, train_state, val, job.val_chooses, progress)
    if _frozen_sha256(trained, learning) != frozen:
        raise TrainError("Layers that were to stay frozen have moved. This is a bug in regraft; please report it.")
    epoch = fitted.best_epoch + 1 if train_state.best else fitted.epoch + bool(fitted.step)
    return Tuned(trained, train_state.recipe, fitted.rows, epoch, fitted.stopped, frozen, answers)


@contextmanager
def _killed_helpers_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainError(
            f"A process that changes photos was killed, perhaps for lack of memory ({str(error).strip()}). "
            "The same command goes on from here; with --workers 0 there are no such processes."
        ) from error


class Classifier(nn.Module):
    """A module from pixels `(B, 3, H, W)` uint8, or from what frozen stages made of them, to logits `(B, C)`."""

    def __init__(self, network: nn.Module, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the logits; networks with auxiliary outputs give them last, and only while training."""
        images = self.normalise(pixels).float().contiguous(memory_format=torch.channels_last)
        logits = self.network(images)
        return cast(Tensor, logits if isinstance(logits, Tensor) else logits[0])


def _with_first_head(network: Network, recipe: Recipe, head: Head | None, num_classes: int, seed: int) -> Network:
    if recipe.head_start in ("solved", "softened"):
        if head is None:
            raise ConfigError(f"--head-start {recipe.head_start} needs a pretrained backbone. Choose zero or random.")
        return with_new_head(network, torch.from_numpy(head.weight), torch.from_numpy(head.bias))
    torch.manual_seed(seed)
    if recipe.head_start == "zero":
        return with_new_head(network, NEAR_ZERO * torch.randn(num_classes, network.num_features))
    drawn = nn.Linear(network.num_features, num_classes)
    return with_new_head(network, drawn.weight.detach(), drawn.bias.detach())


def _learning(network: Network, recipe: Recipe) -> list[list[str]]:
    """Return the names of the parameters that learn, by stage, the head as the last one. Raises ConfigError."""
    grouped = stages(network)
    if recipe.unfreeze > len(grouped):
        raise ConfigError(
            f"--unfreeze {recipe.unfreeze} is more than {network.reference} has: {len(grouped)} stages. "
            "Expected fewer, or 0 for all."
        )
    chosen = {0: grouped, -1: []}.get(recipe.unfreeze, grouped[-recipe.unfreeze :])
    in_head = tuple(f"{head}." for head in network.heads)
    head = [name for name, _ in network.module.named_parameters() if name.startswith(in_head)]
    return [*chosen, head]


def _frozen_sha256(network: Network, learning: list[list[str]]) -> str | None:
    """Hash every tensor that is not to move: parameters, and statistics of the layers they belong to."""
    moving = {name for group in learning for name in group}
    layers = {name.rpartition(".")[0] for name in moving}
    aliases = tuple(f"{head}." for head in network.heads)  # two heads may be one layer under two names
    still = {
        name: tensor_hash(value)
        for name, value in network.module.state_dict().items()
        if name not in moving and name.rpartition(".")[0] not in layers and not name.startswith(aliases)
    }
    return sha256_json(still) if still else None


def _division(network: Network, learning: list[list[str]], recipe: Recipe, progress: Progress) -> SplitNetwork | None:
    """Divide the network, for a recipe that wants it."""
    if not recipe.views:
        return None
    division = divide(network, [name for stage in learning for name in stage])
    if division is None:
        progress.say(f"{network.reference} cannot be divided before its last stages, so they all run in every epoch")
    return division


def _behind_frozen(
    division: SplitNetwork, train: Loader, val: Loader, about: CheckpointInfo, until: float, progress: Progress
) -> tuple[Loader, Loader, CheckpointInfo]:
    """Run the frozen stages once: on as many versions of each photo to learn from as there is time for until then.

    Returns:
        Loaders of what they made of the photos, and the recipe with that number of versions.
    """
    views = cache_activations(division, train, about.carried_out.views, progress, until)
    val = replace(val, photos=cache_activations(division, val, 1, progress))
    return replace(train, photos=views), val, about.fitted(views=len(views.versions))


def _classifier(network: Network, division: SplitNetwork | None) -> Classifier:
    """Return what learns: the network, or what is behind its frozen stages."""
    if division:
        return Classifier(division.rest.module, nn.Identity())
    return Classifier(network.module, Normalise(network.preprocessing))


def _learner(
    classifier: Classifier, learning: list[list[str]], about: CheckpointInfo, world: ProcessGroup, job: FineTuneJob
) -> TrainState:
    recipe = about.carried_out
    named = dict(classifier.network.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(any(name in group for group in learning))
    classifier.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    world.broadcast_tensors([*classifier.parameters(), *classifier.buffers()])
    average = None
    if recipe.ema:
        average = AveragedModel(classifier, multi_avg_fn=_averaging(recipe.ema), use_buffers=True)
    if recipe.compile and world.is_gpu:
        classifier.compile()
    return TrainState(
        network=classifier,
        optimizer=_optimizer(named, learning, recipe),
        about=about,
        world=world,
        seed=job.seed,
        num_classes=len(job.train.classes),
        average=average,
        microbatch_size=recipe.microbatch_size,
        on_row=job.on_row,
    )


def _averaging(decay: float) -> Any:
    """Return how a running average moves; counts and indices are not averaged but taken over."""
    move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return lambda old, new, n: move(old, new, n) if old[0].is_floating_point() else torch._foreach_copy_(old, new)


def _optimizer(named: dict[str, nn.Parameter], learning: list[list[str]], recipe: Recipe) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = []
    for number, stage in enumerate(learning):
        is_head = number == len(learning) - 1
        slower = recipe.layer_decay ** (len(learning) - 1 - number)
        rate = recipe.head_learning_rate if is_head else recipe.learning_rate * slower
        for decays in (True, False):
            chosen = [named[name] for name in stage if (recipe.optimizer == "sgd" or named[name].ndim > 1) == decays]
            if chosen:
                decay = recipe.weight_decay if decays else 0.0
                groups.append({"params": chosen, "lr": rate, "peak_lr": rate, "weight_decay": decay})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=recipe.momentum)
    return torch.optim.AdamW(groups)


def _loaders(
    network: Network, job: FineTuneJob, recipe: Recipe, world: ProcessGroup, progress: Progress
) -> tuple[Loader, Loader]:
    p = network.preprocessing
    batch = (recipe.batch_size, p.height, p.width, 3)
    may_shrink = recipe.small_epochs or (job.may_shrink and job.budget_s is not None)
    train = Loader(
        photos=decode_for_training(job.train, p, progress),
        batch_size=recipe.batch_size,
        seed=job.seed,
        world=world,
        change=augmentation(recipe, p),
        small_change=small_augmentation(recipe, network) if may_shrink else None,
        weights=_class_weights(job.train) if recipe.class_weights else None,
        ghost_size=_ghost_size(recipe),
        num_workers=choose_workers(job.workers, batch, world, progress),
    )
    return train, Loader(decode_for_validation(job.val, p, progress), recipe.val_batch_size, job.seed, world)


def _ghost_size(recipe: Recipe) -> int:
    """Count the photos that BatchNorm normalises together; a last batch of one photo may have joined the one before."""
    whole = recipe.batch_size + 1
    return (recipe.microbatch_size or whole) if recipe.batchnorm == "train" else 0


def _class_weights(dataset: Dataset) -> tuple[float, ...]:
    """Return weights that make every class count alike, 1 on average over the photos."""
    counts = np.array(list(dataset.counts.values()))
    return tuple((counts.sum() / (len(counts) * counts)).tolist())


def _fit_to_time(
    train_state: TrainState, train: Loader, val: Loader, deadline: float, job: FineTuneJob, progress: Progress
) -> None:
    """Plan as many epochs as there is time for, by the speed of a few steps that change nothing.

    Raises TooLittleTime where fewer epochs fit than the job needs.
    """
    recipe, small_epoch_s = train_state.recipe, None
    per_photo = _seconds_a_photo(train_state, train, progress)
    epoch_s = per_photo * (len(train.photos) + VALIDATION_COST * len(val.photos))
    if job.may_shrink and train.small_change and recipe.epochs * epoch_s > SAFETY * (deadline - time.monotonic()):
        smaller = _seconds_a_photo(train_state, replace(train, small_epochs=1), progress)
        small_epoch_s = epoch_s - (per_photo - smaller) * len(train.photos)
    left_s = deadline - time.monotonic()
    planned = plan(recipe.epochs, epoch_s, left_s, 1 / per_photo, small_epoch_s=small_epoch_s)
    planned = train_state.world.broadcast(planned)
    if not planned.is_worth(job.least):
        raise TooLittleTime(planned.declined())
    small_epochs = min(planned.epochs, max(planned.small_epochs, recipe.small_epochs))
    train_state.about = train_state.about.fitted(epochs=planned.epochs, small_epochs=small_epochs)
    progress.say(planned.describe(time.time()))


def _seconds_a_photo(train_state: TrainState, train: Loader, progress: Progress) -> float:
    """Measure how long a photo takes, by all processes, in steps that change nothing."""
    train_state.network.eval()
    num_photos, began = 0, time.monotonic()
    for number, batch in enumerate(islice(train.load(0), PROBED_STEPS + 1)):
        if number == 1:  # the first one warms up
            num_photos, began = 0, time.monotonic()
        gradients(train_state, batch, progress)
        num_photos += len(batch.labels)
    train_state.optimizer.zero_grad()
    return (time.monotonic() - began) / num_photos / train_state.world.size


def _taken_out(
    network: Network,
    first: dict[str, Tensor],
    train_state: TrainState,
    val: Loader,
    val_chooses: bool,
    progress: Progress,
) -> tuple[Network, np.ndarray]:
    """Return the network as it is delivered, on the CPU, and its answers to the photos of `val`."""
    delivered = cast(Classifier, train_state.delivered)
    if train_state.best:
        delivered.load_state_dict(train_state.best)
    logits = put_between(delivered.network, first, train_state, val, val_chooses, progress)
    module = network.module.cpu()
    module.load_state_dict({**module.state_dict(), **delivered.network.state_dict()})
    module.eval().to(memory_format=torch.contiguous_format)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return replace(network, module=module), logits.argmax(axis=1)
