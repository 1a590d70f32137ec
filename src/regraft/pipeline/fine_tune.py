"""The last rungs of a training: gradient descent, its network as a bundle, and whether that beats what is there."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.backbones.backbone import Backbone, from_network
from regraft.backbones.catalog import RANDOM
from regraft.backbones.features import Features, extract
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError
from regraft.core.runtime import import_torch_module
from regraft.data.scan import Dataset
from regraft.data.splits import Splits, held_out
from regraft.evaluation.comparison import Pair, pair
from regraft.evaluation.evaluate import Evaluation
from regraft.models.calibration import calibrated
from regraft.models.linear_head import Head, out_of_fold
from regraft.models.ood import FamiliarRegion, familiar
from regraft.pipeline.linear_probe import folds_for, head_of
from regraft.run import Candidate, RunContext, TrainedModel, TrainInputs, deliver
from regraft.training.recipe import Recipe, choose, decide

if TYPE_CHECKING:
    from regraft.training.finetune import Tuned

NUM_KNOWN = 500  # photos that tell what a tuned network knows
VIEWS = 6  # versions of each photo that the last stages learn from, in turn
FEW = 50  # photos to judge on; with fewer, an open comparison is repeated by cross-validation


@dataclass(frozen=True)
class Phase:
    """One training by gradient descent. name: in comparisons.  folder: in the run's, for what it continues from.

    in_part: whether the last stages alone learn, behind frozen ones that run once.
    """

    name: str
    folder: str
    in_part: bool


LAST_STAGES, FULL = Phase("last stages", "stages", True), Phase("full", ".", False)


def phases(config: TrainConfig) -> tuple[Phase, ...]:
    """What is trained in turn. Whoever fixes something of the recipe wants that training alone."""
    return (FULL,) if config.mode != "auto" or config.recipe != "regraft" or config.settings else (LAST_STAGES, FULL)


def tuned_on_split(inputs: TrainInputs, head: Head | None, phase: Phase, context: RunContext) -> "Tuned":
    """Gradient descent on the photos to learn from."""
    splits = inputs.photos_split.splits
    network = _network(inputs, context.config)
    decided = decide(context.mode, len(splits.train), from_solved=head is not None and context.config.weights != RANDOM)
    if phase.in_part:
        decided = replace(decided, unfreeze=import_torch_module("backbones.stages").last_half(network), views=VIEWS)
    recipe = choose(context.config.recipe, decided, context.mode, context.config.settings)
    train, val = _learned_and_watched(splits, recipe, context.config)
    left_s = context.left_s(len(splits.judged[1]) + min(NUM_KNOWN, len(splits.train)))
    on_row = partial(context.trackers.row, part="last_stages" if phase.in_part else "")
    job = {"train": train, "val": val, "budget_s": left_s, "folder": context.out / phase.folder, "on_row": on_row}
    return _tuned(network, inputs, head, recipe, job, context)


def _network(inputs: TrainInputs, config: TrainConfig) -> Any:
    """Where gradient descent begins: the pretrained network, or random weights."""
    networks = import_torch_module("backbones.network")
    if inputs.backbone is None:
        return networks.build(config.backbone, RANDOM, seed=config.seed)
    return networks.restore(inputs.backbone.info, inputs.backbone.trunk)


def _tuned(
    network: Any, inputs: TrainInputs, head: Head | None, recipe: Recipe, job: dict[str, Any], context: RunContext
) -> "Tuned":
    """Gradient descent from a network. job: the parts of a Job that differ."""
    finetuning, config = import_torch_module("training.finetune"), context.config
    whole = finetuning.FineTuneJob(
        **job, seed=config.seed, workers=config.workers, identity=_identity(inputs, context), force=config.force
    )
    tuned: Tuned = finetuning.finetune(network, whole, recipe, head, context.world, context.progress)
    return tuned


def _learned_and_watched(splits: Splits, recipe: Recipe, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Photos to learn from, and those judged after each epoch. What chooses an epoch never judges the model."""
    _, judged = splits.judged
    watched = splits.val if len(splits.val) else judged
    if recipe.keep == "last" or watched is not judged:
        return splits.train, watched
    train = splits.train
    chosen = set(held_out(train, range(len(train)), config.val_fraction, config.seed))
    if not chosen:
        raise ConfigError("--keep best needs a class with two photos to learn from, to set one apart. Leave it out.")
    return train.subset(i for i in range(len(train)) if i not in chosen), train.subset(sorted(chosen))


