"""The story of `regraft train`: from what takes seconds to what takes minutes, each result usable at once.

photos -> features -> solved head -> bundle                          frozen
                           \\-> fine-tuned network -> bundle          full, and auto where it pays
photos -> network from random weights -> bundle                      scratch
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from regraft import doctor
from regraft.backbones.catalog import RANDOM
from regraft.backbones.features import Features, extract, fill
from regraft.backbones.graph import Backbone, configured, from_network
from regraft.data.scan import Dataset, list_photos, scan
from regraft.data.splits import Splits, folds_of, grouped, held_out, split
from regraft.deliver.bundle import load
from regraft.deliver.evaluate import Evaluation
from regraft.ground.config import TrainConfig
from regraft.ground.errors import ConfigError, DataError
from regraft.ground.files import PARTIAL, exclusive, remove, sweep
from regraft.ground.progress import Progress
from regraft.ground.runtime import torch_room
from regraft.ground.statistics import Accuracy, accuracy
from regraft.learn.compare import Pair, no_room, pair
from regraft.learn.head import Head, out_of_fold, score, solve
from regraft.learn.recipe import Recipe, choose, decide
from regraft.learn.search import Tried, Way, best, search
from regraft.learn.world import World, join
from regraft.run import Graft, Material, Run, deliver, finish, place, say_what_is_there, summarise, write_photos

if TYPE_CHECKING:
    from regraft.learn.finetune import Tuned

T = TypeVar("T")
RESERVE_S = 6.0  # of a time limit: what tracing, saving and judging a tuned network takes at least
JUDGED_PER_S = 40  # photos judged a second, a low estimate
FEW = 50  # photos to judge on; with fewer, an open comparison is repeated by cross-validation
MANY = 1000  # photos to judge on, beside which cross-validation over all photos tells nothing new
SEARCH_S, SEARCH_SHARE = 120.0, 0.2  # that the search for better features may take, of the time that is left
WORTH_S = 5.0  # with less time than this, fine-tuning is not begun


def train_run(folder: str | Path, out: str | Path | None, config: TrainConfig, progress: Progress) -> Run:
    """Train as `config` says and leave everything in `out`. Raises RegraftError."""
    out = place(Path(folder), out)
    choose(config.recipe, Recipe(), config.mode, config.settings)  # what cannot be is told before anything begins
    doctor.chosen_kinds(config.drop)
    began = time.monotonic()
    deadline = None if config.limit_s is None else began + config.limit_s
    with progress.step("total"), join() as world, _held(out, world, config):
        progress.quiet = progress.quiet or not world.is_main
        here = _Here(Path(folder), out, config, deadline, world, progress, began)
        if config.mode == "frozen" and config.is_solved and config.settings:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in config.settings)
            progress.say(f"without effect: {flags}; the frozen head is solved, it takes no steps")
        start = _prepare(here)
        say_what_is_there(start.material, progress)
        outcome = _climb(start, here)
        world.wait()
    if outcome is None:
        return Run(out, load(out / "bundle"), {})
    return _finished(start, outcome, here)


@dataclass(frozen=True)
class _Here:
    """Where and how a run goes on.

    photos: what the user named.  out: the run's folder.  deadline, began: of `time.monotonic`.
    """

    photos: Path
    out: Path
    config: TrainConfig
    deadline: float | None
    world: World
    progress: Progress
    began: float

    @property
    def mode(self) -> str:
        """What a tuned model calls itself."""
        return "full" if self.config.mode == "auto" else self.config.mode

    def left_s(self, num_judged: int) -> float | None:
        """Seconds left for gradient descent, when so many photos are judged after it; None for no limit."""
        if self.deadline is None:
            return None
        return self.deadline - time.monotonic() - RESERVE_S - num_judged / JUDGED_PER_S


@dataclass(frozen=True)
class _Start:
    """What a mode begins with. backbone: None for random weights.  features: None where no head is solved."""

    material: Material
    backbone: Backbone | None
    features: Features | None


@dataclass(frozen=True)
class _Outcome:
    """What became the bundle, how good it is, and why it was chosen. features: that it was solved on, if it was."""

    graft: Graft
    evaluation: Evaluation
    features: Features | None = None
    decision: str = ""


@contextmanager
def _held(out: Path, world: World, config: TrainConfig) -> Iterator[None]:
    """The run's folder for this run alone, freed of what killed ones left."""
    if not world.is_main:
        world.wait()
        yield
        return
    with exclusive(out):
        sweep(out)
        if config.restart:
            _forget(out)
        if not (out / "checkpoints").exists():
            remove(out / "history.jsonl")  # of the run before this one
        world.wait()
        yield


