"""The stories of `regraft add` and `regraft relabel`: a model learns from more, or better labelled, photos in seconds.

Features of the photos that it knows are in the cache, so only new photos go through the backbone, and the head is
solved again: the same bytes as training on all of them from the start.
"""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from regraft.bundle.bundle import Bundle, load
from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError, DataError
from regraft.core.progress import QUIET, Progress
from regraft.core.statistics import Accuracy, accuracy
from regraft.evaluation.comparison import Pair, pair
from regraft.evaluation.evaluate import evaluate_dataset, in_order_of
from regraft.run import Run


@dataclass(frozen=True)
class Updated:
    """A model after it has learned again. run: the new training.

    before, after: accuracy of the old and the new model on the judged photos of the classes that the old one knows.
    pair: whether they differ there.  added: classes that it did not know.
    """

    run: Run
    before: Accuracy
    after: Accuracy
    pair: Pair
    added: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What `regraft add --json` prints."""
        ends = {"before": self.before.to_json(), "after": self.after.to_json()}
        return {**self.run.summary, **ends, "verdict": self.pair.verdict, "added": list(self.added)}


def add(run: str | Path, folder: str | Path, out: str | Path | None = None, *, progress: Progress = QUIET) -> Updated:
    """Train the model of a run on the photos in a folder too: new ones of its classes, or classes that it lacks.

    out: default the run itself, whose bundle is replaced when the new one is there.  Raises RegraftError.
    """
    config, photos = _training_of(Path(run))
    also = (*config.also, str(Path(folder).resolve()))
    return _again(Path(run), photos, out, replace(config, also=also), progress)


def relabel(run: str | Path, file: str | Path, out: str | Path | None = None, *, progress: Progress = QUIET) -> Updated:
    """Train the model of a run again with labels put right. file: a CSV or JSON-lines list of path and label.

    Labels that were put right before stay so, unless this list names their photos too.  out: as for `add`.  Raises
    RegraftError.
    """
    config, photos = _training_of(Path(run))
    lists = (*config.relabel, str(Path(file).resolve()))
    return _again(Path(run), photos, out, replace(config, relabel=lists), progress)


def _training_of(run: Path) -> tuple[TrainConfig, str]:
    """How a run was trained, and on which folder. Raises DataError or ConfigError."""
    bundle = load(run)
    try:
        photos = json.loads((bundle.folder.parent / "result.json").read_text(encoding="utf-8"))["photos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{run} does not say which photos it was trained on. Expected the folder of a run, with its result.json."
        ) from error
    provenance = bundle.manifest["provenance"]
    if provenance["mode"] != "frozen":
        raise ConfigError(
            f"The model of {run} is of mode {provenance['mode']}: its backbone has learned too, so all would have "
            f"to learn again. Train with regraft train {photos} --also DIR."
        )
    known = {field.name for field in fields(TrainConfig)}
    values = {name: value for name, value in provenance["config"].items() if name in known}
    values |= {name: tuple(values.get(name, ())) for name in ("also", "relabel")} | {"track": ()}
    return TrainConfig(**{**values, "mode": "frozen", "search": _was_searched(provenance)}), str(photos)


def _was_searched(provenance: dict[str, Any]) -> bool:
    return "searched" in provenance


def _again(run: Path, photos: str, out: str | Path | None, config: TrainConfig, progress: Progress) -> Updated:
    old = load(run)
    updated = train_run(photos, out or old.folder.parent, config, progress)
    return _compared(old, updated, progress)


def _compared(old: Bundle, updated: Run, progress: Progress) -> Updated:
    """Old and new on the judged photos of the classes that both know."""
    evaluation = updated.evaluation
    if evaluation is None:
        raise ConfigError("One process does this. Start it without torchrun.")
    dataset = evaluation.dataset
    known = [i for i, label in enumerate(dataset.labels) if dataset.classes[label] in old.classes]
    right = evaluation.right[known]
    before = evaluate_dataset(old, in_order_of(old, dataset.subset(known)), "judged", progress=progress).right
    added = tuple(name for name in dataset.classes if name not in old.classes)
    n = len(known)
    return Updated(
        updated,
        accuracy(int(np.sum(before)), n, "judged"),
        accuracy(int(np.sum(right)), n, "judged"),
        pair("the old model", before, "the new one", right),
        added,
    )
