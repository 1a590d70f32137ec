"""From a solved head on: which phase of a training comes next, and when it is enough.

Each phase leaves a bundle that can be used, and the next one replaces it only where it is clearly better.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from regraft.backbones.backbone import Backbone
from regraft.backbones.features import FeatureTable, extract, fill
from regraft.core.files import workspace
from regraft.core.runtime import missing_for_training
from regraft.core.statistics import accuracy
from regraft.core.trackers import write_history
from regraft.data.scan import Dataset
from regraft.data.transforms import CROP_MODES
from regraft.models.feature_search import Trial
from regraft.models.linear_head import Head
from regraft.pipeline.fine_tune import (
    FULL,
    LAST_STAGES,
    Candidate,
    Phase,
    answers_of,
    better,
    candidate_name,
    learning_from,
    phases_for,
    sentences,
    trace_tuned,
    tuned_on_split,
)
from regraft.pipeline.linear_probe import folds_for, frozen_model, head_of, plain_trial, trial_answers
from regraft.pipeline.selection import Selection, is_from_elsewhere, select, without_room
from regraft.run import Outcome, RunContext, TrainedModel, TrainInputs, announce, finished, save_bundle
from regraft.run_ownership import remove_unfinished
from regraft.training.planning import TooLittleTime

if TYPE_CHECKING:
    from regraft.training.finetune import Tuned

WORTH_S = 5.0  # with less time than this, fine-tuning is not begun


def extract_features(backbone: Backbone, dataset: Dataset, context: RunContext) -> tuple[Dataset, FeatureTable]:
    """Compute features of all photos, each by one of the processes.

    Returns:
        The data set without the photos that cannot be decoded, and the features of the others.
    """
    rank, size = context.world.rank, context.world.size
    if size > 1:
        fill(backbone, dataset.subset(range(rank, len(dataset), size)), progress=context.progress)
        context.world.barrier()
    dataset, features = extract(backbone, dataset, progress=context.progress)
    return dataset, features.by_content


def run_phases(inputs: TrainInputs, plain: Trial | None, context: RunContext) -> Outcome | None:
    """Run the phases as far as mode, time and gain allow.

    Args:
        inputs: The photos and the backbone.
        plain: The head solved on the backbone's features; None where there are none.
        context: Of the run.

    Returns:
        What became the bundle; None in processes that do not write.
    """
    if plain is None:
        return _tuned_alone(inputs, None, None, context)
    selection = select(inputs.photos_split.splits, folds_for(inputs.photos_split.splits.train, context.config))
    selection = replace(selection, is_far=_is_far(inputs, plain, selection, context))
    if context.config.mode == "full":
        return _tuned_alone(inputs, plain.head, selection, context)
    best = _frozen_first(inputs, plain, selection, context)
    head, has_begun = None, False
    for phase in phases_for(context.config, selection.is_far):
        stop = context.world.broadcast(None if best is None else _why_stop(best, selection, has_begun, context))
        if stop is not None:
            best = best and _decided(best, stop)
            break
        if best is not None:
            announce(inputs.photos_split, best.outcome, context)
        context.progress.say(f"{phase.name}: fine-tuning; Ctrl-C keeps this one, and the same command continues")
        if not has_begun:
            inputs, plain = _fitted_like(best, inputs, plain, context)
        head = head or _head_to_begin_from(learning_from(inputs, selection.learned), plain.head, context)
        try:
            best = _run_phase(inputs, head, best, selection, phase, context)
        except TooLittleTime as error:
            context.progress.say(f"{phase.name}: {error}")
            best = best and _decided(
                best, f"{candidate_name(best.outcome)}: there was no time left: {phase.name} {error}"
            )
            if phase is FULL and selection.is_far:
                continue  # the last stages alone may have time
            break
        has_begun = True
        if selection.is_far:
            break
    if has_begun and selection.is_set_aside:
        best = _refitted(inputs, plain.head, best, selection, context)
    if best is None:
        return None
    if has_begun:
        finished(inputs.photos_split, best.outcome, context)  # a kill from now on costs nothing
        if rows := best.outcome.model.details.get("history"):
            write_history(context.out, rows)  # of the model that is there, whichever was trained last
        remove_unfinished(context.out)
    return best.outcome


def _tuned_alone(
    inputs: TrainInputs, head: Head | None, selection: Selection | None, context: RunContext
) -> Outcome | None:
    """Run one phase of gradient descent that is compared with nothing. None in processes that do not write."""
    tuned = tuned_on_split(inputs, head, FULL, context, selection)
    if not context.world.is_main:
        return None
    splits = inputs.photos_split.splits
    with _traced(tuned, inputs, splits.val if len(splits.val) else splits.eval_photos, context) as model:
        outcome = save_bundle(model, inputs.photos_split, context)
    finished(inputs.photos_split, outcome, context)
    remove_unfinished(context.out)
    return outcome


def _is_far(inputs: TrainInputs, plain: Trial, selection: Selection, context: RunContext) -> bool:
    """Return whether photos from elsewhere are to be answered by layers that learn."""
    if context.config.mode == "frozen":
        return False
    answers, inside = trial_answers(plain, selection, inputs), plain.head.cross_validated
    selected = selection.count(answers.correct)
    is_far = is_from_elsewhere(selected, inside, context.issues)
    if is_far and context.config.mode == "auto":
        known = "" if selected is None or inside is None else f" ({selected}, cross-validated {plain})"
        context.progress.say(f"photos from elsewhere are to be answered{known}: so all layers learn, at once")
    return is_far


def _frozen_first(inputs: TrainInputs, plain: Trial, selection: Selection, context: RunContext) -> Candidate | None:
    """Return the frozen model; None in processes that do not write."""
    if not context.world.is_main:
        return None
    is_searching = context.config.is_searching and not selection.is_far
    outcome, chosen = frozen_model(plain, inputs, is_searching, context)
    answers, inside = trial_answers(chosen, selection, inputs), chosen.head.cross_validated
    unseen = accuracy(inside.num_right, inside.n, "cross-validated") if inside else None
    outside = None if selection.is_set_aside else selection.count(answers.correct)
    return Candidate(outcome, answers, (unseen, outside))


def _fitted_like(
    best: Candidate | None, inputs: TrainInputs, plain: Trial, context: RunContext
) -> tuple[TrainInputs, Trial]:
    """Let photos fit the input of the network that learns as they do that of the frozen model, where it was searched.

    Returns:
        The inputs, and the head solved on their features.
    """
    assert inputs.backbone is not None
    chosen = context.world.broadcast(None if best is None else best.outcome.model.backbone.preprocessing.crop_mode)
    if chosen == inputs.backbone.preprocessing.crop_mode:
        return inputs, plain
    fit = next(name for name, crop_mode in CROP_MODES.items() if crop_mode == chosen)
    backbone = inputs.backbone.with_fit(fit)
    _, features = extract_features(backbone, inputs.photos_split.dataset, context)
    inputs = replace(inputs, backbone=backbone, features=features)
    return inputs, plain_trial(inputs, context) or plain


def _head_to_begin_from(learning: TrainInputs, head: Head, context: RunContext) -> Head:
    """Return a head solved without the photos that choose between models."""
    train = learning.photos_split.splits.train
    if learning.features is None or len(train) == len(head.held_out):
        return head
    return head_of(learning.features, train, context.config)


def _run_phase(
    inputs: TrainInputs, head: Head, best: Candidate | None, selection: Selection, phase: Phase, context: RunContext
) -> Candidate | None:
    """Train one phase and return the better of its model and the best so far. None in processes that do not write."""
    learning = learning_from(inputs, selection.learned)
    tuned = tuned_on_split(learning, head, phase, context, selection)
    if best is None:
        return None
    unseen = selection.photos if len(selection.photos) else inputs.photos_split.splits.eval_photos
    with _traced(tuned, learning, unseen, context) as model:
        return better(model, phase, best, selection, inputs, context)


def _refitted(
    inputs: TrainInputs, head: Head, best: Candidate | None, selection: Selection, context: RunContext
) -> Candidate | None:
    """Train the chosen network again, on all photos to learn from: those that chose have done their work.

    Its temperature and thresholds stay those of the chosen one, found on photos that it had not seen. None in
    processes that do not write.

    Args:
        inputs: The photos and the backbone.
        head: Solved on all photos to learn from.
        best: What was chosen; a frozen head has learned from all photos already.
        selection: The photos that chose.
        context: Of the run.
    """
    name = context.world.broadcast(None if best is None else candidate_name(best.outcome))
    phase = {phase.name: phase for phase in (LAST_STAGES, FULL)}.get(name or "")
    if phase is None:
        return best
    if best is not None:
        announce(inputs.photos_split, best.outcome, context)
    splits = inputs.photos_split.splits
    context.progress.say(f"{phase.name}: again, on all {len(splits.train)} photos to learn from")
    try:
        tuned = tuned_on_split(inputs, head, phase.refit(), context, selection)
    except TooLittleTime as error:
        context.progress.say(f"{phase.name}: on all photos {error}")
        without = f"{len(selection.photos)} photos that chose were not learned from: there was no time left"
        return best and _decided(best, without)
    if best is None:
        return None
    with _traced(tuned, inputs, splits.eval_photos, context) as model:
        return _better_refitted(model, best, selection, inputs, context)


def _better_refitted(
    model: TrainedModel, best: Candidate, selection: Selection, inputs: TrainInputs, context: RunContext
) -> Candidate:
    """Return the model that has learned from all photos, unless it has less of those right that are new to it."""
    if answers_of(model, selection.photos, context).correct.sum() < best.answers.correct.sum():
        return _decided(best, "trained again on all photos it was worse, so that was not taken")
    before = best.outcome.model
    details = {**model.details, "chosen_on": selection.to_json(), "refit": len(inputs.photos_split.splits.train)}
    model = replace(model, details=details, temperature=before.temperature, thresholds=before.thresholds)
    outcome = save_bundle(model, inputs.photos_split, context)
    best = replace(best, outcome=replace(outcome, decision=best.outcome.decision))
    return _decided(best, f"then it learned from all {details['refit']} photos, those that chose too")


@contextmanager
def _traced(tuned: "Tuned", inputs: TrainInputs, unseen: Dataset, context: RunContext) -> Iterator[TrainedModel]:
    """Yield a trained network as what bundles are made of; its files last as long as the block."""
    with workspace(context.out) as folder:
        yield trace_tuned(folder, tuned, inputs, unseen, context)


def _decided(best: Candidate, why: str) -> Candidate:
    return replace(best, outcome=replace(best.outcome, decision=sentences(best.outcome.decision, why)))


def _why_stop(best: Candidate, selection: Selection, has_begun: bool, context: RunContext) -> str | None:
    """Say why no further phase is run, in one sentence, "" in mode frozen; None to run the next one.

    The labels of photos that the model is evaluated on have no say. `has_begun` is whether a phase of fine-tuning has
    been run.
    """
    if context.config.mode == "frozen":
        return ""
    name = candidate_name(best.outcome)
    if not selection.is_far and (full := without_room(*best.counts)):
        num_wrong = full.n - round(full.value * full.n)
        wrong = f"only {num_wrong}" if num_wrong else "none"
        return f"{name}: it has {wrong} of {full.n} {full.split} photos wrong, too few to show that any model is better"
    if missing_for_training():
        return f"{name}: letting layers learn may give a better one, and needs torch: pip install 'regraft[train]'"
    left_s = context.left_s(best.outcome.evaluation.accuracy.n)
    if left_s is not None and left_s < WORTH_S:
        return f"{name}: there was no time left to {'train all layers' if has_begun else 'fine-tune'}"
    return None