def _prepare(here: _Here) -> _Start:
    """Photos, the backbone, and its features where a head is solved on them."""
    config, progress = here.config, here.progress
    dataset = (list_photos if config.is_solved else scan)(here.photos, progress=progress)
    backbone = None if config.mode == "scratch" else _backbone(here)
    features = None
    if backbone is not None and (config.is_solved or config.drop):
        dataset, features = _features(backbone, dataset, here)
    if config.drop:
        dataset = _main_first(here, lambda: doctor.treated(dataset, features, config, progress))
    if config.strict and dataset.quarantine:
        first = dataset.quarantine[0]
        raise DataError(
            f"{len(dataset.quarantine)} files of {here.photos} cannot be used, and --strict refuses that; the first: "
            f"{first.path}: {first.reason}. Mend or remove them; `regraft scan` lists all."
        )
    if config.group_by is not None:
        dataset = grouped(dataset, config.group_by)
    splits = split(dataset, val_fraction=config.val_fraction, seed=config.seed)
    return _Start(Material(dataset, splits), backbone, features if config.is_solved else None)


def _backbone(here: _Here) -> Backbone:
    return _main_first(here, lambda: configured(here.config, here.progress))


def _main_first(here: _Here, work: Callable[[], T]) -> T:
    """The main process first: what it fetches and computes, the others find in the cache."""
    if not here.world.is_main:
        here.world.wait()
    done = work()
    if here.world.is_main:
        here.world.wait()
    return done


def _features(backbone: Backbone, dataset: Dataset, here: _Here) -> tuple[Dataset, Features]:
    """Features of all photos, each computed by one of the processes."""
    rank, size = here.world.rank, here.world.size
    if size > 1:
        fill(backbone, dataset.subset(range(rank, len(dataset), size)), progress=here.progress)
        here.world.wait()
    return extract(backbone, dataset, progress=here.progress)


def _climb(start: _Start, here: _Here) -> _Outcome | None:
    """Up the ladder as far as mode, time and gain allow. None in processes that do not write."""
    solved = _solved(start, here)
    head = solved.head if solved else None
    _say_what_the_doctor_sees(start.material, head, here)
    frozen = None
    if solved and here.config.mode != "full":
        frozen = _frozen(solved, start, here) if here.world.is_main else None
        stop = here.world.agree(None if frozen is None else _why_stop(frozen, here))
        if stop is not None:
            return None if frozen is None else replace(frozen, decision=" ".join(filter(None, (frozen.decision, stop))))
        if frozen is not None:
            _announce(start, frozen, here)
        here.progress.say("fine-tuning goes on; Ctrl-C keeps this one, and the same command continues")
    tuned = _tuned_on_split(start, head, here)
    if not here.world.is_main:
        return None
    with tempfile.TemporaryDirectory(dir=here.out, prefix=PARTIAL) as folder:
        graft = _traced(Path(folder), tuned, start, here)
        outcome = _delivered(graft, start, here) if frozen is None else _better(graft, frozen, start, here)
    _finished(start, outcome, here)  # a kill from here on costs nothing
    _forget(here.out)
    return outcome


def _say_what_the_doctor_sees(material: Material, head: Head | None, here: _Here) -> None:
    if not here.config.drop and (seen := doctor.glance(material.dataset, material.splits.train, head)):
        here.progress.say(f"doctor: {seen}; look at them with: regraft scan {here.photos} --out findings")


def _solved(start: _Start, here: _Here) -> Tried | None:
    """The frozen regime: the head of a convex problem on the features, where there are any."""
    if start.backbone is None or start.features is None:
        return None
    with here.progress.step("solve head"):
        head = _head(start.features, start.material.splits.train, here.config)
    return Tried(Way(f"{start.backbone.preprocessing.height} px", start.backbone, start.features), head)


