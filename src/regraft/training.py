"""The story of `regraft train`: from what takes seconds to what takes minutes, each result usable at once.

photos -> features -> solved head -> bundle                          frozen
                           \\-> last stages trained -> bundle         auto, where it pays
                           \\-> fine-tuned network -> bundle          full, and auto where it pays
photos -> network from random weights -> bundle                      scratch
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from regraft.backbones.features import FeatureTable, extract, fill
from regraft.backbones.graph import Backbone, configured
from regraft.data.findings import Finding
from regraft.data.grey_range import grey_bits
from regraft.data.growth import split_grown, with_known_sides
from regraft.data.join import joined, merged, relabelled
from regraft.data.scan import Dataset, checked, list_photos, scan
from regraft.data.splits import Splits, grouped, split
from regraft.deliver.bundle import load
from regraft.doctor import chosen_kinds, counted, glance, treated
from regraft.frozen import correct_frozen, folds_for, frozen_model, head_of, solve_head
from regraft.ground.config import TrainConfig
from regraft.ground.errors import DataError, MissingExtra
from regraft.ground.files import exclusive, sweep, workspace
from regraft.ground.ownership import remove_made
from regraft.ground.progress import Progress
from regraft.ground.runtime import missing_for_training
from regraft.ground.statistics import accuracy
from regraft.ground.trackers import Told, Tracker, told
from regraft.learn.head import Head
from regraft.learn.planning import TooLittleTime
from regraft.learn.recipe import Recipe, choose
from regraft.learn.search import Tried
from regraft.learn.selection import Selection, is_shifted, select, without_room
from regraft.learn.world import World, join
from regraft.reporting import NAME as REPORT
from regraft.reporting import write_report
from regraft.run import (
    Graft,
    Here,
    Material,
    Outcome,
    Run,
    Start,
    announce,
    delivered,
    finished,
    say_what_is_there,
)
from regraft.run_dir import RunRecord, Step, now, place, unchanged
from regraft.run_folder import SCRATCH, check_run, claim_run
from regraft.tuning import (
    FULL,
    Candidate,
    Rung,
    better,
    learning_from,
    name_of,
    rungs,
    sentences,
    traced,
    tuned_on_split,
)

if TYPE_CHECKING:
    from regraft.learn.finetune import Tuned

T = TypeVar("T")
WORTH_S = 5.0  # with less time than this, fine-tuning is not begun


def train_run(
    folder: str | Path,
    out: str | Path | None,
    config: TrainConfig,
    progress: Progress,
    trackers: Sequence[Tracker] = (),
    earlier: RunRecord | None = None,
) -> Run:
    """Train as `config` says and leave everything in a folder.

    Args:
        folder: The photos.
        out: Where everything goes; None for a place below `runs`.
        config: How to train.
        progress: What is told.
        trackers: Are told beside those that `config` names.
        earlier: A run whose photos, labels and splits count, with what `config` names beyond it; then nothing else in
            `folder` does.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    out, config = place(Path(folder), out, progress=progress), config.located()
    choose(config.recipe, Recipe(), config.mode, config.settings)  # what cannot be is told before anything begins
    chosen_kinds(config.drop)
    _check_installed(config)
    with told(config.track, trackers, progress) as listening:
        run = _train(Path(folder), out, config, progress, listening, earlier)
        listening.summary = run.summary
    return run


def _check_installed(config: TrainConfig) -> None:
    """Refuse a training that has to begin with gradient descent where torch is absent. Raises MissingExtra."""
    is_frozen_first = config.is_solved and config.mode != "full"
    if not is_frozen_first and (missing := missing_for_training()):
        raise MissingExtra(missing[0])


def _train(
    folder: Path, out: Path, config: TrainConfig, progress: Progress, listening: Told, earlier: RunRecord | None
) -> Run:
    began = time.monotonic()
    deadline = None if config.limit_s is None else began + config.limit_s
    with progress.step("total", is_announced=False), join() as world, _held(out, world, config, progress):
        progress.quiet = progress.quiet or not world.is_main
        here = Here(
            folder, out, config, deadline, world, progress, began, listening, _step(folder, config, earlier), earlier
        )
        if world.is_main:
            listening.start(out, config.to_json())
        if config.mode == "frozen" and config.is_solved and config.settings:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in config.settings)
            progress.say(f"without effect: {flags}; the frozen head is solved, it takes no steps")
        start = _prepare(here)
        say_what_is_there(start.material, progress)
        solved = solve_head(start, here)
        here = replace(here, findings=_seen(start, solved.head if solved else None, here))
        outcome = _climb(start, solved, here)
        if outcome is not None and config.report:
            run = finished(start.material, outcome, here)
            write_report(run.bundle, outcome.evaluation, run.summary, out / REPORT, progress)
        world.wait()
    if outcome is None:
        return Run(out, load(out / "bundle"), {})
    return finished(start.material, outcome, here)


@contextmanager
def _held(out: Path, world: World, config: TrainConfig, progress: Progress) -> Iterator[None]:
    """The run's folder for this run alone, freed of what killed ones left."""
    if not world.is_main:
        world.wait()
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
        world.wait()
        yield


