"""What a training hands from step to step, and how a trained head becomes a judged bundle with its record beside it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backbones.backbone import Backbone
from regraft.backbones.features import FeatureTable
from regraft.bundle.bundle import Bundle, load
from regraft.bundle.write import manifest_of, seal, write_model
from regraft.core.config import TrainConfig
from regraft.core.files import sha256_json
from regraft.core.ownership import output_folder
from regraft.core.progress import Progress
from regraft.core.statistics import Accuracy
from regraft.core.trackers import TrackerSet
from regraft.data.issues import Issue
from regraft.data.scan import Dataset
from regraft.data.splits import Splits
from regraft.evaluation.evaluate import Evaluation, evaluate_dataset
from regraft.models.ood import FamiliarRegion
from regraft.run_dir import RunRecord, Step, photo_records
from regraft.training.distributed import ProcessGroup

RESERVE_S = 6.0  # of a time limit: what tracing, saving and judging a tuned network takes at least
CLASSES = 50  # that are counted in a line
JUDGED_PER_S = 40  # photos judged a second, a low estimate


@dataclass(frozen=True)
class Run:
    """A finished training. out: its folder.  summary: what `regraft train --json` prints.

    evaluation: of the bundle, None in processes other than the main one.
    """

    out: Path
    bundle: Bundle
    summary: dict[str, Any]
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class SplitDataset:
    """What is learned from. dataset: all photos.  splits: those to learn from and those to judge on."""

    dataset: Dataset
    splits: Splits

    @property
    def fingerprint(self) -> str:
        """Hash of the photos' contents and labels, whatever their names and order."""
        d = self.dataset
        return sha256_json(sorted(zip(d.hashes, (d.classes[label] for label in d.labels), strict=True)))


@dataclass(frozen=True)
class TrainedModel:
    """A backbone with a new head. mode: how it was made.  weight: `(C, D)` and bias: `(C,)` float32.

    details: how it came to be, for the record.  cross_validated: accuracy over all photos, each judged by a head that
    has not seen it.  temperature: divides its logits.  thresholds: from which probability on answers can be relied on.
    known: where the features lie of photos it has learned from.
    """

    mode: str
    backbone: Backbone
    weight: np.ndarray
    bias: np.ndarray
    details: dict[str, Any] = field(default_factory=dict)
    cross_validated: Accuracy | None = None
    temperature: float = 1.0
    thresholds: dict[str, Any] = field(default_factory=dict)
    known: FamiliarRegion | None = None


@dataclass(frozen=True)
class RunContext:
    """Where and how a run goes on.

    photos: what the user named.  out: the run's folder.  deadline, began: of `time.monotonic`.  findings: what may be
    wrong with the photos, as far as a training sees it.  trackers: what hears of every epoch.  earlier: the run that
    goes on from here, with one step more; None for a first training.  step: what this is in the record.
    """

    photos: Path
    out: Path
    config: TrainConfig
    deadline: float | None
    world: ProcessGroup
    progress: Progress
    began: float
    trackers: TrackerSet
    step: Step
    earlier: RunRecord | None = None
    findings: tuple[Issue, ...] = ()

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
class TrainInputs:
    """What a mode begins with. backbone: None for random weights.  features: None where no head is solved."""

    photos_split: SplitDataset
    backbone: Backbone | None
    features: FeatureTable | None


@dataclass(frozen=True)
class Outcome:
    """What became the bundle, how good it is, and why it was chosen. features: that it was solved on, if it was."""

    model: TrainedModel
    evaluation: Evaluation
    features: FeatureTable | None = None
    decision: str = ""


def deliver(
    model: TrainedModel,
    photos_split: SplitDataset,
    context: RunContext,
    accept: Callable[[Evaluation], bool] = lambda _: True,
) -> Evaluation:
    """Save a model, judge it as it was read back from disk, and make it the run's bundle if it is accepted."""
    try:
        with output_folder(context.out / "bundle") as partial, context.progress.step("save and judge"):
            write_model(partial, model.backbone, model.weight, model.bias, photos_split.dataset.classes, model.known)
            evaluation = _judge_and_seal(partial, model, photos_split, context.config)
            if not accept(evaluation):
                raise _Declined
    except _Declined:
        pass
    return evaluation


def delivered(
    model: TrainedModel, photos_split: SplitDataset, context: RunContext, features: FeatureTable | None = None
) -> Outcome:
    """A model as the run's bundle. features: that it was solved on."""
    return Outcome(model, deliver(model, photos_split, context), features)


