"""What a training hands from step to step, and how a trained head becomes an evaluated bundle with its record."""

import os
import time
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
from regraft.data.remote import copy_of, shown
from regraft.data.scan import Dataset
from regraft.data.sources import is_folder
from regraft.data.splits import Splits
from regraft.evaluation.evaluate import Evaluation, evaluate_dataset
from regraft.models.ood import OodDetector
from regraft.run_dir import RunRecord, Step, photo_records
from regraft.training.distributed import ProcessGroup

RESERVE_S = 6.0  # of a time limit: what tracing, saving and evaluating a tuned network takes at least
CLASSES = 50  # that are listed with their counts in a line
EVALUATED_PER_S = 40  # photos evaluated a second, a low estimate


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        out: The run's folder.
        bundle: The model.
        summary: What `regraft train --json` prints; empty in processes other than the main one.
        evaluation: How good the bundle is; None in processes other than the main one.
    """

    out: Path
    bundle: Bundle
    summary: dict[str, Any]
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class SplitDataset:
    """The photos of a run.

    Attributes:
        dataset: All photos.
        splits: Those to learn from, and those to evaluate on.
    """

    dataset: Dataset
    splits: Splits

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the photos' contents and labels, whatever their names and order."""
        d = self.dataset
        return sha256_json(sorted(zip(d.hashes, (d.classes[label] for label in d.labels), strict=True)))


@dataclass(frozen=True)
class TrainedModel:
    """A backbone of D features with a new head of C classes.

    Attributes:
        mode: How it was made, as `TrainConfig.mode` without "auto".
        backbone: The network below the head.
        weight: `(C, D)` float32.
        bias: `(C,)` float32.
        details: How it came to be, for the record.
        cross_validated: Accuracy over all photos, each by a head that has not seen it; None where that was not
            measured.
        temperature: What logits are divided by.
        thresholds: From which probability on answers can be relied on, as `models.calibration.thresholds` gives it.
        ood: Where the features of photos lie that it has learned from; None where that is not known.
    """

    mode: str
    backbone: Backbone
    weight: np.ndarray
    bias: np.ndarray
    details: dict[str, Any] = field(default_factory=dict)
    cross_validated: Accuracy | None = None
    temperature: float = 1.0
    thresholds: dict[str, Any] = field(default_factory=dict)
    ood: OodDetector | None = None


@dataclass(frozen=True)
class RunContext:
    """Where and how a run is carried out.

    Attributes:
        photos: What the user named: a folder or a list.
        out: The run's folder.
        config: How to train.
        deadline: When the time is up, in seconds of `time.monotonic`; None for no limit.
        world: The processes that train together.
        progress: Where messages and progress bars go.
        began: When the run began, in seconds of `time.monotonic`.
        trackers: Are called with every epoch.
        step: What this training is in the record of the run.
        earlier: The run that this training goes on from, adding a step; None for a first training.
        issues: What may be wrong with the photos, as far as a training sees it.
        labelled: The photos where somebody has labelled them in a sitting; None where folders or a list say what is
            there.
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
    issues: tuple[Issue, ...] = ()
    labelled: Dataset | None = None

    @property
    def mode(self) -> str:
        """The mode that a tuned model is recorded with: "full" where the run's is "auto"."""
        return "full" if self.config.mode == "auto" else self.config.mode

    def left_s(self, num_evaluated: int) -> float | None:
        """Return the seconds left for gradient descent; None for no limit.

        Args:
            num_evaluated: How many photos are evaluated after it.
        """
        if self.deadline is None:
            return None
        return self.deadline - time.monotonic() - RESERVE_S - num_evaluated / EVALUATED_PER_S


@dataclass(frozen=True)
class TrainInputs:
    """What a training begins with.

    Attributes:
        photos_split: The photos.
        backbone: The pretrained network; None for random weights.
        features: Of all photos; None where no head is solved.
    """

    photos_split: SplitDataset
    backbone: Backbone | None
    features: FeatureTable | None


@dataclass(frozen=True)
class Outcome:
    """A model that became the bundle.

    Attributes:
        model: The model.
        evaluation: How good it is.
        features: What its head was solved on; None for a head that was not solved.
        decision: Why it was chosen, in sentences; "" where there was no choice.
    """

    model: TrainedModel
    evaluation: Evaluation
    features: FeatureTable | None = None
    decision: str = ""


