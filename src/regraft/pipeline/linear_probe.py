"""The first phase of a training: a head solved on frozen features, then on the best of several kinds of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from regraft.backbones.features import FeatureTable
from regraft.core.config import TrainConfig
from regraft.core.statistics import Accuracy, accuracy
from regraft.data.scan import Dataset
from regraft.data.splits import folds_of
from regraft.evaluation.comparison import no_room
from regraft.models.calibration import calibrated
from regraft.models.feature_search import FeatureConfig, Trial, best, input_of, run_trial, search
from regraft.models.linear_head import Head, out_of_fold, score, solve
from regraft.models.ood import fit_ood_detector
from regraft.pipeline.selection import HeldOutPredictions, Selection, unseen_answers
from regraft.run import Outcome, RunContext, TrainedModel, TrainInputs, announce, save_bundle

MANY = 1000  # photos to evaluate on, beside which cross-validation over all photos tells nothing new
SEARCH_S, SEARCH_SHARE = 120.0, 0.2  # that the search for better features may take, of the time that is left


def plain_trial(inputs: TrainInputs, context: RunContext) -> Trial | None:
    """Solve a head, which is a convex problem, on the frozen features.

    Args:
        inputs: The photos and the backbone's features.
        context: Of the run.

    Returns:
        The features configuration and its head; None where there are no features.
    """
    if inputs.backbone is None or inputs.features is None:
        return None
    feature_config = FeatureConfig(input_of(inputs.backbone), inputs.backbone, inputs.features)
    train = inputs.photos_split.splits.train
    return run_trial(feature_config, train, folds_for(train, context.config), context.progress)


def frozen_model(plain: Trial, inputs: TrainInputs, is_searching: bool, context: RunContext) -> tuple[Outcome, Trial]:
    """Make the solved head the bundle, then the head on the best features of several kinds, if it is another.

    Nothing is searched where the solved head was not cross-validated, or leaves too few photos wrong for any other to
    be shown to be better.

    Args:
        plain: The head that was solved on the usual features.
        inputs: The photos and the backbone's features.
        is_searching: Whether other features of the same network are tried.
        context: Of the run.

    Returns:
        What became the bundle, and the features configuration and head that it was made of.
    """
    frozen = _save_bundle(plain, [plain], inputs, context)
    if not is_searching or not plain.head.curve or no_room(plain.score.num_right, plain.score.n):
        return frozen, plain
    announce(inputs.photos_split, frozen, context)
    context.progress.say("other features of the same network, cross-validated on the photos to learn from:")
    context.progress.say(f"  {plain}")
    splits = inputs.photos_split.splits
    left_s = context.left_s(len(splits.eval_photos))
    budget_s = SEARCH_S if left_s is None else min(SEARCH_S, left_s * SEARCH_SHARE)
    folds = folds_for(splits.train, context.config)
    trials = search(plain, inputs.photos_split.dataset, splits.train, folds, context.config, budget_s, context.progress)
    chosen = best(trials)
    if chosen is plain:
        return frozen, plain
    losses = f"cross-validated log loss {chosen.score.log_loss:.3f} instead of {plain.score.log_loss:.3f}"
    decision = f"features of {chosen.feature_config.name}: {losses}."
    return replace(_save_bundle(chosen, trials, inputs, context), decision=decision), chosen


def trial_answers(one: Trial, selection: Selection, inputs: TrainInputs) -> HeldOutPredictions:
    """Return what a solved head answers to the photos that choose between models without having seen them.

    Args:
        one: The features configuration and its head.
        selection: The photos that choose.
        inputs: The photos that the head was solved on.
    """
    x = one.feature_config.features.of(selection.photos).x
    return unseen_answers(selection, one.head, inputs.photos_split.splits.train, x)


def _save_bundle(one: Trial, trials: list[Trial], inputs: TrainInputs, context: RunContext) -> Outcome:
    """Make one of the heads that were tried the bundle."""
    head, photos_split = one.head, inputs.photos_split
    is_enough = photos_split.splits.given or len(photos_split.splits.eval_photos) >= MANY
    whole = None if is_enough else _cross_validated(one.feature_config.features, photos_split.dataset, head, context)
    details: dict[str, Any] = {"head": {"penalty": head.penalty, "curve": [vars(point) for point in head.curve]}}
    if len(trials) > 1:
        details["searched"] = [other.to_json() for other in trials]
    learned = one.feature_config.features.of(photos_split.splits.train)
    temperature, thresholds = calibrated(head.held_out, learned.y)
    ood = fit_ood_detector(learned)
    model = TrainedModel(
        "frozen", one.feature_config.backbone, head.weight, head.bias, details, whole, temperature, thresholds, ood
    )
    return save_bundle(model, photos_split, context, one.feature_config.features)


def head_of(features: FeatureTable, photos: Dataset, config: TrainConfig) -> Head:
    """Solve a head on some of the photos that there are features of."""
    labelled = features.of(photos)
    return solve(labelled, len(photos.classes), folds_for(photos, config))


def folds_for(photos: Dataset, config: TrainConfig) -> np.ndarray:
    """Assign N photos to the folds that evaluate them, as `(N,)` int64; -1 for none."""
    return folds_of(photos, config.num_folds, config.seed)


def _cross_validated(features: FeatureTable, photos: Dataset, head: Head, context: RunContext) -> Accuracy | None:
    """Cross-validate over all photos, each by a head that has not seen it, at the penalty chosen on the train split."""
    folds = folds_for(photos, context.config)
    if not (folds >= 0).any():
        return None
    labelled = features.of(photos)
    with context.progress.step("cross-validate"):
        log_p = out_of_fold(labelled, len(photos.classes), folds, head.penalty)
    cross_validated = score(log_p, labelled.y, head.penalty)
    return accuracy(cross_validated.num_right, cross_validated.n, "cross-validated")
