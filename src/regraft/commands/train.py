"""The story of `regraft train`: from what takes seconds to what takes minutes, each result usable at once.

photos -> features -> solved head -> bundle                          frozen
                           \\-> last stages trained -> bundle         auto, where it pays
                           \\-> fine-tuned network -> bundle          full, and auto where it pays
photos -> network from random weights -> bundle                      scratch
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from regraft.backbones.backbone import Backbone, configured
from regraft.backbones.features import Features, extract, fill
from regraft.bundle.bundle import load
from regraft.commands.report import NAME as REPORT
from regraft.commands.report import write_report
from regraft.commands.scan import chosen_kinds, counted, drop_issues, quick_audit
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError
from regraft.core.files import PARTIAL, exclusive, remove, sweep
from regraft.core.progress import Progress
from regraft.core.trackers import Tracker, TrackerSet, create_trackers
from regraft.data.issues import Issue
from regraft.data.merge import joined, relabelled
from regraft.data.scan import Dataset, checked, list_photos, scan
from regraft.data.splits import grouped, split
from regraft.evaluation.comparison import no_room
from regraft.models.feature_search import Trial
from regraft.models.linear_head import Head
from regraft.pipeline.fine_tune import LAST_STAGES, Phase, better, name_of, phases, sentences, traced, tuned_on_split
from regraft.pipeline.linear_probe import frozen_model, solve_head
from regraft.run import (
    Candidate,
    Run,
    RunContext,
    SplitDataset,
    TrainInputs,
    announce,
    delivered,
    finished,
    place,
    say_what_is_there,
)
from regraft.training.distributed import ProcessGroup, process_group
from regraft.training.recipe import Recipe, choose

T = TypeVar("T")
WORTH_S = 5.0  # with less time than this, fine-tuning is not begun
TIMES_LAST = 2.0  # what the last stages took: with less time, less than half of the epochs of all layers would fit


def train_run(
    folder: str | Path,
    out: str | Path | None,
    config: TrainConfig,
    progress: Progress,
    trackers: Sequence[Tracker] = (),
) -> Run:
    """Train as `config` says and leave everything in `out`. Raises RegraftError.

    trackers: are told beside those that `config` names.
    """
    out, config = place(Path(folder), out), config.located()
    choose(config.recipe, Recipe(), config.mode, config.settings)  # what cannot be is told before anything begins
    chosen_kinds(config.drop)
    with create_trackers(config.track, trackers, progress) as listening:
        run = _train(Path(folder), out, config, progress, listening)
        listening.summary = run.summary
    return run


def _train(folder: Path, out: Path, config: TrainConfig, progress: Progress, listening: TrackerSet) -> Run:
    began = time.monotonic()
    deadline = None if config.limit_s is None else began + config.limit_s
    with progress.step("total"), process_group() as world, _held(out, world, config):
        progress.quiet = progress.quiet or not world.is_main
        context = RunContext(folder, out, config, deadline, world, progress, began, listening)
        if world.is_main:
            listening.start(out, config.to_json())
        if config.mode == "frozen" and config.is_solved and config.settings:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in config.settings)
            progress.say(f"without effect: {flags}; the frozen head is solved, it takes no steps")
        inputs = _prepare(context)
        say_what_is_there(inputs.photos_split, progress)
        solved = solve_head(inputs, context)
        context = replace(context, findings=_seen(inputs.photos_split, solved.head if solved else None, context))
        candidate = _run_phases(inputs, solved, context)
        if candidate is not None and config.report:
            run = finished(inputs.photos_split, candidate, context)
            write_report(run.bundle, candidate.evaluation, run.summary, out / REPORT, progress)
        world.barrier()
    if candidate is None:
        return Run(out, load(out / "bundle"), {})
    return finished(inputs.photos_split, candidate, context)


@contextmanager
def _held(out: Path, world: ProcessGroup, config: TrainConfig) -> Iterator[None]:
    """The run's folder for this run alone, freed of what killed ones left."""
    if not world.is_main:
        world.barrier()
        yield
        return
    with exclusive(out):
        sweep(out)
        if config.restart:
            _forget(out)
        if not (out / "checkpoints").exists():
            remove(out / "history.jsonl")  # of the run before this one
        world.barrier()
        yield


def _prepare(context: RunContext) -> TrainInputs:
    """Photos, the backbone, and its features where a head is solved on them."""
    config, progress = context.config, context.progress
    dataset = _photos(context)
    backbone = None if config.mode == "scratch" else _backbone(context)
    features = None
    if backbone is not None and (config.is_solved or config.drop):
        dataset, features = _features(backbone, dataset, context)
    if config.drop:
        dataset = _main_first(context, lambda: drop_issues(dataset, features, config, progress))
    if config.strict and dataset.quarantine:
        first = dataset.quarantine[0]
        raise DataError(
            f"{len(dataset.quarantine)} files of {context.photos} cannot be used, and --strict refuses that; the first: "
            f"{first.path}: {first.reason}. Mend or remove them; `regraft scan` lists all."
        )
    if config.group_by is not None:
        dataset = grouped(dataset, config.group_by)
    splits = split(dataset, val_fraction=config.val_fraction, seed=config.seed)
    return TrainInputs(SplitDataset(dataset, splits), backbone, features if config.is_solved else None)


