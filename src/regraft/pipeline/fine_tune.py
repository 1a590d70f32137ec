"""The last phases of a training: gradient descent, its network as a bundle, and whether that beats the best so far."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.backbones.backbone import Backbone, from_network
from regraft.backbones.catalog import RANDOM
from regraft.backbones.features import Features, FeatureTable, extract
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError
from regraft.core.files import sha256_json
from regraft.core.runtime import import_torch_module
from regraft.core.statistics import Accuracy, accuracy
from regraft.data.grey_range import grey_bits
from regraft.data.scan import Dataset
from regraft.data.splits import Splits, held_out
from regraft.evaluation.comparison import pair
from regraft.models.calibration import calibrated, softening
from regraft.models.linear_head import Head
from regraft.models.logistic import log_softmax
from regraft.models.ood import OodDetector, fit_ood_detector
from regraft.pipeline.linear_probe import folds_for, head_of
from regraft.pipeline.selection import HeldOutPredictions, Selection
from regraft.run import Outcome, RunContext, TrainedModel, TrainInputs, save_bundle
from regraft.training.recipe import Recipe, choose_recipe, decide

if TYPE_CHECKING:
    from regraft.training.finetune import Tuned

NUM_KNOWN = 500  # photos whose features show which photos a tuned network knows
VIEWS = 6  # versions of each photo that the last stages learn from, in turn
FEW = 50  # photos that choose between models; with fewer, an open comparison is repeated by cross-validation


@dataclass(frozen=True)
class Phase:
    """One training by gradient descent.

    Attributes:
        name: What it is called in comparisons.
        folder: Where it keeps what it continues from, relative to the run's folder.
        in_part: Whether the last stages alone learn, behind frozen ones that run once.
        part: What trackers call it, "" for nothing.
        least: Share of its epochs without which it is not begun in mode auto.
    """

    name: str
    folder: str
    in_part: bool
    part: str = ""
    least: float = 0.5

    def refit(self) -> "Phase":
        """Return the same training, to be done again on more photos: as a whole or not at all."""
        return replace(self, folder="refit", part="refit", least=1.0)


LAST_STAGES = Phase("last stages", "stages", in_part=True, part="last_stages")
FULL = Phase("full", ".", in_part=False)


@dataclass(frozen=True)
class Candidate:
    """A model that is there, and what speaks for it.

    Attributes:
        outcome: The model as the run's bundle.
        answers: To the photos that choose between models.
        counts: How many it has right of photos that it has not seen, of several kinds; the reported accuracy comes from
            none of them.
    """

    outcome: Outcome
    answers: HeldOutPredictions
    counts: tuple[Accuracy | None, ...]


def phases_for(config: TrainConfig, is_far: bool = False) -> tuple[Phase, ...]:
    """List what is trained in turn; one training alone where the user has fixed something of the recipe.

    Args:
        config: How to train.
        is_far: Whether photos from elsewhere are to be answered: then all layers learn, at once, and the last stages
            alone only where the time is too short for that.
    """
    is_direct = config.mode != "auto" or config.recipe != "regraft" or config.settings
    return (FULL,) if is_direct else (FULL, LAST_STAGES) if is_far else (LAST_STAGES, FULL)


def learning_from(inputs: TrainInputs, learned: Dataset) -> TrainInputs:
    """Return the same inputs, but with gradient descent learning from `learned` instead of the whole train split."""
    photos_split = inputs.photos_split
    return replace(inputs, photos_split=replace(photos_split, splits=replace(photos_split.splits, train=learned)))


def tuned_on_split(
    inputs: TrainInputs,
    head: Head | None,
    phase: Phase,
    context: RunContext,
    selection: Selection | None = None,
) -> "Tuned":
    """Train a network by gradient descent on the photos to learn from.

    Args:
        inputs: The photos, and the backbone to begin from.
        head: Solved on the backbone's features, for a recipe that begins with it; None where none was solved.
        phase: Which layers learn.
        context: Of the run.
        selection: The photos that choose, and whether photos from elsewhere are to be answered; None where no head was
            solved, by which that is seen.

    Raises:
        TooLittleTime: In mode auto, where less of the epochs than the phase needs would fit into the time that is left.
        ConfigError: The recipe keeps the best epoch, and no photo can be set apart to choose it by.
    """
    splits = inputs.photos_split.splits
    is_far, choosing = (selection.is_far, selection.from_elsewhere) if selection else (False, None)
    network = _network(inputs, context.config)
    is_solved = head is not None and context.config.weights != RANDOM
    decided = decide(context.mode, len(splits.train), from_solved=is_solved, is_far=is_far)
    if phase.in_part:
        decided = replace(decided, unfreeze=import_torch_module("backbones.stages").last_half(network), views=VIEWS)
    recipe = choose_recipe(context.config.recipe, decided, context.mode, context.config.settings)
    train, val = _learned_and_watched(splits, recipe, context.config)
    val_chooses = choosing is not None and "interpolation" not in context.config.settings
    val = val if choosing is None else choosing
    left_s = context.left_s(len(splits.eval_photos) + min(NUM_KNOWN, len(splits.train)))
    on_row = partial(context.trackers.row, part=phase.part)
    least = phase.least if context.config.mode == "auto" and context.config.is_solved else 0.0
    job = {"train": train, "val": val, "budget_s": left_s, "folder": context.out / phase.folder, "on_row": on_row}
    job |= {"least": least, "may_shrink": context.config.recipe == "regraft", "val_chooses": val_chooses}
    return _tuned(network, inputs, head, recipe, job, context)


def _network(inputs: TrainInputs, config: TrainConfig) -> Any:
    """Return the network that gradient descent begins with: the pretrained one, or one of random weights."""
    networks = import_torch_module("backbones.network")
    if inputs.backbone is None:
        network = networks.build(config.backbone, RANDOM, seed=config.seed)
        bits = grey_bits(inputs.photos_split.dataset)
        return replace(network, preprocessing=replace(network.preprocessing.fitted(config.fit), grey_bits=bits))
    return networks.restore(inputs.backbone.info, inputs.backbone.trunk)


def _tuned(
    network: Any, inputs: TrainInputs, head: Head | None, recipe: Recipe, job: dict[str, Any], context: RunContext
) -> "Tuned":
    """Train a network by gradient descent; `job` has the fields of FineTuneJob that differ from phase to phase."""
    finetuning, config = import_torch_module("training.finetune"), context.config
    if head is not None and recipe.head_start == "softened" and inputs.features is not None:
        head = _softened(head, inputs.features.of(job["train"]))
    whole = finetuning.FineTuneJob(
        **job, seed=config.seed, workers=config.workers, identity=_identity(inputs, context), force=config.force
    )
    tuned: Tuned = finetuning.finetune(network, whole, recipe, head, context.world, context.progress)
    return tuned


def _softened(head: Head, learned: Features) -> Head:
    """Return a head that is less sure of the photos that it was solved on."""
    factor = np.float32(softening(head.logits(learned.x), learned.y))
    return replace(head, weight=factor * head.weight, bias=factor * head.bias)


def _learned_and_watched(splits: Splits, recipe: Recipe, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Return the photos to learn from, and those that the network is evaluated on after each epoch.

    The reported accuracy never comes from photos that chose an epoch. Raises ConfigError where none can be set apart.
    """
    watched = splits.val if len(splits.val) else splits.eval_photos
    if recipe.keep == "last" or watched is not splits.eval_photos:
        return splits.train, watched
    train = splits.train
    chosen = set(held_out(train, range(len(train)), config.val_fraction, config.seed))
    if not chosen:
        raise ConfigError("--keep best needs a class with two photos to learn from, to set one apart. Leave it out.")
    return train.subset(i for i in range(len(train)) if i not in chosen), train.subset(sorted(chosen))


