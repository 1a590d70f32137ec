"""The commands `regraft add` and `regraft relabel`: learn from more, or better labelled, photos in seconds.

Photos, labels and splits are those of the run's record, with what is new. Features of known photos are in the cache, so
only new ones go through the backbone, and the head is solved again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from regraft.bundle.bundle import Bundle, load
from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError
from regraft.core.progress import QUIET, Progress
from regraft.core.statistics import Accuracy, accuracy
from regraft.data.remote import shown
from regraft.evaluation.comparison import Pair, pair
from regraft.evaluation.evaluate import evaluate_dataset, in_order_of
from regraft.run import Run
from regraft.run_dir import RunRecord, read_record


@dataclass(frozen=True)
class Updated:
    """A model after it has learned again, beside what it was before.

    Both models are compared on those photos kept for evaluation whose classes the old one knows.

    Attributes:
        run: The new training.
        before: Accuracy of the old model.
        after: Accuracy of the new model.
        pair: Whether they differ.
        added: Classes that the old model did not know.
    """

    run: Run
    before: Accuracy
    after: Accuracy
    pair: Pair
    added: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft add --json` prints."""
        ends = {"before": self.before.to_json(), "after": self.after.to_json()}
        return {**self.run.summary, **ends, "verdict": self.pair.verdict, "added": list(self.added)}


def add(run: str | Path, folder: str | Path, out: str | Path | None = None, *, progress: Progress = QUIET) -> Updated:
    """Train the model of a run on the photos in a folder too: new ones of its classes, or classes that it lacks.

    Every photo of the run keeps its label and its split: the model is never evaluated on what was learned from. Only of
    the new photos some are drawn and kept for evaluation; copies of known photos join the split of those.

    Args:
        run: Folder of a run of mode frozen.
        folder: Photos, laid out as for a training.
        out: Folder for the new run; None for the run itself, whose bundle is replaced when the new one is there.
        progress: Where messages and progress bars go.

    Returns:
        The new training, and how its model compares with the old one.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    record = _growable(Path(run))
    config = replace(record.config, also=(*record.config.also, shown(Path(folder))))
    return _again(record, out, config, progress)


def relabel(run: str | Path, file: str | Path, out: str | Path | None = None, *, progress: Progress = QUIET) -> Updated:
    """Train the model of a run again with labels put right.

    Labels that were put right before stay so, unless this list names their photos too. Every photo keeps its split; of
    a class that would have no photo to learn from, those kept for evaluation are learned from.

    Args:
        run: Folder of a run of mode frozen.
        file: A CSV or JSON-lines list of path and label.
        out: As for `add`.
        progress: Where messages and progress bars go.

    Returns:
        The new training, and how its model compares with the old one.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    record = _growable(Path(run))
    config = replace(record.config, relabel=(*record.config.relabel, str(Path(file).resolve())))
    return _again(record, out, config, progress)


def _growable(run: Path) -> RunRecord:
    """Return the record of a run that can go on. Raises DataError or ConfigError."""
    bundle = load(run)
    record = read_record(bundle.folder.parent, "Expected the folder of a run, with its result.json and photos.jsonl")
    provenance = bundle.manifest["provenance"]
    if provenance["mode"] != "frozen":
        raise ConfigError(
            f"The model of {run} is of mode {provenance['mode']}: its backbone has learned too, so all would have "
            f"to learn again. Train with regraft train {record.folder} --also DIR."
        )
    config = replace(record.config, mode="frozen", search="searched" in provenance, track=())
    return replace(record, config=config)


def _again(record: RunRecord, out: str | Path | None, config: TrainConfig, progress: Progress) -> Updated:
    old = load(record.run)
    _ = old.head, old.engine  # the model as it is now: its folder may be replaced before it is evaluated
    updated = train_run(record.folder, out or record.run, config, progress, earlier=record)
    return _compared(old, updated, progress)


def _compared(old: Bundle, updated: Run, progress: Progress) -> Updated:
    """Compare old and new on the photos kept for evaluation, of the classes that both know. Raises ConfigError."""
    evaluation = updated.evaluation
    if evaluation is None:
        raise ConfigError("One process does this. Start it without torchrun.")
    dataset = evaluation.dataset
    known = [i for i, label in enumerate(dataset.labels) if dataset.classes[label] in old.classes]
    correct = evaluation.correct[known]
    before = evaluate_dataset(old, in_order_of(old, dataset.subset(known)), "judged", progress=progress).correct
    added = tuple(name for name in dataset.classes if name not in old.classes)
    n = len(known)
    return Updated(
        updated,
        accuracy(int(np.sum(before)), n, "judged"),
        accuracy(int(np.sum(correct)), n, "judged"),
        pair("the old model", before, "the new one", correct),
        added,
    )