def _photos(context: RunContext) -> Dataset:
    """All photos, as the folders say or as somebody has put right. Those that no head is solved on are decoded once."""
    config = context.config
    listed = list_photos if config.is_solved else scan
    several = bool(config.also)
    parts = [listed(context.photos, min_classes=2 - several, progress=context.progress)]
    parts += [listed(folder, min_classes=1, progress=context.progress) for folder in config.also]
    dataset = joined(parts, val_fraction=config.val_fraction, seed=config.seed)
    for file in config.relabel:
        dataset = relabelled(dataset, Path(file), [part.root for part in parts])
    return checked(dataset)


def _backbone(context: RunContext) -> Backbone:
    return _main_first(context, lambda: configured(context.config, context.progress))


def _main_first(context: RunContext, work: Callable[[], T]) -> T:
    """The main process first: what it fetches and computes, the others find in the cache."""
    if not context.world.is_main:
        context.world.barrier()
    done = work()
    if context.world.is_main:
        context.world.barrier()
    return done


def _features(backbone: Backbone, dataset: Dataset, context: RunContext) -> tuple[Dataset, Features]:
    """Features of all photos, each computed by one of the processes."""
    rank, size = context.world.rank, context.world.size
    if size > 1:
        fill(backbone, dataset.subset(range(rank, len(dataset), size)), progress=context.progress)
        context.world.barrier()
    return extract(backbone, dataset, progress=context.progress)


def _run_phases(inputs: TrainInputs, solved: Trial | None, context: RunContext) -> Candidate | None:
    """Up the ladder as far as mode, time and gain allow. None in processes that do not write."""
    head, is_frozen_first = solved.head if solved else None, solved is not None and context.config.mode != "full"
    best = frozen_model(solved, inputs, context) if solved and is_frozen_first and context.world.is_main else None
    last_s = 0.0
    for phase in phases(context.config):
        if is_frozen_first:
            stop = context.world.broadcast(None if best is None else _why_stop(best, last_s, context))
            if stop is not None:
                best = best and replace(best, decision=sentences(best.decision, stop))
                break
            if best is not None:
                announce(inputs.photos_split, best, context)
            context.progress.say(f"{phase.name}: fine-tuning; Ctrl-C keeps this one, and the same command continues")
        began = time.monotonic()
        best = _run_phase(inputs, head, best, phase, context)
        last_s = time.monotonic() - began
    if best is not None and last_s:
        finished(inputs.photos_split, best, context)  # a kill from here on costs nothing
        _forget(context.out)
    return best


def _run_phase(
    inputs: TrainInputs, head: Head | None, best: Candidate | None, phase: Phase, context: RunContext
) -> Candidate | None:
    """The better of what is there and what a training gives. None in processes that do not write."""
    tuned = tuned_on_split(inputs, head, phase, context)
    if not context.world.is_main:
        return None
    with tempfile.TemporaryDirectory(dir=context.out, prefix=PARTIAL) as folder:
        model = traced(Path(folder), tuned, inputs, context)
        return (
            delivered(model, inputs.photos_split, context)
            if best is None
            else better(model, phase, best, inputs, context)
        )


def _seen(photos_split: SplitDataset, head: Head | None, context: RunContext) -> tuple[Issue, ...]:
    """What the doctor sees, unless it has been seen to."""
    seen = () if context.config.drop else quick_audit(photos_split.dataset, photos_split.splits.train, head)
    if seen:
        what = counted(seen)
        context.progress.say(f"doctor: {what}; look at them with: regraft scan {context.photos} --out findings")
    return seen


def _why_stop(best: Candidate, last_s: float, context: RunContext) -> str | None:
    """Why the model that is there is the last rung, in one sentence; None to climb on.

    last_s: seconds that the training before this one took, 0 if there was none.
    """
    if context.config.mode == "frozen":
        return ""
    a, name = best.evaluation.accuracy, name_of(best)
    if _no_room(best):
        num_right = round(a.value * a.n)
        wrong = f"only {a.n - num_right}" if num_right < a.n else "none"
        return f"{name}: it has {wrong} of {a.n} {a.split} photos wrong, too few to show that any model is better"
    left_s = context.left_s(a.n)
    if left_s is not None and left_s < max(WORTH_S, TIMES_LAST * last_s):
        return f"{name}: there was no time left to {'train all layers' if last_s else 'fine-tune'}"
    return None


def _no_room(best: Candidate) -> bool:
    a, cv = best.evaluation.accuracy, best.model.cross_validated
    return no_room(round(a.value * a.n), a.n) and (cv is None or no_room(round(cv.value * cv.n), cv.n))


def _forget(out: Path) -> None:
    """A finished training has nothing to continue."""
    for name in ("checkpoints", "folds", LAST_STAGES.folder):
        remove(out / name)
