"""What a training hands from step to step, and how a trained head becomes a judged bundle with its record beside it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regraft.backbones.familiar import Familiar
from regraft.backbones.features import FeatureTable
from regraft.backbones.graph import Backbone
from regraft.data.findings import Finding
from regraft.data.scan import Dataset
from regraft.data.splits import Splits
from regraft.deliver.build import manifest_of, seal, write_model
from regraft.deliver.bundle import Bundle, load
from regraft.deliver.evaluate import Evaluation, evaluate_dataset
from regraft.ground.config import TrainConfig
from regraft.ground.files import sha256_json
from regraft.ground.ownership import output_folder
from regraft.ground.progress import Progress
from regraft.ground.statistics import Accuracy
from regraft.ground.trackers import Told
from regraft.learn.world import World
from regraft.run_dir import RunRecord, Step, photo_records

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
class Material:
    """What is learned from. dataset: all photos.  splits: those to learn from and those to judge on."""

    dataset: Dataset
    splits: Splits

    @property
    def fingerprint(self) -> str:
        """Hash of the photos' contents and labels, whatever their names and order."""
        d = self.dataset
        return sha256_json(sorted(zip(d.hashes, (d.classes[label] for label in d.labels), strict=True)))


@dataclass(frozen=True)
class Graft:
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
    known: Familiar | None = None


@dataclass(frozen=True)
class Here:
    """Where and how a run goes on.

    photos: what the user named.  out: the run's folder.  deadline, began: of `time.monotonic`.  findings: what may be
    wrong with the photos, as far as a training sees it.  told: what hears of every epoch.  earlier: the run that goes
    on from here, with one step more; None for a first training.  step: what this is in the record.
    """

    photos: Path
    out: Path
    config: TrainConfig
    deadline: float | None
    world: World
    progress: Progress
    began: float
    told: Told
    step: Step
    earlier: RunRecord | None = None
    findings: tuple[Finding, ...] = ()

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
class Start:
    """What a mode begins with. backbone: None for random weights.  features: None where no head is solved."""

    material: Material
    backbone: Backbone | None
    features: FeatureTable | None


@dataclass(frozen=True)
class Outcome:
    """What became the bundle, how good it is, and why it was chosen. features: that it was solved on, if it was."""

    graft: Graft
    evaluation: Evaluation
    features: FeatureTable | None = None
    decision: str = ""


def deliver(
    graft: Graft, material: Material, here: Here, accept: Callable[[Evaluation], bool] = lambda _: True
) -> Evaluation:
    """Save a model, judge it as it was read back from disk, and make it the run's bundle if it is accepted."""
    try:
        with output_folder(here.out / "bundle") as partial, here.progress.step("save and judge"):
            write_model(partial, graft.backbone, graft.weight, graft.bias, material.dataset.classes, graft.known)
            evaluation = _judge_and_seal(partial, graft, material, here.config)
            if not accept(evaluation):
                raise _Declined
    except _Declined:
        pass
    return evaluation


def delivered(graft: Graft, material: Material, here: Here, features: FeatureTable | None = None) -> Outcome:
    """A model as the run's bundle. features: that it was solved on."""
    return Outcome(graft, deliver(graft, material, here), features)


def finished(material: Material, outcome: Outcome, here: Here) -> Run:
    """Write the record of the run, with what `regraft train --json` prints, and read the bundle back."""
    graft, evaluation, cv = outcome.graft, outcome.evaluation, outcome.graft.cross_validated
    seconds = {name.replace(" ", "_"): round(value, 3) for name, value in here.progress.seconds.items()}
    seconds.setdefault("total", round(time.monotonic() - here.began, 3))  # so far, of a run that goes on
    summary = {
        "bundle": str(here.out / "bundle"),
        "mode": graft.mode,
        "backbone": graft.backbone.name,
        "classes": list(material.dataset.classes),
        "photos": str(here.photos.resolve()),
        "images": _counts(material.dataset),
        "accuracy": evaluation.accuracy.to_json(),
        "cross_validated": None if cv is None else cv.to_json(),
        "decision": outcome.decision,
        "findings": [one.to_json(material.dataset) for one in here.findings],
        "history": graft.details.get("history", []),
        "seconds": seconds,
    }
    bundle = load(here.out / "bundle")
    summary = _record(material, outcome, bundle, here).write(summary)
    return Run(here.out, bundle, summary, evaluation)


def _record(material: Material, outcome: Outcome, bundle: Bundle, here: Here) -> RunRecord:
    """All that is known of the run."""
    dataset, earlier = material.dataset, here.earlier
    root = dataset.root.resolve()
    folders = [here.photos if here.photos.is_dir() else here.photos.parent, *map(Path, here.config.also)]
    return RunRecord(
        run=here.out,
        folder=here.photos,
        root=root,
        roots=tuple(os.path.relpath(folder.resolve(), root) for folder in folders),
        config=here.config,
        photos=photo_records(material.splits, here.step.at),
        quarantine=dataset.quarantine,
        split_given=material.splits.given,
        steps=(*(earlier.steps if earlier else ()), here.step),
        decision=outcome.decision,
        bundle_sha256=bundle.sha256,
    )


def announce(material: Material, outcome: Outcome, here: Here) -> None:
    """A rung is there: say so, and leave it as a whole run in case nothing better comes."""
    finished(material, outcome, here)
    here.progress.say(f"usable now: {here.out / 'bundle'}: {outcome.evaluation.accuracy}")


def say_what_is_there(material: Material, progress: Progress) -> None:
    """Counts, notes and what was left out, before anything long begins."""
    dataset, splits = material.dataset, material.splits
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


def _judge_and_seal(folder: Path, graft: Graft, material: Material, config: TrainConfig) -> Evaluation:
    """Judge the bundle as it was read back from disk, then write what was found into it."""
    provenance = _provenance(graft, material, config)
    classes = material.dataset.classes
    manifest = manifest_of(graft.backbone, classes, graft.temperature, graft.thresholds, provenance)
    seal(folder, manifest)
    name, dataset = material.splits.judged
    evaluation = evaluate_dataset(load(folder), dataset, name)
    metrics = {key: value for key, value in evaluation.to_json().items() if key not in ("classes", "quarantined")}
    if graft.cross_validated is not None:
        metrics["cross_validated"] = graft.cross_validated.to_json()
    seal(folder, {**manifest, "metrics": metrics})
    return evaluation


def _provenance(graft: Graft, material: Material, config: TrainConfig) -> dict[str, Any]:
    splits = material.splits
    return {
        "mode": graft.mode,
        "config": config.portable(),
        "data_sha256": material.fingerprint,
        "images": _counts(material.dataset),
        "split": {"given": splits.given, "train": len(splits.train), "judged": len(splits.judged[1])},
        **graft.details,
    }


def _counts(dataset: Dataset) -> dict[str, int]:
    return {"found": dataset.num_found, "used": len(dataset), "quarantined": len(dataset.quarantine)}
