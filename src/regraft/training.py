"""The story of `regraft train`: from what takes seconds to what takes minutes, each result usable at once.

photos -> features -> solved head -> bundle                          frozen
                           \\-> fine-tuned network -> bundle          full, and auto where it pays
photos -> network from random weights -> bundle                      scratch
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.backbones.catalog import RANDOM
from regraft.backbones.features import Features, extract, fill
from regraft.backbones.graph import Backbone, from_network, load_backbone
from regraft.data.scan import Dataset, list_photos, scan
from regraft.data.splits import Splits, fold_ids, held_out, split
from regraft.deliver.bundle import load
from regraft.deliver.evaluate import Evaluation
from regraft.ground.config import TrainConfig
from regraft.ground.files import PARTIAL, exclusive, remove, sweep
from regraft.ground.progress import Progress
from regraft.ground.runtime import torch_room
from regraft.ground.statistics import Accuracy, accuracy
from regraft.learn.compare import BETTER, no_room, pair
from regraft.learn.head import Head, cross_validate, solve
from regraft.learn.recipe import Recipe, choose
from regraft.learn.world import World, join
from regraft.run import Graft, Material, Run, deliver, finish, place, say_what_is_there, summarise, write_photos

if TYPE_CHECKING:
    from regraft.learn.finetune import Tuned

RESERVE_S = 6.0  # of a time limit: what tracing, saving and judging a tuned network takes at least
JUDGED_PER_S = 40  # photos judged a second, a low estimate
WORTH_S = 5.0  # with less time than this, fine-tuning is not begun


def train_run(folder: str | Path, out: str | Path | None, config: TrainConfig, progress: Progress) -> Run:
    """Train as `config` says and leave everything in `out`. Raises RegraftError."""
    out = place(Path(folder), out)
    deadline = None if config.limit_s is None else time.monotonic() + config.limit_s
    with progress.step("total"), join() as world, _held(out, world, config):
        progress.quiet = progress.quiet or not world.is_main
        start = _prepare(Path(folder), config, world, progress)
        say_what_is_there(start.material, progress)
        outcome = _climb(out, start, config, deadline, world, progress)
        world.wait()
    if outcome is None:
        return Run(out, load(out / "bundle"), {})
    return finish(out, _summary(out, start, outcome, progress), outcome.evaluation)


@dataclass(frozen=True)
class _Start:
    """What a mode begins with. backbone: None for random weights.  features: None where no head is solved."""

    material: Material
    backbone: Backbone | None
    features: Features | None


@dataclass(frozen=True)
class _Outcome:
    """What became the bundle, how good it is, and why it was chosen."""

    graft: Graft
    evaluation: Evaluation
    decision: str = ""


@contextmanager
def _held(out: Path, world: World, config: TrainConfig) -> Iterator[None]:
    """The run's folder for this run alone, freed of what killed ones left."""
    if not world.is_main:
        world.wait()
        yield
        return
    with exclusive(out):
        sweep(out)
        if config.restart:
            remove(out / "checkpoints")
        world.wait()
        yield


def _prepare(folder: Path, config: TrainConfig, world: World, progress: Progress) -> _Start:
    """Photos, the backbone, and its features where a head is solved on them."""
    backbone = None if config.mode == "scratch" else _backbone(config, world, progress)
    features = None
    if backbone is not None and config.is_solved:
        dataset, features = _features(backbone, list_photos(folder, progress=progress), world, progress)
    else:
        dataset = scan(folder, progress=progress)
    splits = split(dataset, val_fraction=config.val_fraction, seed=config.seed)
    return _Start(Material(dataset, splits), backbone, features)


def _backbone(config: TrainConfig, world: World, progress: Progress) -> Backbone:
    """The main process first: what it fetches and traces, the others find in the cache."""
    if not world.is_main:
        world.wait()
    backbone = load_backbone(
        config.backbone, config.weights, offline=config.offline, seed=config.seed, progress=progress
    )
    if world.is_main:
        world.wait()
    return backbone


def _features(backbone: Backbone, dataset: Dataset, world: World, progress: Progress) -> tuple[Dataset, Features]:
    """Features of all photos, each computed by one of the processes."""
    if world.size > 1:
        fill(backbone, dataset.subset(range(world.rank, len(dataset), world.size)), progress=progress)
        world.wait()
    return extract(backbone, dataset, progress=progress)


