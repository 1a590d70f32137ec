"""The last rungs of a training: gradient descent, its network as a bundle, and whether that beats what is there."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.backbones.catalog import RANDOM
from regraft.backbones.familiar import Familiar, familiar
from regraft.backbones.features import Features, FeatureTable, extract
from regraft.backbones.graph import Backbone, from_network
from regraft.data.grey_range import grey_bits
from regraft.data.scan import Dataset
from regraft.data.splits import Splits, held_out
from regraft.frozen import folds_for, head_of
from regraft.ground.config import TrainConfig
from regraft.ground.errors import ConfigError
from regraft.ground.files import sha256_json
from regraft.ground.runtime import torch_room
from regraft.ground.statistics import Accuracy, accuracy
from regraft.learn.calibrate import calibrated
from regraft.learn.compare import pair
from regraft.learn.head import Head
from regraft.learn.recipe import Recipe, choose, decide
from regraft.learn.selection import Selection
from regraft.run import Graft, Here, Outcome, Start, delivered

if TYPE_CHECKING:
    from regraft.learn.finetune import Tuned

NUM_KNOWN = 500  # photos that tell what a tuned network knows
VIEWS = 6  # versions of each photo that the last stages learn from, in turn
FEW = 50  # photos that choose; with fewer, an open comparison is repeated by cross-validation


@dataclass(frozen=True)
class Rung:
    """One training by gradient descent. name: in comparisons.  folder: in the run's, for what it continues from.

    in_part: whether the last stages alone learn, behind frozen ones that run once.
    """

    name: str
    folder: str
    in_part: bool


LAST_STAGES, FULL = Rung("last stages", "stages", True), Rung("full", ".", False)


@dataclass(frozen=True)
class Candidate:
    """A model that is there, and what speaks for it.

    Attributes:
        outcome: The model as the run's bundle.
        correct: `(N,)` bool, which of the photos that choose it has right.
        counts: How many photos it has right that it has not seen, of several kinds; none of them judge.
    """

    outcome: Outcome
    correct: np.ndarray
    counts: tuple[Accuracy | None, ...]


def rungs(config: TrainConfig, is_shifted: bool = False) -> tuple[Rung, ...]:
    """What is trained in turn. Whoever fixes something of the recipe wants that training alone.

    is_shifted: whether val is answered much worse than cross-validation says: then all layers have to learn, at once.
    """
    is_direct = config.mode != "auto" or config.recipe != "regraft" or config.settings or is_shifted
    return (FULL,) if is_direct else (LAST_STAGES, FULL)


def learning_from(start: Start, learned: Dataset) -> Start:
    """The same, but that gradient descent learns from some of the photos to learn from."""
    material = start.material
    return replace(start, material=replace(material, splits=replace(material.splits, train=learned)))


def tuned_on_split(start: Start, head: Head | None, rung: Rung, here: Here) -> "Tuned":
    """Gradient descent on the photos to learn from. Raises TooLittleTime where auto had better not begin."""
    splits = start.material.splits
    network = _network(start, here.config)
    decided = decide(here.mode, len(splits.train), from_solved=head is not None and here.config.weights != RANDOM)
    if rung.in_part:
        decided = replace(decided, unfreeze=torch_room("backbones.stages").last_half(network), views=VIEWS)
    recipe = choose(here.config.recipe, decided, here.mode, here.config.settings)
    train, val = _learned_and_watched(splits, recipe, here.config)
    left_s = here.left_s(len(splits.judged[1]) + min(NUM_KNOWN, len(splits.train)))
    on_row = partial(here.told.row, part="last_stages" if rung.in_part else "")
    is_optional = here.config.mode == "auto" and here.config.is_solved
    job = {"train": train, "val": val, "budget_s": left_s, "folder": here.out / rung.folder, "on_row": on_row}
    job["is_optional"] = is_optional
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
        "learned": sha256_json(sorted(start.material.splits.train.hashes)),
        "val_fraction": str(config.val_fraction),
        "num_folds": str(config.num_folds),
        "group_by": str(config.group_by),
        "backbone": config.backbone if start.backbone is None else f"{config.backbone} {start.backbone.graph_sha256}",
        "mode": here.mode,
        "recipe": config.recipe,
        "seed": str(config.seed),
    }


def traced(folder: Path, tuned: "Tuned", start: Start, unseen: Dataset, here: Here) -> Graft:
    """A trained network as a backbone's graph and a head, which is what bundles are made of.

    unseen: photos that it has not learned from, which tell how far those may lie that are like them.
    """
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
    calm, promises = calibrated(np.empty((0, len(bias))), np.empty(0, np.int64))  # nothing to go by
    if splits.test is not None and len(splits.val):  # photos that it has not learned from, and that are not scored
        own = extract(backbone, splits.val, progress=here.progress)[1]
        calm, promises = calibrated(own.x @ weight.T + bias, own.y)
    known = _known(backbone, splits.train, extract(backbone, unseen, progress=here.progress)[1], here)
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


def correct_of(graft: Graft, photos: Dataset, here: Here) -> np.ndarray:
    """`(N,)` bool: which photos a model has right."""
    if not len(photos):
        return np.zeros(0, bool)
    features = extract(graft.backbone, photos, progress=here.progress)[1]
    return np.asarray((features.x @ graft.weight.T + graft.bias).argmax(axis=1) == features.y)


def better(graft: Graft, rung: Rung, best: Candidate, selection: Selection, start: Start, here: Here) -> Candidate:
    """The tuned model as the bundle if it is clearly better on the photos that choose, else the one that is there.

    Photos that judge have no part in it: a model that is not chosen is never judged.
    """
    name, correct = name_of(best.outcome), correct_of(graft, selection.photos, here)
    compared, how = pair(name, best.correct, rung.name, correct), selection.name
    counts: tuple[Accuracy | None, ...] = (selection.count(correct),)
    is_open = compared.is_open and compared.n < FEW and here.world.size == 1
    if is_open and best.outcome.features is not None and selection.is_set_aside:
        here.progress.say(f"{compared.decision(how)}: undecided, so both are cross-validated")
        frozen, tuned = _cross_validated(start, best.outcome.features, graft, rung, here)
        compared, how = pair(name, frozen, rung.name, tuned), "cross-validated"
        counts = (accuracy(int(tuned.sum()), len(tuned), how),)
    decision = sentences(best.outcome.decision, compared.decision(how))
    if compared.b_wins:
        graft = replace(graft, details={**graft.details, "chosen_on": selection.to_json()})
        best = Candidate(delivered(graft, start.material, here), correct, counts)
    return replace(best, outcome=replace(best.outcome, decision=decision))


def sentences(*parts: str) -> str:
    """In a row, empty ones left out."""
    return ". ".join(part.removesuffix(".") for part in parts if part)


def _cross_validated(
    start: Start, features: FeatureTable, graft: Graft, rung: Rung, here: Here
) -> tuple[np.ndarray, np.ndarray]:
    """Which photos to learn from frozen and tuned have right, `(n,)` bool each, by models that have not seen them."""
    photos, recipe = start.material.splits.train, Recipe(**graft.details["recipe"])
    folds = folds_for(photos, here.config)
    said = np.full(len(photos), -1)
    numbers = [int(number) for number in np.unique(folds[folds >= 0])]
    for done, number in enumerate(numbers):
        inside = np.flatnonzero(folds == number)
        train, val = photos.subset(np.flatnonzero(folds != number)), photos.subset(inside)
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
    compared = folds >= 0
    held_out = head_of(features, photos, here.config).held_out
    frozen = np.nan_to_num(held_out, nan=-np.inf).argmax(axis=1)
    return (frozen == photos.labels)[compared], (said == photos.labels)[compared]
