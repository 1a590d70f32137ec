"""The command `regraft train`: from what takes seconds to what takes minutes, each result usable at once.

The modes are on the right::

    photos -> features -> solved head -> bundle                          frozen
                               \\-> last stages trained -> bundle         auto, where it pays
                               \\-> fine-tuned network -> bundle          full, and auto where it pays
    photos -> network from random weights -> bundle                      scratch
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from regraft.backbones.backbone import Backbone, configured
from regraft.backbones.features import FeatureTable, extract, fill
from regraft.bundle.bundle import Bundle, load
from regraft.commands.report import NAME as REPORT
from regraft.commands.report import write_report
from regraft.commands.scan import chosen_kinds, counted, drop_issues, quick_audit
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError, MissingExtra
from regraft.core.files import exclusive, sweep, workspace
from regraft.core.ownership import remove_made
from regraft.core.progress import Progress
from regraft.core.runtime import missing_for_training
from regraft.core.statistics import accuracy
from regraft.core.trackers import Tracker, TrackerSet, create_trackers
from regraft.data.grey_range import grey_bits
from regraft.data.growth import split_grown, with_known_sides
from regraft.data.issues import Issue
from regraft.data.merge import joined, merged, relabelled
from regraft.data.remote import shown
from regraft.data.scan import Dataset, checked, list_photos, scan
from regraft.data.splits import Splits, grouped, split
from regraft.data.transforms import CROP_MODES
from regraft.models.feature_search import Trial
from regraft.models.linear_head import Head
from regraft.pipeline.fine_tune import (
    FULL,
    Candidate,
    Phase,
    better,
    learning_from,
    name_of,
    phases,
    sentences,
    traced,
    tuned_on_split,
)
from regraft.pipeline.linear_probe import correct_frozen, folds_for, frozen_model, head_of, solve_head
from regraft.pipeline.selection import Selection, is_shifted, select, without_room
from regraft.run import (
    Outcome,
    Run,
    RunContext,
    SplitDataset,
    TrainedModel,
    TrainInputs,
    announce,
    delivered,
    finished,
    say_what_is_there,
)
from regraft.run_dir import RunRecord, Step, now, place, unchanged
from regraft.run_ownership import SCRATCH, check_run, claim_run
from regraft.training.distributed import ProcessGroup, process_group
from regraft.training.planning import TooLittleTime
from regraft.training.recipe import Recipe, check_names, choose

if TYPE_CHECKING:
    from regraft.training.finetune import Tuned

T = TypeVar("T")
WORTH_S = 5.0  # with less time than this, fine-tuning is not begun


def train(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    quiet: bool = False,
    trackers: Sequence[Tracker] = (),
    **settings: Any,
) -> Bundle:
    """Train on a folder of photos.

    Args:
        folder: `folder/<class>/<image>`, or the same below `train`, `val` and `test`.
        out: Folder of the run; default `runs/<folder's name>`, with a number behind it where that holds a run on other
            photos.
        quiet: Whether to show no progress.
        trackers: Your own objects with the three methods of Tracker.
        settings: Fields of TrainConfig and of Recipe, such as `mode="full", epochs=5, track="wandb"`.

    Returns:
        The model, as saved in `out/bundle`.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    return train_run(folder, out, configure(**settings), Progress(quiet), trackers).bundle