def _prepare(here: Here) -> Start:
    """Photos, the backbone, and its features where a head is solved on them."""
    config, progress = here.config, here.progress
    dataset = _photos(here)
    backbone = None if config.mode == "scratch" else _backbone(here).with_grey_bits(grey_bits(dataset, progress))
    features = None
    if backbone is not None and (config.is_solved or config.drop):
        dataset, features = _features(backbone, dataset, here)
    if config.drop:
        dataset = _main_first(here, lambda: treated(dataset, features, config, progress))
    if config.strict and dataset.quarantine:
        first = dataset.quarantine[0]
        raise DataError(
            f"{len(dataset.quarantine)} files of {here.photos} cannot be used, and --strict refuses that; the first: "
            f"{first.path}: {first.reason}. Mend or remove them; `regraft scan` lists all."
        )
    if config.group_by is not None:
        dataset = grouped(dataset, config.group_by)
    return Start(Material(dataset, _split(dataset, here)), backbone, features if config.is_solved else None)


def _step(folder: Path, config: TrainConfig, earlier: RunRecord | None) -> Step:
    """What this training is in the record of its run."""
    if earlier is None:
        return Step("train", str(folder.resolve()), now())
    added = _beyond(config.also, earlier.config.also)
    return Step(
        "add" if added else "relabel", ", ".join(added or _beyond(config.relabel, earlier.config.relabel)), now()
    )


def _beyond(all_of_them: tuple[str, ...], earlier: tuple[str, ...]) -> tuple[str, ...]:
    """Those that have come after the earlier ones."""
    return all_of_them[len(earlier) :]


def _split(dataset: Dataset, here: Here) -> Splits:
    config, earlier = here.config, here.earlier
    if earlier is None:
        return split(dataset, val_fraction=config.val_fraction, seed=config.seed)
    return split_grown(dataset, val_fraction=config.val_fraction, seed=config.seed, given=earlier.split_given)


def _grown(here: Here, earlier: RunRecord) -> Dataset:
    """The photos of an earlier run, as it has them, and those that have come since."""
    config, progress = here.config, here.progress
    parts = [unchanged(earlier.dataset(), progress)]
    for folder in _beyond(config.also, earlier.config.also):
        new = list_photos(folder, min_classes=1, progress=progress)
        parts.append(with_known_sides(new, earlier.sides, earlier.judged))
    dataset = merged(parts)
    roots = [*(earlier.root / root for root in earlier.roots), *(part.root for part in parts)]
    for file in _beyond(config.relabel, earlier.config.relabel):
        dataset = relabelled(dataset, Path(file), roots)
    return checked(dataset)


def _photos(here: Here) -> Dataset:
    """All photos, as the folders say or as somebody has put right. Those that no head is solved on are decoded once."""
    config = here.config
    if here.earlier is not None:
        return _grown(here, here.earlier)
    listed = list_photos if config.is_solved else scan
    several, options = bool(config.also), config.folder_options
    parts = [listed(here.photos, min_classes=2 - several, options=options, progress=here.progress)]
    options = replace(options, known_classes=parts[0].classes)
    parts += [listed(folder, min_classes=1, options=options, progress=here.progress) for folder in config.also]
    dataset = joined(parts, val_fraction=config.val_fraction, seed=config.seed)
    for file in config.relabel:
        dataset = relabelled(dataset, Path(file), [part.root for part in parts])
    return checked(dataset)


def _backbone(here: Here) -> Backbone:
    return _main_first(here, lambda: configured(here.config, here.progress))


def _main_first(here: Here, work: Callable[[], T]) -> T:
    """The main process first: what it fetches and computes, the others find in the cache."""
    if not here.world.is_main:
        here.world.wait()
    done = work()
    if here.world.is_main:
        here.world.wait()
    return done


def _features(backbone: Backbone, dataset: Dataset, here: Here) -> tuple[Dataset, FeatureTable]:
    """Features of all photos, each computed by one of the processes."""
    rank, size = here.world.rank, here.world.size
    if size > 1:
        fill(backbone, dataset.subset(range(rank, len(dataset), size)), progress=here.progress)
        here.world.wait()
    dataset, features = extract(backbone, dataset, progress=here.progress)
    return dataset, features.by_content