def _frozen(plain: Tried, start: _Start, here: _Here) -> _Outcome:
    """The solved head as the bundle; where it is wanted and there is room, that of the best features instead."""
    frozen = _delivered(_graft(plain, [plain], start, here), start, here)
    if not here.config.is_searching or not plain.head.curve or no_room(plain.score.num_right, plain.score.n):
        return frozen
    _announce(start, frozen, here)
    here.progress.say("other features of the same network, cross-validated on the photos to learn from:")
    here.progress.say(f"  {plain}")
    splits = start.material.splits
    left_s = here.left_s(len(splits.judged[1]))
    budget_s = SEARCH_S if left_s is None else min(SEARCH_S, left_s * SEARCH_SHARE)
    folds = _folds(splits.train, here.config)
    tried = search(plain, start.material.dataset, splits.train, folds, here.config, budget_s, here.progress)
    chosen = best(tried)
    if chosen is plain:
        return frozen
    frozen = _delivered(_graft(chosen, tried, start, here), start, here)
    losses = f"cross-validated log loss {chosen.score.log_loss:.3f} instead of {plain.score.log_loss:.3f}"
    return replace(frozen, features=chosen.way.features, decision=f"features of {chosen.way.name}: {losses}.")


def _graft(one: Tried, tried: list[Tried], start: _Start, here: _Here) -> Graft:
    head, material = one.head, start.material
    is_told = material.splits.given or len(material.splits.judged[1]) >= MANY
    whole = None if is_told else _cross_validated(one.way.features, material.dataset, head, here.config)
    details: dict[str, Any] = {"head": {"penalty": head.penalty, "curve": [vars(point) for point in head.curve]}}
    if len(tried) > 1:
        details["searched"] = [other.to_json() for other in tried]
    return Graft("frozen", one.way.backbone, head.weight, head.bias, details, whole)


def _head(features: Features, photos: Dataset, config: TrainConfig) -> Head:
    own = features.of(photos)
    return solve(own, len(photos.classes), _folds(photos, config))


def _folds(photos: Dataset, config: TrainConfig) -> np.ndarray:
    return folds_of(photos, config.num_folds, config.seed)


def _cross_validated(features: Features, photos: Dataset, head: Head, config: TrainConfig) -> Accuracy | None:
    """Accuracy over all photos, each judged by a head that has not seen it, at the penalty the train split chose."""
    folds = _folds(photos, config)
    if not (folds >= 0).any():
        return None
    found = score(out_of_fold(features, len(photos.classes), folds, head.penalty), photos.labels, head.penalty)
    return accuracy(found.num_right, found.n, "cross-validated")


def _delivered(graft: Graft, start: _Start, here: _Here) -> _Outcome:
    evaluation = deliver(here.out, graft, start.material, here.config, here.progress)
    write_photos(here.out, start.material)
    return _Outcome(graft, evaluation, start.features)


def _why_stop(frozen: _Outcome, here: _Here) -> str | None:
    """Why the frozen model is the last rung, in one sentence; None to climb on."""
    if here.config.mode == "frozen":
        return ""
    a = frozen.evaluation.accuracy
    if _no_room(frozen):
        num_right = round(a.value * a.n)
        wrong = f"only {a.n - num_right}" if num_right < a.n else "none"
        return f"frozen: it has {wrong} of {a.n} {a.split} photos wrong, too few to show that any model is better"
    left_s = here.left_s(a.n)
    if left_s is not None and left_s < WORTH_S:
        return "frozen: there was no time left to fine-tune"
    return None


def _no_room(frozen: _Outcome) -> bool:
    a, cv = frozen.evaluation.accuracy, frozen.graft.cross_validated
    return no_room(round(a.value * a.n), a.n) and (cv is None or no_room(round(cv.value * cv.n), cv.n))


def _announce(start: _Start, frozen: _Outcome, here: _Here) -> None:
    """A rung is there: say so, and leave it as a whole run in case nothing better comes."""
    _finished(start, frozen, here)
    here.progress.say(f"usable now: {here.out / 'bundle'}: {frozen.evaluation.accuracy}")