def train_run(
    folder: str | Path,
    out: str | Path | None,
    config: TrainConfig,
    progress: Progress,
    trackers: Sequence[Tracker] = (),
    earlier: RunRecord | None = None,
    labelled: Dataset | None = None,
) -> Run:
    """Train as `config` says and leave everything in a folder.

    Args:
        folder: The photos.
        out: Folder of the run; None for one below `runs`.
        config: How to train.
        progress: Where messages and progress bars go.
        trackers: Are called beside those that `config` names.
        earlier: A run to go on from: its photos, labels and splits count, and what `config` adds, but not `folder`.
        labelled: The photos with their labels, instead of what `folder` or `earlier` says; a photo's split is "" where
            it is to be drawn.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    out, config = place(Path(folder), out, progress=progress), config.located()
    choose(config.recipe, Recipe(), config.mode, config.settings)  # what cannot be is refused before anything begins
    chosen_kinds(config.drop)
    _check_installed(config)
    with create_trackers(config.track, trackers, progress) as listening:
        run = _train(Path(folder), out, config, progress, listening, earlier, labelled)
        listening.summary = run.summary
    return run


def configure(**settings: Any) -> TrainConfig:
    """Sort settings by name into those of the run and those of the recipe.

    Args:
        settings: Fields of TrainConfig and of Recipe.

    Raises:
        ConfigError: A name is unknown, or a value is not allowed.
    """
    own = {field.name for field in fields(TrainConfig)}
    of_recipe = {name: value for name, value in settings.items() if name not in own}
    check_names(of_recipe)
    own_settings = {name: value for name, value in settings.items() if name in own}
    for name in ("also", "relabel", "track"):  # one, or several
        if isinstance(own_settings.get(name), str):
            own_settings[name] = (own_settings[name],)
    return TrainConfig(**own_settings, settings=of_recipe)


def start_of(bundle: str | Path) -> dict[str, Any]:
    """Return the settings that make a training begin with a bundle's backbone and weights.

    Raises:
        BundleError: The bundle cannot be loaded.
    """
    loaded = load(bundle)
    return {"backbone": loaded.manifest["backbone"]["name"], "weights": str(loaded.folder / "model.safetensors")}


def _check_installed(config: TrainConfig) -> None:
    """Refuse a training that has to begin with gradient descent where torch is absent. Raises MissingExtra."""
    is_frozen_first = config.is_solved and config.mode != "full"
    if not is_frozen_first and (missing := missing_for_training()):
        raise MissingExtra(missing[0])


def _train(
    folder: Path,
    out: Path,
    config: TrainConfig,
    progress: Progress,
    listening: TrackerSet,
    earlier: RunRecord | None,
    labelled: Dataset | None,
) -> Run:
    began = time.monotonic()
    deadline = None if config.limit_s is None else began + config.limit_s
    with progress.step("total", is_announced=False), process_group() as world, _held(out, world, config, progress):
        progress.quiet = progress.quiet or not world.is_main
        step = Step("label", str(folder.resolve()), now()) if labelled else _step(folder, config, earlier)
        context = RunContext(
            folder, out, config, deadline, world, progress, began, listening, step, earlier, labelled=labelled
        )
        if world.is_main:
            listening.start(out, config.to_json())
        if config.mode == "frozen" and config.is_solved and config.settings:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in config.settings)
            progress.say(f"without effect: {flags}; the frozen head is solved, it takes no steps")
        inputs = _prepare(context)
        say_what_is_there(inputs.photos_split, progress)
        solved = solve_head(inputs, context)
        context = replace(context, findings=_seen(inputs, solved.head if solved else None, context))
        outcome = _run_phases(inputs, solved, context)
        if outcome is not None and config.report:
            run = finished(inputs.photos_split, outcome, context)
            write_report(run.bundle, outcome.evaluation, run.summary, out / REPORT, progress)
        world.barrier()
    if outcome is None:
        return Run(out, load(out / "bundle"), {})
    return finished(inputs.photos_split, outcome, context)


@contextmanager
def _held(out: Path, world: ProcessGroup, config: TrainConfig, progress: Progress) -> Iterator[None]:
    """Hold the run's folder for this run alone, freed of what killed ones left."""
    if not world.is_main:
        world.barrier()
        yield
        return
    check_run(out)
    with exclusive(out):
        sweep(out)
        claim_run(out, progress)
        if config.restart:
            _forget(out)
        if not (out / "checkpoints").exists():
            remove_made(out / "history.jsonl")  # of the run before this one
        world.barrier()
        yield