def _identity(inputs: TrainInputs, context: RunContext) -> dict[str, str]:
    """What must be the same for an unfinished training to be continued."""
    config = context.config
    return {
        "photos": inputs.photos_split.fingerprint,
        "val_fraction": str(config.val_fraction),
        "num_folds": str(config.num_folds),
        "group_by": str(config.group_by),
        "backbone": config.backbone if inputs.backbone is None else f"{config.backbone} {inputs.backbone.graph_sha256}",
        "mode": context.mode,
        "recipe": config.recipe,
        "seed": str(config.seed),
    }


def traced(folder: Path, tuned: "Tuned", inputs: TrainInputs, context: RunContext) -> TrainedModel:
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
    backbone = from_network(folder, network)
    if inputs.backbone is not None:  # where it began
        backbone = replace(backbone, info={**backbone.info, "loaded": inputs.backbone.info["loaded"]})
        details["first_layer"] = inputs.backbone.folder.name
    bias, splits = layer.bias.detach().numpy(), inputs.photos_split.splits
    unseen = extract(backbone, splits.val if len(splits.val) else splits.judged[1], progress=context.progress)[1]
    temperature, thresholds = calibrated(np.empty((0, len(bias))), np.empty(0, np.int64))  # nothing to go by
    if splits.test is not None and len(splits.val):  # photos that it has not learned from, and that are not scored
        temperature, thresholds = calibrated(unseen.x @ weight.T + bias, unseen.y)
    known = _known(backbone, splits.train, unseen, context)
    return TrainedModel(context.mode, backbone, weight, bias, details, None, temperature, thresholds, known)


def _known(backbone: Backbone, train: Dataset, unseen: Features, context: RunContext) -> FamiliarRegion | None:
    """Where features lie of photos that the network has learned from, as far as they tell of those it has not."""
    some = sorted(range(len(train)), key=lambda i: train.hashes[i])[:NUM_KNOWN]
    _, learned = extract(backbone, train.subset(some), progress=context.progress)
    return familiar(learned, unseen)


def name_of(best: Candidate) -> str:
    """What the model that is there is called in comparisons."""
    recipe = best.model.details.get("recipe")
    return "frozen" if recipe is None else LAST_STAGES.name if recipe["views"] else FULL.name


def better(model: TrainedModel, phase: Phase, best: Candidate, inputs: TrainInputs, context: RunContext) -> Candidate:
    """The tuned model as the bundle if it is clearly better on the same photos, else the best one that is there."""
    found: list[tuple[Pair, str]] = []

    def is_better(evaluation: Evaluation) -> bool:
        a = evaluation.accuracy
        compared, how = pair(name_of(best), best.evaluation.right, phase.name, evaluation.right), a.split
        few = compared.is_open and a.n < FEW and not inputs.photos_split.splits.given and context.world.size == 1
        if few and best.features is not None:
            context.progress.say(f"{compared.decision(how)}: undecided, so both are cross-validated")
            compared, how = _cross_compared(inputs, best.features, model, phase, context), "cross-validated"
        found.append((compared, how))
        return compared.b_wins

    evaluation = deliver(model, inputs.photos_split, context, accept=is_better)
    compared, how = found[0]
    kept = Candidate(model, evaluation) if compared.b_wins else best
    return replace(kept, decision=sentences(best.decision, compared.decision(how)))


def sentences(*parts: str) -> str:
    """In a row, empty ones left out."""
    return ". ".join(part.removesuffix(".") for part in parts if part)


def _cross_compared(
    inputs: TrainInputs, features: Features, model: TrainedModel, phase: Phase, context: RunContext
) -> Pair:
    """Frozen and tuned on every photo, each judged by models that have not seen it."""
    dataset, recipe = inputs.photos_split.dataset, Recipe(**model.details["recipe"])
    folds = folds_for(dataset, context.config)
    said = np.full(len(dataset), -1)
    numbers = [int(number) for number in np.unique(folds[folds >= 0])]
    for done, number in enumerate(numbers):
        inside = np.flatnonzero(folds == number)
        train, val = dataset.subset(np.flatnonzero(folds != number)), dataset.subset(inside)
        left_s = context.left_s(0)
        budget_s = None if left_s is None else left_s / (len(numbers) - done)
        context.progress.say(f"fold {done + 1} of {len(numbers)}")
        job = {
            "train": train,
            "val": val,
            "budget_s": budget_s,
            "folder": context.out / phase.folder / "folds" / str(number),
        }
        head = head_of(inputs.features, train, context.config) if inputs.features else None
        said[inside] = _tuned(_network(inputs, context.config), inputs, head, recipe, job, context).answers
    judged = folds >= 0
    penalty = head_of(features, dataset, context.config).penalty
    frozen = np.nan_to_num(out_of_fold(features, len(dataset.classes), folds, penalty)).argmax(axis=1)
    return pair("frozen", (frozen == dataset.labels)[judged], phase.name, (said == dataset.labels)[judged])