def _identity(inputs: TrainInputs, context: RunContext) -> dict[str, str]:
    """Return what must be the same for an unfinished training to be continued."""
    config = context.config
    return {
        "photos": inputs.photos_split.fingerprint,
        "learned": sha256_json(sorted(inputs.photos_split.splits.train.hashes)),
        "val_fraction": str(config.val_fraction),
        "num_folds": str(config.num_folds),
        "group_by": str(config.group_by),
        "backbone": " ".join(filter(None, (config.backbone, *_backbone_identity(inputs, config)))),
        "mode": context.mode,
        "recipe": config.recipe,
        "seed": str(config.seed),
    }


def _backbone_identity(inputs: TrainInputs, config: TrainConfig) -> tuple[str | None, ...]:
    """Return what a network's name leaves open: the weights' graph, and how photos fit its input if not cropped."""
    if inputs.backbone is None:
        return (config.fit,)
    crop_mode = inputs.backbone.preprocessing.crop_mode
    return inputs.backbone.graph_sha256, None if crop_mode == "center" else crop_mode


def trace_tuned(
    folder: Path, tuned: "Tuned", inputs: TrainInputs, unseen: Dataset, context: RunContext
) -> TrainedModel:
    """Turn a trained network into a backbone's graph and a head, which is what bundles are made of.

    Args:
        folder: For the backbone's files.
        tuned: The network, and how its training went.
        inputs: The photos that it has learned from, and the backbone that it began with.
        unseen: Photos that it has not learned from. They set the limit beyond which a photo is unlike the training
            photos; and those that the model is not evaluated on set temperature and thresholds.
        context: Of the run.
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
    if inputs.backbone is not None:  # of the backbone that it began with
        backbone = replace(backbone, info={**backbone.info, "loaded": inputs.backbone.info["loaded"]})
        details["first_layer"] = inputs.backbone.folder.name
    bias, splits = layer.bias.detach().numpy(), inputs.photos_split.splits
    unseen_features = _features_of(backbone, unseen, context)
    evaluated = set(splits.eval_photos.hashes)
    chosen = np.array([content not in evaluated for content in unseen_features.hashes], bool)
    temperature, thresholds = calibrated((unseen_features.x @ weight.T + bias)[chosen], unseen_features.y[chosen])
    ood = _ood_detector(backbone, splits.train, unseen_features, context)
    return TrainedModel(context.mode, backbone, weight, bias, details, None, temperature, thresholds, ood)


def _ood_detector(backbone: Backbone, train: Dataset, unseen: Features, context: RunContext) -> OodDetector | None:
    """Find where features of training photos lie, with a limit set by photos that the network has not learned from."""
    some = sorted(range(len(train)), key=lambda i: train.hashes[i])[:NUM_KNOWN]
    return fit_ood_detector(_features_of(backbone, train.subset(some), context), unseen)


def _features_of(backbone: Backbone, photos: Dataset, context: RunContext) -> Features:
    """Compute features of some of the photos, with their labels among the classes of all, one row for each."""
    return extract(backbone, photos, progress=context.progress)[1].by_content.of(photos)


def candidate_name(best: Outcome) -> str:
    """Return what the best model so far is called in comparisons."""
    recipe = best.model.details.get("recipe")
    return "frozen" if recipe is None else LAST_STAGES.name if recipe["views"] else FULL.name


def answers_of(model: TrainedModel, photos: Dataset, context: RunContext) -> HeldOutPredictions:
    """Return what a model answers to photos that it has not seen."""
    if not len(photos):
        return HeldOutPredictions(np.zeros((0, len(photos.classes))), photos.labels)
    logits = _features_of(model.backbone, photos, context).x @ model.weight.T + model.bias
    return HeldOutPredictions(log_softmax(logits.astype(np.float64)), photos.labels)


def better(
    model: TrainedModel, phase: Phase, best: Candidate, selection: Selection, inputs: TrainInputs, context: RunContext
) -> Candidate:
    """Make the tuned model the bundle if it is clearly better on the photos that choose; else keep the best so far.

    Clearly better is right on more of them than chance explains; or on as many, with clearly less loss.
    Where photos from elsewhere are to be answered it has to be no worse: layers that learn are expected to be better.
    Photos that the reported accuracy comes from have no part in it: on them, only a model that is chosen is evaluated.
    In one process, an open comparison with a frozen model on few photos set aside is repeated by cross-validation.

    Args:
        model: The tuned model.
        phase: What it was trained in.
        best: The best model so far.
        selection: The photos that choose.
        inputs: The photos to learn from, for cross-validation.
        context: Of the run.

    Returns:
        The better one, its decision with a sentence more.
    """
    name, answers = candidate_name(best.outcome), answers_of(model, selection.photos, context)
    compared, how = pair(name, best.answers.correct, phase.name, answers.correct), selection.name
    losses = answers.clearly_less_loss(best.answers)
    counts: tuple[Accuracy | None, ...] = (selection.count(answers.correct),)
    is_open = compared.is_open and losses is None and not selection.is_far and compared.n < FEW
    features = best.outcome.features if selection.is_set_aside and context.world.size == 1 else None
    if is_open and features is not None:
        context.progress.say(f"{compared.decision(how)}: undecided, so both are cross-validated")
        frozen, tuned = _cross_validated(inputs, features, model, phase, context)
        compared, how = pair(name, frozen, phase.name, tuned), "cross-validated"
        counts = (accuracy(int(tuned.sum()), len(tuned), how),)
    sentence = compared.decision(how, is_b_expected=selection.is_far, losses=losses)
    decision = sentences(best.outcome.decision, sentence)
    if compared.b_wins or (compared.b_is_no_worse and (selection.is_far or losses is not None)):
        model = replace(model, details={**model.details, "chosen_on": selection.to_json()})
        best = Candidate(save_bundle(model, inputs.photos_split, context), answers, counts)
    return replace(best, outcome=replace(best.outcome, decision=decision))


def sentences(*parts: str) -> str:
    """Join sentences by full stops, empty ones left out."""
    return ". ".join(part.removesuffix(".") for part in parts if part)


def _cross_validated(
    inputs: TrainInputs, features: FeatureTable, model: TrainedModel, phase: Phase, context: RunContext
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-validate the frozen and the tuned model on the photos to learn from.

    Returns:
        Which of n photos either has right, `(n,)` bool each, by models that have not seen them.
    """
    photos, recipe = inputs.photos_split.splits.train, Recipe(**model.details["recipe"])
    folds = folds_for(photos, context.config)
    predicted = np.full(len(photos), -1)
    numbers = [int(number) for number in np.unique(folds[folds >= 0])]
    for done, number in enumerate(numbers):
        inside = np.flatnonzero(folds == number)
        train, val = photos.subset(np.flatnonzero(folds != number)), photos.subset(inside)
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
        predicted[inside] = _tuned(_network(inputs, context.config), inputs, head, recipe, job, context).answers
    compared = folds >= 0
    held_out = head_of(features, photos, context.config).held_out
    frozen = np.nan_to_num(held_out, nan=-np.inf).argmax(axis=1)
    return (frozen == photos.labels)[compared], (predicted == photos.labels)[compared]