def _prepare(context: RunContext) -> TrainInputs:
    """Read the photos, load the backbone, and compute its features where a head is solved on them. Raises DataError."""
    config, progress = context.config, context.progress
    dataset = _photos(context)
    backbone = None if config.mode == "scratch" else _backbone(context).with_grey_bits(grey_bits(dataset, progress))
    features = None
    if backbone is not None and (config.is_solved or config.drop):
        dataset, features = _features(backbone, dataset, context)
    if config.drop:
        dataset = _main_first(context, lambda: drop_issues(dataset, features, config, progress))
    if config.strict and dataset.quarantine:
        first = dataset.quarantine[0]
        raise DataError(
            f"{len(dataset.quarantine)} files of {context.photos} cannot be used, and --strict refuses that; "
            f"the first: {first.path}: {first.reason}. Mend or remove them; `regraft scan` lists all."
        )
    if config.group_by is not None:
        dataset = grouped(dataset, config.group_by)
    dataset = dataset.in_order_of_content()
    return TrainInputs(
        SplitDataset(dataset, _split(dataset, context)), backbone, features if config.is_solved else None
    )


def _step(folder: Path, config: TrainConfig, earlier: RunRecord | None) -> Step:
    """Return what this training is in the record of its run."""
    if earlier is None:
        return Step("train", shown(folder), now())
    added = _beyond(config.also, earlier.config.also)
    return Step(
        "add" if added else "relabel", ", ".join(added or _beyond(config.relabel, earlier.config.relabel)), now()
    )


def _beyond(all_of_them: tuple[str, ...], earlier: tuple[str, ...]) -> tuple[str, ...]:
    """Return those that have come after the earlier ones."""
    return all_of_them[len(earlier) :]


def _split(dataset: Dataset, context: RunContext) -> Splits:
    config, earlier = context.config, context.earlier
    if earlier is None:
        return split(dataset, val_fraction=config.val_fraction, seed=config.seed)
    return split_grown(dataset, val_fraction=config.val_fraction, seed=config.seed, given=earlier.split_given)


def _grown(context: RunContext, earlier: RunRecord) -> Dataset:
    """Return the photos of an earlier run, as it has them, and those that have come since."""
    config, progress = context.config, context.progress
    parts = [unchanged(earlier.dataset(), progress)]
    options = replace(config.folder_options, known_classes=parts[0].classes)
    for folder in _beyond(config.also, earlier.config.also):
        new = list_photos(folder, min_classes=1, options=options, progress=progress)
        parts.append(with_known_sides(new, earlier.sides, earlier.judged))
    dataset = merged(parts)
    roots = [*(earlier.root / root for root in earlier.roots), *(part.root for part in parts)]
    for file in _beyond(config.relabel, earlier.config.relabel):
        dataset = relabelled(dataset, Path(file), roots)
    return checked(dataset)


def _photos(context: RunContext) -> Dataset:
    """List all photos, with corrected labels; decode each to check it where no features will be computed of them."""
    config = context.config
    if context.labelled is not None:
        return checked(context.labelled)
    if context.earlier is not None:
        return _grown(context, context.earlier)
    listed = list_photos if config.is_solved else scan
    several, options = bool(config.also), config.folder_options
    parts = [listed(context.photos, min_classes=2 - several, options=options, progress=context.progress)]
    options = replace(options, known_classes=parts[0].classes)
    parts += [listed(folder, min_classes=1, options=options, progress=context.progress) for folder in config.also]
    dataset = joined(parts, val_fraction=config.val_fraction, seed=config.seed)
    for file in config.relabel:
        dataset = relabelled(dataset, Path(file), [part.root for part in parts])
    return checked(dataset)


def _backbone(context: RunContext) -> Backbone:
    return _main_first(context, lambda: configured(context.config, context.progress))