def _climb(
    out: Path, start: _Start, config: TrainConfig, deadline: float | None, world: World, progress: Progress
) -> _Outcome | None:
    """Up the ladder as far as mode, time and gain allow. None in processes that do not write."""
    head, frozen = None, None
    if start.backbone is not None and start.features is not None:
        with progress.step("solve head"):
            head, graft = _solved(start.backbone, start.features, start.material, config)
        if config.mode != "full":
            frozen = _delivered(out, graft, start, config, progress) if world.is_main else None
            if world.agree(stop := _why_stop(frozen, deadline, config)) is not None:
                return None if frozen is None else replace(frozen, decision=stop or "")
            if frozen is not None:
                _announce(out, start, frozen, progress)
    tuned = _tune(out, start, head, config, deadline, world, progress)
    if not world.is_main:
        return None
    with tempfile.TemporaryDirectory(dir=out, prefix=PARTIAL) as folder:
        outcome = _judged(out, _traced(Path(folder), tuned, config), frozen, start, config, progress)
    remove(out / "checkpoints")
    return outcome


def _solved(backbone: Backbone, features: Features, material: Material, config: TrainConfig) -> tuple[Head, Graft]:
    """The frozen regime: the head of a convex problem on the features."""
    num_classes = len(material.dataset.classes)
    train = features.of(material.splits.train)
    head = solve(train, num_classes, fold_ids(train.y, train.hashes, config.num_folds, config.seed))
    score = None if material.splits.given else _cross_validated(features, num_classes, head, config)
    details = {"head": {"penalty": head.penalty, "curve": [vars(score) for score in head.curve]}}
    return head, Graft("frozen", backbone, head.weight, head.bias, details, score)


def _cross_validated(features: Features, num_classes: int, head: Head, config: TrainConfig) -> Accuracy | None:
    """Accuracy over all photos, each judged by a head that has not seen it, at the penalty the train split chose."""
    folds = fold_ids(features.y, features.hashes, config.num_folds, config.seed)
    if not (folds >= 0).any():
        return None
    score = cross_validate(features, num_classes, folds, head.penalty)
    return accuracy(score.num_right, score.n, "cross-validated")


def _delivered(out: Path, graft: Graft, start: _Start, config: TrainConfig, progress: Progress) -> _Outcome:
    evaluation = deliver(out, graft, start.material, config, progress)
    write_photos(out, start.material)
    return _Outcome(graft, evaluation)


def _why_stop(frozen: _Outcome | None, deadline: float | None, config: TrainConfig) -> str | None:
    """Why the frozen model is the last rung, in one sentence; None to climb on."""
    if config.mode == "frozen":
        return ""
    if frozen is None:
        return None  # the main process decides
    a = frozen.evaluation.accuracy
    num_wrong = a.n - round(a.value * a.n)
    if no_room(a.n - num_wrong, a.n):
        wrong = f"only {num_wrong}" if num_wrong else "none"
        return f"frozen: it has {wrong} of {a.n} {a.split} photos wrong, too few to show that any model is better"
    if deadline is not None and deadline - time.monotonic() < _reserve(frozen.evaluation.accuracy.n) + WORTH_S:
        return "frozen: there was no time left to fine-tune"
    return None


def _announce(out: Path, start: _Start, frozen: _Outcome, progress: Progress) -> None:
    """The first rung is there: say so, and leave it as a whole run in case nothing better comes."""
    finish(out, _summary(out, start, frozen, progress), frozen.evaluation)
    progress.say(f"usable now: {out / 'bundle'}: {frozen.evaluation.accuracy}")
    progress.say("fine-tuning goes on; Ctrl-C keeps this one, and the same command continues")