def finished(photos_split: SplitDataset, outcome: Outcome, context: RunContext) -> Run:
    """Write the record of the run, with what `regraft train --json` prints, and read the bundle back."""
    model, evaluation, cv = outcome.model, outcome.evaluation, outcome.model.cross_validated
    seconds = {name.replace(" ", "_"): round(value, 3) for name, value in context.progress.seconds.items()}
    seconds.setdefault("total", round(time.monotonic() - context.began, 3))  # so far, of a run that goes on
    summary = {
        "bundle": str(context.out / "bundle"),
        "mode": model.mode,
        "backbone": model.backbone.name,
        "classes": list(photos_split.dataset.classes),
        "photos": str(context.photos.resolve()),
        "images": _counts(photos_split.dataset),
        "accuracy": evaluation.accuracy.to_json(),
        "cross_validated": None if cv is None else cv.to_json(),
        "decision": outcome.decision,
        "findings": [one.to_json(photos_split.dataset) for one in context.findings],
        "history": model.details.get("history", []),
        "seconds": seconds,
    }
    bundle = load(context.out / "bundle")
    summary = _record(photos_split, outcome, bundle, context).write(summary)
    return Run(context.out, bundle, summary, evaluation)


def _record(photos_split: SplitDataset, outcome: Outcome, bundle: Bundle, context: RunContext) -> RunRecord:
    """All that is known of the run."""
    dataset, earlier = photos_split.dataset, context.earlier
    root = dataset.root.resolve()
    folders = [context.photos if context.photos.is_dir() else context.photos.parent, *map(Path, context.config.also)]
    return RunRecord(
        run=context.out,
        folder=context.photos,
        root=root,
        roots=tuple(os.path.relpath(folder.resolve(), root) for folder in folders),
        config=context.config,
        photos=photo_records(photos_split.splits, context.step.at),
        quarantine=dataset.quarantine,
        split_given=photos_split.splits.given,
        steps=(*(earlier.steps if earlier else ()), context.step),
        decision=outcome.decision,
        bundle_sha256=bundle.sha256,
    )


def announce(photos_split: SplitDataset, outcome: Outcome, context: RunContext) -> None:
    """A rung is there: say so, and leave it as a whole run in case nothing better comes."""
    finished(photos_split, outcome, context)
    context.progress.say(f"usable now: {context.out / 'bundle'}: {outcome.evaluation.accuracy}")


def say_what_is_there(photos_split: SplitDataset, progress: Progress) -> None:
    """Counts, notes and what was left out, before anything long begins."""
    dataset, splits = photos_split.dataset, photos_split.splits
    several = [f"{name} {count}" for name, count in dataset.counts.items()]
    counts = ", ".join(several[:CLASSES]) + (f" and {len(several) - CLASSES} more" if len(several) > CLASSES else "")
    progress.say(f"photos: {len(dataset)} used of {dataset.num_found} found; {counts}")
    for note in dataset.notes:
        progress.say(f"  {note}")
    for q in dataset.quarantine:
        progress.say(f"  left out: {q.path}: {q.reason}")
    name, judged = splits.judged
    how = "as the folder says" if splits.given else "drawn by content, the same every time"
    progress.say(f"split: {len(splits.train)} to learn from, {len(judged)} {name} to judge on ({how})")


class _Declined(Exception):
    """A model that was judged and is not to be kept."""


def _judge_and_seal(folder: Path, model: TrainedModel, photos_split: SplitDataset, config: TrainConfig) -> Evaluation:
    """Judge the bundle as it was read back from disk, then write what was found into it."""
    provenance = _provenance(model, photos_split, config)
    classes = photos_split.dataset.classes
    manifest = manifest_of(model.backbone, classes, model.temperature, model.thresholds, provenance)
    seal(folder, manifest)
    name, dataset = photos_split.splits.judged
    evaluation = evaluate_dataset(load(folder), dataset, name)
    metrics = {key: value for key, value in evaluation.to_json().items() if key not in ("classes", "quarantined")}
    if model.cross_validated is not None:
        metrics["cross_validated"] = model.cross_validated.to_json()
    seal(folder, {**manifest, "metrics": metrics})
    return evaluation


def _provenance(model: TrainedModel, photos_split: SplitDataset, config: TrainConfig) -> dict[str, Any]:
    splits = photos_split.splits
    return {
        "mode": model.mode,
        "config": config.portable(),
        "data_sha256": photos_split.fingerprint,
        "images": _counts(photos_split.dataset),
        "split": {"given": splits.given, "train": len(splits.train), "judged": len(splits.judged[1])},
        **model.details,
    }


def _counts(dataset: Dataset) -> dict[str, int]:
    return {"found": dataset.num_found, "used": len(dataset), "quarantined": len(dataset.quarantine)}