def _climb(start: Start, solved: Tried | None, here: Here) -> Outcome | None:
    """Up the ladder as far as mode, time and gain allow. None in processes that do not write."""
    if solved is None or here.config.mode == "full":
        return _climbed_alone(start, solved.head if solved else None, here)
    selection = select(start.material.splits, folds_for(start.material.splits.train, here.config))
    best, is_far = _first(start, solved, selection, here)
    head, has_begun = None, False
    for rung in rungs(here.config, is_far):
        stop = here.world.agree(None if best is None else _why_stop(best, has_begun, here))
        if stop is not None:
            best = best and _decided(best, stop)
            break
        if best is not None:
            announce(start.material, best.outcome, here)
        here.progress.say(f"{rung.name}: fine-tuning; Ctrl-C keeps this one, and the same command continues")
        head = head or _head_to_begin_from(learning_from(start, selection.learned), solved.head, here)
        try:
            best = _climbed(start, head, best, selection, rung, here)
        except TooLittleTime as error:
            here.progress.say(f"{rung.name}: {error}")
            best = best and _decided(best, f"{name_of(best.outcome)}: there was no time left: {rung.name} {error}")
            break
        has_begun = True
    if best is None:
        return None
    if has_begun:
        finished(start.material, best.outcome, here)  # a kill from here on costs nothing
        _forget(here.out)
    return best.outcome


def _climbed_alone(start: Start, head: Head | None, here: Here) -> Outcome | None:
    """Gradient descent that nothing is compared with. None in processes that do not write."""
    tuned = tuned_on_split(start, head, FULL, here)
    if not here.world.is_main:
        return None
    splits = start.material.splits
    with _traced(tuned, start, splits.val if len(splits.val) else splits.judged[1], here) as graft:
        outcome = delivered(graft, start.material, here)
    finished(start.material, outcome, here)
    _forget(here.out)
    return outcome


def _first(start: Start, solved: Tried, selection: Selection, here: Here) -> tuple[Candidate | None, bool]:
    """The frozen model, None in processes that do not write; and whether val is so far from train that it cannot do."""
    config, progress = here.config, here.progress
    selected = selection.count(correct_frozen(solved, selection, start))
    is_far = config.mode == "auto" and is_shifted(selected, solved.head.cross_validated)
    if is_far:
        progress.say(f"val is from elsewhere: {selected}, cross-validated {solved}; so all layers learn, at once")
    if not here.world.is_main:
        return None, is_far
    outcome, chosen = frozen_model(solved, start, config.is_searching and not is_far, here)
    correct, inside = correct_frozen(chosen, selection, start), chosen.head.cross_validated
    unseen = accuracy(inside.num_right, inside.n, "cross-validated") if inside else None
    outside = None if selection.is_set_aside else selection.count(correct)
    return Candidate(outcome, correct, (unseen, outside)), is_far


def _head_to_begin_from(learning: Start, solved: Head, here: Here) -> Head:
    """A head solved without the photos that choose."""
    train = learning.material.splits.train
    if learning.features is None or len(train) == len(solved.held_out):
        return solved
    return head_of(learning.features, train, here.config)


def _climbed(
    start: Start, head: Head, best: Candidate | None, selection: Selection, rung: Rung, here: Here
) -> Candidate | None:
    """The better of what is there and what a training gives. None in processes that do not write."""
    learning = learning_from(start, selection.learned)
    tuned = tuned_on_split(learning, head, rung, here)
    if best is None:
        return None
    unseen = selection.photos if len(selection.photos) else start.material.splits.judged[1]
    with _traced(tuned, learning, unseen, here) as graft:
        return better(graft, rung, best, selection, start, here)


@contextmanager
def _traced(tuned: "Tuned", start: Start, unseen: Dataset, here: Here) -> Iterator[Graft]:
    """A trained network as what bundles are made of, while it lasts."""
    with workspace(here.out) as folder:
        yield traced(folder, tuned, start, unseen, here)


def _decided(best: Candidate, why: str) -> Candidate:
    return replace(best, outcome=replace(best.outcome, decision=sentences(best.outcome.decision, why)))


def _seen(start: Start, head: Head | None, here: Here) -> tuple[Finding, ...]:
    """What the doctor sees, unless it has been seen to. It decides nothing."""
    material = start.material
    seen = () if here.config.drop else glance(material.dataset, material.splits.train, head, start.features)
    for one in seen:
        if one.kind == "split shift":
            here.progress.say(f"doctor: {one.text}")
    if seen:
        what = counted(seen)
        here.progress.say(f"doctor: {what}; look at them with: regraft scan {here.photos} --out findings")
    return seen


def _why_stop(best: Candidate, has_begun: bool, here: Here) -> str | None:
    """Why the model that is there is the last rung, in one sentence; None to climb on. Photos that judge have no say.

    has_begun: whether another training has been before.
    """
    if here.config.mode == "frozen":
        return ""
    name = name_of(best.outcome)
    if full := without_room(*best.counts):
        num_wrong = full.n - round(full.value * full.n)
        wrong = f"only {num_wrong}" if num_wrong else "none"
        return f"{name}: it has {wrong} of {full.n} {full.split} photos wrong, too few to show that any model is better"
    if missing_for_training():
        return f"{name}: letting layers learn may give a better one, and needs torch: pip install 'regraft[train]'"
    left_s = here.left_s(best.outcome.evaluation.accuracy.n)
    if left_s is not None and left_s < WORTH_S:
        return f"{name}: there was no time left to {'train all layers' if has_begun else 'fine-tune'}"
    return None


def _forget(out: Path) -> None:
    """A finished training has nothing to continue."""
    for name in SCRATCH:
        remove_made(out / name)