def _tuned_on_split(start: _Start, head: Head | None, here: _Here) -> "Tuned":
    """Gradient descent on the photos to learn from."""
    splits = start.material.splits
    point = head.best if head else None
    decided = decide(here.mode, len(splits.train), 1 - point.num_right / point.n if point else None)
    recipe = choose(here.config.recipe, decided, here.mode, here.config.settings)
    train, val = _learned_and_watched(splits, recipe, here.config)
    left_s = here.left_s(len(splits.judged[1]))
    return _tuned(start, head, recipe, {"train": train, "val": val, "budget_s": left_s, "folder": here.out}, here)


def _tuned(start: _Start, head: Head | None, recipe: Recipe, job: dict[str, Any], here: _Here) -> "Tuned":
    """Gradient descent from the pretrained network or from random weights. job: the parts of a Job that differ."""
    finetuning, networks = torch_room("learn.finetune"), torch_room("backbones.network")
    config = here.config
    if start.backbone is None:
        network = networks.build(config.backbone, RANDOM, seed=config.seed)
    else:
        network = networks.restore(start.backbone.info, start.backbone.trunk)
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


def _identity(start: _Start, here: _Here) -> dict[str, str]:
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


def _traced(folder: Path, tuned: "Tuned", start: _Start, here: _Here) -> Graft:
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
    return Graft(here.mode, backbone, weight, layer.bias.detach().numpy(), details)


def _better(graft: Graft, frozen: _Outcome, start: _Start, here: _Here) -> _Outcome:
    """The tuned model as the bundle if it is clearly better on the same photos, else the frozen one that is there."""
    found: list[tuple[Pair, str]] = []

    def is_better(evaluation: Evaluation) -> bool:
        a = evaluation.accuracy
        compared, how = pair("frozen", frozen.evaluation.right, "full", evaluation.right), a.split
        few = compared.is_open and a.n < FEW and not start.material.splits.given and here.world.size == 1
        if few and frozen.features is not None:
            here.progress.say(f"{compared.decision(how)}: undecided, so both are cross-validated")
            compared, how = _cross_compared(start, frozen.features, graft, here), "cross-validated"
        found.append((compared, how))
        return compared.b_wins

    evaluation = deliver(here.out, graft, start.material, here.config, here.progress, accept=is_better)
    compared, how = found[0]
    kept = _Outcome(graft, evaluation) if compared.b_wins else frozen
    return replace(kept, decision=" ".join(filter(None, (kept.decision, compared.decision(how)))))


def _cross_compared(start: _Start, features: Features, graft: Graft, here: _Here) -> Pair:
    """Frozen and full on every photo, each judged by models that have not seen it."""
    dataset, recipe = start.material.dataset, Recipe(**graft.details["recipe"])
    folds = _folds(dataset, here.config)
    said = np.full(len(dataset), -1)
    numbers = [int(number) for number in np.unique(folds[folds >= 0])]
    for done, number in enumerate(numbers):
        inside = np.flatnonzero(folds == number)
        train, val = dataset.subset(np.flatnonzero(folds != number)), dataset.subset(inside)
        left_s = here.left_s(0)
        budget_s = None if left_s is None else left_s / (len(numbers) - done)
        here.progress.say(f"fold {done + 1} of {len(numbers)}")
        job = {"train": train, "val": val, "budget_s": budget_s, "folder": here.out / "folds" / str(number)}
        head = _head(start.features, train, here.config) if start.features else None
        said[inside] = _tuned(start, head, recipe, job, here).answers
    judged = folds >= 0
    penalty = _head(features, dataset, here.config).penalty
    frozen = np.nan_to_num(out_of_fold(features, len(dataset.classes), folds, penalty)).argmax(axis=1)
    return pair("frozen", (frozen == dataset.labels)[judged], "full", (said == dataset.labels)[judged])


def _forget(out: Path) -> None:
    """A finished training has nothing to continue."""
    remove(out / "checkpoints")
    remove(out / "folds")


def _finished(start: _Start, outcome: _Outcome, here: _Here) -> Run:
    summary = summarise(here.out, outcome.graft, start.material, outcome.evaluation, outcome.decision, here.progress)
    summary["seconds"].setdefault("total", round(time.monotonic() - here.began, 3))  # so far, of a run that goes on
    return finish(here.out, summary, outcome.evaluation)