def _tune(
    out: Path,
    start: _Start,
    head: Head | None,
    config: TrainConfig,
    deadline: float | None,
    world: World,
    progress: Progress,
) -> "Tuned":
    """Gradient descent, from the pretrained network or from random weights."""
    finetuning, networks = torch_room("learn.finetune"), torch_room("backbones.network")
    if start.backbone is None:
        network = networks.build(config.backbone, RANDOM, seed=config.seed)
    else:
        network = networks.restore(start.backbone.info, start.backbone.trunk)
    mode = "full" if config.mode == "auto" else config.mode
    recipe = choose(config.recipe, mode, len(start.material.splits.train), config.settings)
    train, val = _learned_and_watched(start.material.splits, recipe, config)
    budget_s = None
    if deadline is not None:
        budget_s = deadline - time.monotonic() - _reserve(len(start.material.splits.judged[1]))
    job = finetuning.Job(
        train=train,
        val=val,
        seed=config.seed,
        workers=config.workers,
        budget_s=budget_s,
        folder=out,
        identity=_identity(start, mode, config),
        force=config.force,
    )
    tuned: Tuned = finetuning.finetune(network, job, recipe, head, world, progress)
    return tuned


def _learned_and_watched(splits: Splits, recipe: Recipe, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Photos to learn from, and those judged after each epoch. What chooses an epoch never judges the model."""
    _, judged = splits.judged
    watched = splits.val if len(splits.val) else judged
    if recipe.keep == "last" or watched is not judged:
        return splits.train, watched
    train = splits.train
    chosen = set(held_out(train, range(len(train)), config.val_fraction, config.seed))
    return train.subset(i for i in range(len(train)) if i not in chosen), train.subset(sorted(chosen))


def _reserve(num_judged: int) -> float:
    """Seconds of a time limit that are kept for what comes after fine-tuning."""
    return RESERVE_S + num_judged / JUDGED_PER_S


def _identity(start: _Start, mode: str, config: TrainConfig) -> dict[str, str]:
    """What must be the same for an unfinished training to be continued."""
    return {
        "photos": start.material.fingerprint,
        "val_fraction": str(config.val_fraction),
        "backbone": config.backbone if start.backbone is None else f"{config.backbone} {start.backbone.graph_sha256}",
        "mode": mode,
        "recipe": config.recipe,
        "seed": str(config.seed),
    }


def _traced(folder: Path, tuned: "Tuned", config: TrainConfig) -> Graft:
    """A trained network as a backbone's graph and a head, which is what bundles are made of."""
    network = tuned.network
    layer: Any = network.module.get_submodule(network.heads[0])
    weight = layer.weight.detach().flatten(1).numpy()
    details = {
        "recipe": tuned.recipe.to_json(),
        "epoch": tuned.epoch,
        "stopped": tuned.stopped,
        "frozen_sha256": tuned.frozen_sha256,
        "history": tuned.rows,
    }
    mode = "full" if config.mode == "auto" else config.mode
    return Graft(mode, from_network(folder, network), weight, layer.bias.detach().numpy(), details)


def _judged(
    out: Path, graft: Graft, frozen: _Outcome | None, start: _Start, config: TrainConfig, progress: Progress
) -> _Outcome:
    """The tuned model as the bundle; where a frozen one stands already, only if it is the better one."""
    if frozen is None:
        return _delivered(out, graft, start, config, progress)
    sentence = ""

    def is_better(evaluation: Evaluation) -> bool:
        nonlocal sentence
        compared = pair("frozen", frozen.evaluation.right, "full", evaluation.right)
        wins = compared.b_only > compared.a_only and compared.p_value <= BETTER
        sentence = (
            f"{'full' if wins else 'frozen'}: right on {round(evaluation.accuracy.value * compared.n)} of {compared.n} "
            f"photos after fine-tuning, {round(frozen.evaluation.accuracy.value * compared.n)} before; full alone is "
            f"right on {compared.b_only}, frozen alone on {compared.a_only} (p = {compared.p_value:.2g})"
            + ("" if wins else "; without a clear gain the simpler one stays")
        )
        return wins

    evaluation = deliver(out, graft, start.material, config, progress, accept=is_better)
    if sentence.startswith("full"):
        return _Outcome(graft, evaluation, sentence)
    return replace(frozen, decision=sentence)


def _summary(out: Path, start: _Start, outcome: _Outcome, progress: Progress) -> dict[str, Any]:
    return summarise(out, outcome.graft, start.material, outcome.evaluation, outcome.decision, progress)
