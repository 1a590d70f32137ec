"""The last rungs of a training: gradient descent, its network as a bundle, and whether that beats what is there."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.backbones.catalog import RANDOM
from regraft.backbones.familiar import Familiar, familiar
from regraft.backbones.features import Features, extract
from regraft.backbones.graph import Backbone, from_network
from regraft.data.grey_range import grey_bits
from regraft.data.scan import Dataset
from regraft.data.splits import Splits, held_out
from regraft.deliver.evaluate import Evaluation
from regraft.frozen import folds_for, head_of
from regraft.ground.config import TrainConfig
from regraft.ground.errors import ConfigError
from regraft.ground.runtime import torch_room
from regraft.learn.calibrate import calibrated
from regraft.learn.compare import Pair, pair
from regraft.learn.head import Head, out_of_fold
from regraft.learn.recipe import Recipe, choose, decide
from regraft.run import Graft, Here, Outcome, Start, deliver

if TYPE_CHECKING:
    from regraft.learn.finetune import Tuned

NUM_KNOWN = 500  # photos that tell what a tuned network knows
VIEWS = 6  # versions of each photo that the last stages learn from, in turn
FEW = 50  # photos to judge on; with fewer, an open comparison is repeated by cross-validation


@dataclass(frozen=True)
class Rung:
    """One training by gradient descent. name: in comparisons.  folder: in the run's, for what it continues from.

    in_part: whether the last stages alone learn, behind frozen ones that run once.
    """

    name: str
    folder: str
    in_part: bool


LAST_STAGES, FULL = Rung("last stages", "stages", True), Rung("full", ".", False)


def rungs(config: TrainConfig) -> tuple[Rung, ...]:
    """What is trained in turn. Whoever fixes something of the recipe wants that training alone."""
    return (FULL,) if config.mode != "auto" or config.recipe != "regraft" or config.settings else (LAST_STAGES, FULL)


def tuned_on_split(start: Start, head: Head | None, rung: Rung, here: Here) -> "Tuned":
    """Gradient descent on the photos to learn from."""
    splits = start.material.splits
    network = _network(start, here.config)
    decided = decide(here.mode, len(splits.train), from_solved=head is not None and here.config.weights != RANDOM)
    if rung.in_part:
        decided = replace(decided, unfreeze=torch_room("backbones.stages").last_half(network), views=VIEWS)
    recipe = choose(here.config.recipe, decided, here.mode, here.config.settings)
    train, val = _learned_and_watched(splits, recipe, here.config)
    left_s = here.left_s(len(splits.judged[1]) + min(NUM_KNOWN, len(splits.train)))
    on_row = partial(here.told.row, part="last_stages" if rung.in_part else "")
    job = {"train": train, "val": val, "budget_s": left_s, "folder": here.out / rung.folder, "on_row": on_row}
    return _tuned(network, start, head, recipe, job, here)


def _network(start: Start, config: TrainConfig) -> Any:
    """Where gradient descent begins: the pretrained network, or random weights."""
    networks = torch_room("backbones.network")
    if start.backbone is None:
        network = networks.build(config.backbone, RANDOM, seed=config.seed)
        bits = grey_bits(start.material.dataset)
        return replace(network, preprocessing=replace(network.preprocessing, grey_bits=bits))
    return networks.restore(start.backbone.info, start.backbone.trunk)


def _tuned(network: Any, start: Start, head: Head | None, recipe: Recipe, job: dict[str, Any], here: Here) -> "Tuned":
    """Gradient descent from a network. job: the parts of a Job that differ."""
    finetuning, config = torch_room("learn.finetune"), here.config
    whole = finetuning.Job(
        **job, seed=config.seed, workers=config.workers, identity=_identity(start, here), force=config.force
    )
    tuned: Tuned = finetuning.finetune(network, whole, recipe, head, here.world, here.progress)
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


def _identity(start: Start, here: Here) -> dict[str, str]:
    """What must be the same for an unfinished training to be continued."""
    config = here.config
    return {
        "photos": start.material.fingerprint,
        "val_fraction": str(config.val_fraction),
        "num_folds": str(config.num_folds),
        "group_by": str(config.group_by),
        "backbone": config.backbone if start.backbone is None else f"{config.backbone} {start.backbone.graph_sha256}",
        "mode": here.mode,
        "recipe": config.recipe,
        "seed": str(config.seed),
    }


def traced(folder: Path, tuned: "Tuned", start: Start, here: Here) -> Graft:
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
    if start.backbone is not None:  # where it began
        backbone = replace(backbone, info={**backbone.info, "loaded": start.backbone.info["loaded"]})
        details["first_layer"] = start.backbone.folder.name
    bias, splits = layer.bias.detach().numpy(), start.material.splits
    unseen = extract(backbone, splits.val if len(splits.val) else splits.judged[1], progress=here.progress)[1]
    calm, promises = calibrated(np.empty((0, len(bias))), np.empty(0, np.int64))  # nothing to go by
    if splits.test is not None and len(splits.val):  # photos that it has not learned from, and that are not scored
        calm, promises = calibrated(unseen.x @ weight.T + bias, unseen.y)
    known = _known(backbone, splits.train, unseen, here)
    return Graft(here.mode, backbone, weight, bias, details, None, calm, promises, known)


def _known(backbone: Backbone, train: Dataset, unseen: Features, here: Here) -> Familiar | None:
    """Where features lie of photos that the network has learned from, as far as they tell of those it has not."""
    some = sorted(range(len(train)), key=lambda i: train.hashes[i])[:NUM_KNOWN]
    _, learned = extract(backbone, train.subset(some), progress=here.progress)
    return familiar(learned, unseen)


def name_of(best: Outcome) -> str:
    """What the model that is there is called in comparisons."""
    recipe = best.graft.details.get("recipe")
    return "frozen" if recipe is None else LAST_STAGES.name if recipe["views"] else FULL.name


def better(graft: Graft, rung: Rung, best: Outcome, start: Start, here: Here) -> Outcome:
    """The tuned model as the bundle if it is clearly better on the same photos, else the best one that is there."""
    found: list[tuple[Pair, str]] = []

    def is_better(evaluation: Evaluation) -> bool:
        a = evaluation.accuracy
        compared, how = pair(name_of(best), best.evaluation.right, rung.name, evaluation.right), a.split
        few = compared.is_open and a.n < FEW and not start.material.splits.given and here.world.size == 1
        if few and best.features is not None:
            here.progress.say(f"{compared.decision(how)}: undecided, so both are cross-validated")
            compared, how = _cross_compared(start, best.features, graft, rung, here), "cross-validated"
        found.append((compared, how))
        return compared.b_wins

    evaluation = deliver(graft, start.material, here, accept=is_better)
    compared, how = found[0]
    kept = Outcome(graft, evaluation) if compared.b_wins else best
    return replace(kept, decision=sentences(best.decision, compared.decision(how)))


def sentences(*parts: str) -> str:
    """In a row, empty ones left out."""
    return ". ".join(part.removesuffix(".") for part in parts if part)


def _cross_compared(start: Start, features: Features, graft: Graft, rung: Rung, here: Here) -> Pair:
    """Frozen and tuned on every photo, each judged by models that have not seen it."""
    dataset, recipe = start.material.dataset, Recipe(**graft.details["recipe"])
    folds = folds_for(dataset, here.config)
    said = np.full(len(dataset), -1)
    numbers = [int(number) for number in np.unique(folds[folds >= 0])]
    for done, number in enumerate(numbers):
        inside = np.flatnonzero(folds == number)
        train, val = dataset.subset(np.flatnonzero(folds != number)), dataset.subset(inside)
        left_s = here.left_s(0)
        budget_s = None if left_s is None else left_s / (len(numbers) - done)
        here.progress.say(f"fold {done + 1} of {len(numbers)}")
        job = {
            "train": train,
            "val": val,
            "budget_s": budget_s,
            "folder": here.out / rung.folder / "folds" / str(number),
        }
        head = head_of(start.features, train, here.config) if start.features else None
        said[inside] = _tuned(_network(start, here.config), start, head, recipe, job, here).answers
    judged = folds >= 0
    penalty = head_of(features, dataset, here.config).penalty
    frozen = np.nan_to_num(out_of_fold(features, len(dataset.classes), folds, penalty)).argmax(axis=1)
    return pair("frozen", (frozen == dataset.labels)[judged], rung.name, (said == dataset.labels)[judged])