def _main_first(context: RunContext, work: Callable[[], T]) -> T:
    """Let the main process work first: what it fetches and computes, the others find in the cache."""
    if not context.world.is_main:
        context.world.barrier()
    done = work()
    if context.world.is_main:
        context.world.barrier()
    return done


def _features(backbone: Backbone, dataset: Dataset, context: RunContext) -> tuple[Dataset, FeatureTable]:
    """Compute features of all photos, each by one of the processes."""
    rank, size = context.world.rank, context.world.size
    if size > 1:
        fill(backbone, dataset.subset(range(rank, len(dataset), size)), progress=context.progress)
        context.world.barrier()
    dataset, features = extract(backbone, dataset, progress=context.progress)
    return dataset, features.by_content


def _run_phases(inputs: TrainInputs, solved: Trial | None, context: RunContext) -> Outcome | None:
    """Run the phases as far as mode, time and gain allow. None in processes that do not write."""
    if solved is None or context.config.mode == "full":
        return _climbed_alone(inputs, solved.head if solved else None, context)
    selection = select(inputs.photos_split.splits, folds_for(inputs.photos_split.splits.train, context.config))
    best, is_far = _first(inputs, solved, selection, context)
    head, has_begun = None, False
    for phase in phases(context.config, is_far):
        stop = context.world.broadcast(None if best is None else _why_stop(best, has_begun, context))
        if stop is not None:
            best = best and _decided(best, stop)
            break
        if best is not None:
            announce(inputs.photos_split, best.outcome, context)
        context.progress.say(f"{phase.name}: fine-tuning; Ctrl-C keeps this one, and the same command continues")
        if not has_begun:
            inputs, solved = _fitted_like(best, inputs, solved, context)
        head = head or _head_to_begin_from(learning_from(inputs, selection.learned), solved.head, context)
        try:
            best = _run_phase(inputs, head, best, selection, phase, context)
        except TooLittleTime as error:
            context.progress.say(f"{phase.name}: {error}")
            best = best and _decided(best, f"{name_of(best.outcome)}: there was no time left: {phase.name} {error}")
            break
        has_begun = True
    if best is None:
        return None
    if has_begun:
        finished(inputs.photos_split, best.outcome, context)  # a kill from now on costs nothing
        _forget(context.out)
    return best.outcome


def _climbed_alone(inputs: TrainInputs, head: Head | None, context: RunContext) -> Outcome | None:
    """Run one phase of gradient descent that is compared with nothing. None in processes that do not write."""
    tuned = tuned_on_split(inputs, head, FULL, context)
    if not context.world.is_main:
        return None
    splits = inputs.photos_split.splits
    with _traced(tuned, inputs, splits.val if len(splits.val) else splits.judged[1], context) as model:
        outcome = delivered(model, inputs.photos_split, context)
    finished(inputs.photos_split, outcome, context)
    _forget(context.out)
    return outcome


def _first(
    inputs: TrainInputs, solved: Trial, selection: Selection, context: RunContext
) -> tuple[Candidate | None, bool]:
    """Return the frozen model, None in processes that do not write; and whether val is too unlike train for it."""
    config, progress = context.config, context.progress
    selected = selection.count(correct_frozen(solved, selection, inputs))
    is_far = config.mode == "auto" and is_shifted(selected, solved.head.cross_validated)
    if is_far:
        progress.say(f"val is from elsewhere: {selected}, cross-validated {solved}; so all layers learn, at once")
    if not context.world.is_main:
        return None, is_far
    outcome, chosen = frozen_model(solved, inputs, config.is_searching and not is_far, context)
    correct, inside = correct_frozen(chosen, selection, inputs), chosen.head.cross_validated
    unseen = accuracy(inside.num_right, inside.n, "cross-validated") if inside else None
    outside = None if selection.is_set_aside else selection.count(correct)
    return Candidate(outcome, correct, (unseen, outside)), is_far


