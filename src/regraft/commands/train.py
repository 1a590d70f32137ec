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
from typing import Any, TypeVar

from regraft.backbones.backbone import Backbone, configured
from regraft.bundle.bundle import Bundle, load
from regraft.commands.report import NAME as REPORT
from regraft.commands.report import write_report
from regraft.commands.scan import chosen_kinds, counted, drop_issues, issues_of_training
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError, MissingExtra
from regraft.core.files import exclusive, sweep
from regraft.core.ownership import remove_made
from regraft.core.progress import Progress
from regraft.core.runtime import missing_for_training
from regraft.core.trackers import Tracker, TrackerSet, create_trackers
from regraft.data.grey_range import grey_bits
from regraft.data.growth import split_grown, with_known_sides
from regraft.data.issues import Issue
from regraft.data.merge import joined, merged, relabelled
from regraft.data.remote import address_of, fetched, shown
from regraft.data.scan import Dataset, list_photos, scan, without_empty_classes
from regraft.data.splits import Splits, grouped, split
from regraft.models.linear_head import Head
from regraft.pipeline.ahead import features_ahead
from regraft.pipeline.linear_probe import plain_trial
from regraft.pipeline.phases import extract_features, run_phases
from regraft.run import (
    Run,
    RunContext,
    SplitDataset,
    TrainInputs,
    finished,
    say_what_is_there,
)
from regraft.run_dir import RunRecord, Step, now, unchanged
from regraft.run_location import place
from regraft.run_ownership import check_run, claim_run, remove_unfinished
from regraft.training.distributed import ProcessGroup, process_group
from regraft.training.recipe import Recipe, check_names, choose_recipe

T = TypeVar("T")


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
    # what cannot be is refused before anything begins
    choose_recipe(config.recipe, Recipe(), config.mode, config.settings)
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
    known = {field.name for field in fields(TrainConfig)}
    of_recipe = {name: value for name, value in settings.items() if name not in known}
    check_names(of_recipe)
    of_run = {name: value for name, value in settings.items() if name in known}
    for name in ("also", "relabel", "track"):  # one, or several
        if isinstance(of_run.get(name), str):
            of_run[name] = (of_run[name],)
    return TrainConfig(**of_run, settings=of_recipe)


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
        plain = plain_trial(inputs, context)
        context = replace(context, issues=_issues(inputs, plain.head if plain else None, context))
        outcome = run_phases(inputs, plain, context)
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
            remove_unfinished(out)
        if not (out / "checkpoints").exists():
            remove_made(out / "history.jsonl")  # of the run before this one
        world.barrier()
        yield


def _prepare(context: RunContext) -> TrainInputs:
    """Read the photos, load the backbone, and compute its features where a head is solved on them. Raises DataError."""
    config, progress = context.config, context.progress
    _main_first(context, lambda: _fetch(context))
    dataset = _photos(context)
    backbone = None if config.mode == "scratch" else _backbone(context).with_grey_bits(grey_bits(dataset, progress))
    features = None
    if backbone is not None and (config.is_solved or config.drop):
        dataset, features = extract_features(backbone, dataset, context)
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


def _fetch(context: RunContext) -> None:
    """Copy photos from an address; where a head is solved, their features are computed meanwhile."""
    is_here = address_of(context.photos) is None or context.labelled is not None or context.earlier is not None
    if is_here or not context.config.is_solved or context.config.mode == "scratch":
        return
    with features_ahead(configured(context.config, context.progress)) as arrived:
        fetched(context.photos, context.progress, arrived)


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
        parts.append(with_known_sides(new, earlier.sides, earlier.eval_split))
    dataset = merged(parts)
    roots = [*(earlier.root / root for root in earlier.roots), *(part.root for part in parts)]
    for file in _beyond(config.relabel, earlier.config.relabel):
        dataset = relabelled(dataset, Path(file), roots)
    return without_empty_classes(dataset)


def _photos(context: RunContext) -> Dataset:
    """List all photos, with corrected labels; decode each to check it where no features will be computed of them."""
    config = context.config
    if context.labelled is not None:
        return without_empty_classes(context.labelled)
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
    return without_empty_classes(dataset)


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


def _issues(inputs: TrainInputs, head: Head | None, context: RunContext) -> tuple[Issue, ...]:
    """Look for issues with what is computed anyway, and say what is found; not where issues were dropped already.

    Photos from elsewhere make mode auto let all layers learn, at once; else it decides nothing.
    """
    photos_split = inputs.photos_split
    issues = (
        ()
        if context.config.drop
        else issues_of_training(photos_split.dataset, photos_split.splits.train, head, inputs.features)
    )
    for one in issues:
        if one.kind == "split shift":
            context.progress.say(f"scan: {one.text}")
    if issues:
        photos = address_of(context.photos) or context.photos
        context.progress.say(f"scan: {counted(issues)}; look at them with: regraft scan {photos} --out findings")
    return issues