def save_bundle(
    model: TrainedModel, photos_split: SplitDataset, context: RunContext, features: FeatureTable | None = None
) -> Outcome:
    """Save a model, evaluate it as it is read back from disk, and make it the run's bundle.

    Args:
        model: The model.
        photos_split: The photos.
        context: Of the run.
        features: What its head was solved on; None for a head that was not solved.
    """
    with output_folder(context.out / "bundle") as partial, context.progress.step("save and judge"):
        write_model(partial, model.backbone, model.weight, model.bias, photos_split.dataset.classes, model.ood)
        evaluation = _evaluate_and_seal(partial, model, photos_split, context.config)
    return Outcome(model, evaluation, features)


def finished(photos_split: SplitDataset, outcome: Outcome, context: RunContext) -> Run:
    """Write the record of the run, with what `regraft train --json` prints, and read the bundle back.

    Args:
        photos_split: The photos.
        outcome: What became the bundle.
        context: Of the run.
    """
    model, evaluation, cv = outcome.model, outcome.evaluation, outcome.model.cross_validated
    seconds = {name.replace(" ", "_"): round(value, 3) for name, value in context.progress.seconds.items()}
    seconds.setdefault("total", round(time.monotonic() - context.began, 3))  # so far, of a run that goes on
    summary = {
        "bundle": str(context.out / "bundle"),
        "mode": model.mode,
        "backbone": model.backbone.name,
        "classes": list(photos_split.dataset.classes),
        "photos": shown(context.photos),
        "images": _counts(photos_split.dataset),
        "accuracy": evaluation.accuracy.to_json(),
        "cross_validated": None if cv is None else cv.to_json(),
        "decision": outcome.decision,
        "findings": [one.to_json(photos_split.dataset) for one in context.issues],
        "history": model.details.get("history", []),
        "seconds": seconds,
    }
    bundle = load(context.out / "bundle")
    summary = _record(photos_split, outcome, bundle, context).write(summary)
    return Run(context.out, bundle, summary, evaluation)


def _record(photos_split: SplitDataset, outcome: Outcome, bundle: Bundle, context: RunContext) -> RunRecord:
    """Gather all that is known of the run."""
    dataset, earlier = photos_split.dataset, context.earlier
    root = dataset.root.resolve()
    photos, *also = map(copy_of, (context.photos, *map(Path, context.config.also)))
    folders = [photos if is_folder(photos) else photos.parent, *also]
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
    """Say that a phase has a usable model, and leave it as a whole run in case nothing better comes."""
    finished(photos_split, outcome, context)
    context.progress.say(f"usable now: {context.out / 'bundle'}: {outcome.evaluation.accuracy}")


def say_what_is_there(photos_split: SplitDataset, progress: Progress) -> None:
    """Print counts, notes, what was left out and how photos are split, before anything long begins."""
    dataset, splits = photos_split.dataset, photos_split.splits
    several = [f"{name} {count}" for name, count in dataset.counts.items()]
    counts = ", ".join(several[:CLASSES]) + (f" and {len(several) - CLASSES} more" if len(several) > CLASSES else "")
    progress.say(f"photos: {len(dataset)} used of {dataset.num_found} found; {counts}")
    for note in dataset.notes:
        progress.say(f"  {note}")
    for q in dataset.quarantine:
        progress.say(f"  left out: {q.path}: {q.reason}")
    how = "as the folder says" if splits.given else "drawn by content, the same every time"
    num_train, num_evaluated = len(splits.train), len(splits.eval_photos)
    progress.say(f"split: {num_train} to learn from, {num_evaluated} {splits.eval_split} to judge on ({how})")


def _evaluate_and_seal(
    folder: Path, model: TrainedModel, photos_split: SplitDataset, config: TrainConfig
) -> Evaluation:
    """Evaluate the bundle as it is read back from disk, then write the result into its manifest."""
    provenance = _provenance(model, photos_split, config)
    classes = photos_split.dataset.classes
    manifest = manifest_of(model.backbone, classes, model.temperature, model.thresholds, provenance)
    seal(folder, manifest)
    splits = photos_split.splits
    evaluation = evaluate_dataset(load(folder), splits.eval_photos, splits.eval_split)
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
        "split": {"given": splits.given, "train": len(splits.train), "judged": len(splits.eval_photos)},
        **model.details,
    }


def _counts(dataset: Dataset) -> dict[str, int]:
    return {"found": dataset.num_found, "used": len(dataset), "quarantined": len(dataset.quarantine)}