def _fitted_like(
    best: Candidate | None, inputs: TrainInputs, solved: Trial, context: RunContext
) -> tuple[TrainInputs, Trial]:
    """Let photos fit the input of the network that learns as they do that of the frozen model, where it was searched.

    Returns:
        The inputs, and the head solved on their features.
    """
    assert inputs.backbone is not None
    found = context.world.broadcast(None if best is None else best.outcome.model.backbone.preprocessing.crop_mode)
    if found == inputs.backbone.preprocessing.crop_mode:
        return inputs, solved
    fit = next(name for name, crop_mode in CROP_MODES.items() if crop_mode == found)
    backbone = inputs.backbone.with_fit(fit)
    _, features = _features(backbone, inputs.photos_split.dataset, context)
    inputs = replace(inputs, backbone=backbone, features=features)
    return inputs, solve_head(inputs, context) or solved


def _head_to_begin_from(learning: TrainInputs, solved: Head, context: RunContext) -> Head:
    """Return a head solved without the photos that choose between models."""
    train = learning.photos_split.splits.train
    if learning.features is None or len(train) == len(solved.held_out):
        return solved
    return head_of(learning.features, train, context.config)


def _run_phase(
    inputs: TrainInputs, head: Head, best: Candidate | None, selection: Selection, phase: Phase, context: RunContext
) -> Candidate | None:
    """Train one phase and return the better of its model and the best so far. None in processes that do not write."""
    learning = learning_from(inputs, selection.learned)
    tuned = tuned_on_split(learning, head, phase, context)
    if best is None:
        return None
    unseen = selection.photos if len(selection.photos) else inputs.photos_split.splits.judged[1]
    with _traced(tuned, learning, unseen, context) as model:
        return better(model, phase, best, selection, inputs, context)


@contextmanager
def _traced(tuned: "Tuned", inputs: TrainInputs, unseen: Dataset, context: RunContext) -> Iterator[TrainedModel]:
    """Yield a trained network as what bundles are made of; its files last as long as the block."""
    with workspace(context.out) as folder:
        yield traced(folder, tuned, inputs, unseen, context)


def _decided(best: Candidate, why: str) -> Candidate:
    return replace(best, outcome=replace(best.outcome, decision=sentences(best.outcome.decision, why)))


def _seen(inputs: TrainInputs, head: Head | None, context: RunContext) -> tuple[Issue, ...]:
    """Audit the photos quickly and say what is found; not where issues were dropped already. It decides nothing."""
    photos_split = inputs.photos_split
    seen = (
        ()
        if context.config.drop
        else quick_audit(photos_split.dataset, photos_split.splits.train, head, inputs.features)
    )
    for one in seen:
        if one.kind == "split shift":
            context.progress.say(f"doctor: {one.text}")
    if seen:
        what = counted(seen)
        context.progress.say(f"doctor: {what}; look at them with: regraft scan {context.photos} --out findings")
    return seen


def _why_stop(best: Candidate, has_begun: bool, context: RunContext) -> str | None:
    """Say why no further phase is run, in one sentence, "" in mode frozen; None to run the next one.

    Photos that the model is evaluated on have no say. `has_begun` is whether a phase of fine-tuning has been run.
    """
    if context.config.mode == "frozen":
        return ""
    name = name_of(best.outcome)
    if full := without_room(*best.counts):
        num_wrong = full.n - round(full.value * full.n)
        wrong = f"only {num_wrong}" if num_wrong else "none"
        return f"{name}: it has {wrong} of {full.n} {full.split} photos wrong, too few to show that any model is better"
    if missing_for_training():
        return f"{name}: letting layers learn may give a better one, and needs torch: pip install 'regraft[train]'"
    left_s = context.left_s(best.outcome.evaluation.accuracy.n)
    if left_s is not None and left_s < WORTH_S:
        return f"{name}: there was no time left to {'train all layers' if has_begun else 'fine-tune'}"
    return None


def _forget(out: Path) -> None:
    """Remove what an unfinished training would continue from."""
    for name in SCRATCH:
        remove_made(out / name)
