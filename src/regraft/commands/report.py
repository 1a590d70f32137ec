"""The command `regraft report`: a bundle, evaluated again, and one HTML file that shows what it can do."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from regraft.backbones.backbone import first_layer
from regraft.bundle.bundle import Bundle
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError
from regraft.core.ownership import refuse_foreign
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import cache_folder
from regraft.data.scan import Dataset
from regraft.evaluation.evaluate import Evaluation, evaluate, evaluate_dataset, in_order_of
from regraft.reporting.html_report import Record, report_html
from regraft.reporting.page import write_page
from regraft.run_dir import photos_of_run, read_record, read_summary
from regraft.run_ownership import claim_run, is_of_earlier_version

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        path: The HTML file.
        evaluation: What it shows.
    """

    path: Path
    evaluation: Evaluation

    def _repr_html_(self) -> str:
        """Return the page itself, for a notebook to show."""
        from markupsafe import escape

        page = self.path.read_text(encoding="utf-8")
        page = escape(page.replace("<head>", '<head><base href="about:srcdoc">', 1))  # else links leave the frame
        return f'<iframe srcdoc="{page}" width="100%" height="720" style="border:0"></iframe>'


def report(
    bundle: Bundle, folder: str | Path | None = None, out: str | Path | None = None, *, progress: Progress = QUIET
) -> Report:
    """Evaluate a bundle and write what it can do, photos included, into one HTML file.

    Args:
        bundle: The model.
        folder: Photos in a folder for each class; None for those that the training kept to evaluate the bundle.
        out: The HTML file; None for report.html beside the bundle.
        progress: Where messages and progress bars go.

    Raises:
        DataError: The photos are gone, or cannot be used.
        OutputError: The file cannot be written, or something else is there, which stays.
    """
    run = bundle.folder.parent
    summary, path = read_summary(run), _checked(Path(out) if out else run / NAME, progress)
    if folder is None:
        cure = "Give the photos to judge on: regraft report BUNDLE DIR"
        record = read_record(run, cure)
        name, dataset = record.eval_split, photos_of_run(record, (record.eval_split,), cure, progress)
        evaluation = evaluate_dataset(bundle, in_order_of(bundle, dataset), name, progress=progress)
    else:
        evaluation, summary = evaluate(bundle, folder, progress=progress), {**summary, "findings": []}
    return write_report(bundle, evaluation, summary, path, progress)


def _checked(path: Path, progress: Progress) -> Path:
    """Return the path, once it is known that a report may be written there. Raises OutputError."""
    if is_of_earlier_version(path.parent):
        claim_run(path.parent, progress)
    refuse_foreign(path)
    return path


def eval_photos(bundle: Bundle, progress: Progress, cure: str) -> Dataset:
    """Return the photos that a training kept to evaluate its bundle.

    Args:
        bundle: The model, in the folder of its run.
        progress: Where messages and progress bars go.
        cure: What to do without them, for the message of an error.

    Raises:
        DataError: The run has no record of them, or they are gone or have changed.
    """
    record = read_record(bundle.folder.parent, cure)
    return photos_of_run(record, (record.eval_split,), cure, progress)


def train_photos(bundle: Bundle, progress: Progress, cure: str) -> Dataset:
    """Return the photos that a bundle has learned from.

    Args:
        bundle: The model, in the folder of its run.
        progress: Where messages and progress bars go.
        cure: What to do without them, for the message of an error.

    Raises:
        DataError: The run has no record of them, or they are gone or have changed.
    """
    return photos_of_run(read_record(bundle.folder.parent, cure), ("train",), cure, progress)


def write_report(
    bundle: Bundle, evaluation: Evaluation, summary: dict[str, Any], path: Path, progress: Progress = QUIET
) -> Report:
    """Write the HTML file of a bundle that has been evaluated.

    Args:
        bundle: The model.
        evaluation: How good it is.
        summary: What its run's result.json says; {} where there is none.
        path: The file.
        progress: Where messages and progress bars go.

    Raises:
        OutputError: The file cannot be written, or something else is there, which stays.
    """
    command = _command(bundle.folder.parent) if "photos" in summary else ""
    record = Record(summary, command, _before(bundle.manifest["provenance"]))
    with progress.step("write report"):
        return Report(write_page(path, report_html(bundle, evaluation, record, progress)), evaluation)


def _command(run: Path) -> str:
    """Return the command that trains the same model again; "" where the run does not say, or has grown since."""
    try:
        record = read_record(run, "")
    except DataError:
        return ""
    return repeat_command(str(record.folder), record.config.to_json()) if len(record.steps) == 1 else ""


def repeat_command(photos: str, config: dict[str, Any]) -> str:
    """Return the command `regraft train ...` with every setting that is not the default.

    Args:
        photos: The folder or list of photos.
        config: What `TrainConfig.to_json` gives; fields that are missing count as the default.
    """
    words = ["regraft", "train", photos]
    settings = {field.name: config[field.name] for field in fields(TrainConfig) if field.name in config}
    chosen = {**settings.pop("settings", {})}
    default = TrainConfig().to_json()
    chosen |= {name: value for name, value in settings.items() if value not in (default[name], [])}
    for name, value in chosen.items():
        flag = name.removesuffix("_s").replace("_", "-")
        if isinstance(value, list | tuple):
            words += [word for one in value for word in (f"--{flag}", str(one))]
        elif isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


def _before(provenance: dict[str, Any]) -> np.ndarray | None:
    """Return the first layer as it was before training; None where the cache no longer has it."""
    trunk = cache_folder() / "graphs" / Path(str(provenance.get("first_layer", ""))).name / "trunk.safetensors"
    return first_layer(load_file(trunk)) if trunk.is_file() else None
