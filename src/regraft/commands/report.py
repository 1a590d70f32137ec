"""The story of `regraft report`: a bundle, judged again, to one HTML file that shows what it can do."""

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
from regraft.run_dir import photos_of, read_record, read_summary
from regraft.run_ownership import claim_run, is_of_earlier_version

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """A written report. path: of the HTML file.  evaluation: what it shows."""

    path: Path
    evaluation: Evaluation

    def _repr_html_(self) -> str:
        """The page itself, in a notebook."""
        from markupsafe import escape

        page = self.path.read_text(encoding="utf-8")
        page = escape(page.replace("<head>", '<head><base href="about:srcdoc">', 1))  # else links leave the frame
        return f'<iframe srcdoc="{page}" width="100%" height="720" style="border:0"></iframe>'


def report(
    bundle: Bundle, folder: str | Path | None = None, out: str | Path | None = None, *, progress: Progress = QUIET
) -> Report:
    """Judge a bundle and write what it can do, photos included, into one HTML file.

    folder: photos in a folder for each class, None for those that the training kept for judging.  out: the file,
    default report.html beside the bundle.  Raises DataError where the photos are gone.
    """
    run = bundle.folder.parent
    summary, path = read_summary(run), _checked(Path(out) if out else run / NAME, progress)
    if folder is None:
        cure = "Give the photos to judge on: regraft report BUNDLE DIR"
        record = read_record(run, cure)
        name, dataset = record.judged, photos_of(record, (record.judged,), cure, progress)
        evaluation = evaluate_dataset(bundle, in_order_of(bundle, dataset), name, progress=progress)
    else:
        evaluation, summary = evaluate(bundle, folder, progress=progress), {**summary, "findings": []}
    return write_report(bundle, evaluation, summary, path, progress)


def _checked(path: Path, progress: Progress) -> Path:
    """The same path, once it is known that a report may be written there. Raises OutputError."""
    if is_of_earlier_version(path.parent):
        claim_run(path.parent, progress)
    refuse_foreign(path)
    return path


def judged_photos(bundle: Bundle, progress: Progress, cure: str) -> Dataset:
    """The photos that a training kept for judging its bundle. cure: what to do without. Raises DataError."""
    record = read_record(bundle.folder.parent, cure)
    return photos_of(record, (record.judged,), cure, progress)


def learned_photos(bundle: Bundle, progress: Progress, cure: str) -> Dataset:
    """The photos that a bundle has learned from. cure: what to do without. Raises DataError."""
    return photos_of(read_record(bundle.folder.parent, cure), ("train",), cure, progress)


def write_report(
    bundle: Bundle, evaluation: Evaluation, summary: dict[str, Any], path: Path, progress: Progress = QUIET
) -> Report:
    """The HTML file of a bundle that has been judged. summary: of its run, {} where there is none."""
    command = _command(bundle.folder.parent) if "photos" in summary else ""
    record = Record(summary, command, _before(bundle.manifest["provenance"]))
    with progress.step("write report"):
        return Report(write_page(path, report_html(bundle, evaluation, record, progress)), evaluation)


def _command(run: Path) -> str:
    """What trains the same model again; "" where a run does not say, or has grown since."""
    try:
        record = read_record(run, "")
    except DataError:
        return ""
    return repeat_command(str(record.folder), record.config.to_json()) if len(record.steps) == 1 else ""


def repeat_command(photos: str, config: dict[str, Any]) -> str:
    """`regraft train ...` with every setting that is not the default."""
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
    """The first layer as it was before training, where the cache still has it."""
    trunk = cache_folder() / "graphs" / Path(str(provenance.get("first_layer", ""))).name / "trunk.safetensors"
    return first_layer(load_file(trunk)) if trunk.is_file() else None
