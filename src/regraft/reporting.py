"""The story of `regraft report`: a bundle, judged again, to one HTML file that shows what it can do."""

import json
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from regraft.backbones.graph import first_layer
from regraft.data.scan import Dataset, list_photos
from regraft.deliver.bundle import Bundle
from regraft.deliver.evaluate import Evaluation, evaluate, evaluate_dataset, in_order_of
from regraft.ground.config import TrainConfig
from regraft.ground.errors import DataError
from regraft.ground.ownership import refuse_foreign
from regraft.ground.progress import QUIET, Progress
from regraft.ground.runtime import cache_folder
from regraft.run_folder import claim_run, is_of_earlier_version
from regraft.show.page import write_page
from regraft.show.report import Record, report_html

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
    summary, path = recorded(run), _checked(Path(out) if out else run / NAME, progress)
    if folder is None:
        name, dataset = _kept_for_judging(
            run, summary, progress, "Give the photos to judge on: regraft report BUNDLE DIR"
        )
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
    run = bundle.folder.parent
    return _kept_for_judging(run, recorded(run), progress, cure)[1]


def learned_photos(bundle: Bundle, progress: Progress, cure: str) -> Dataset:
    """The photos that a bundle has learned from. cure: what to do without. Raises DataError."""
    run = bundle.folder.parent
    return _of_run(run, recorded(run), ("train",), progress, cure)[1]


def write_report(
    bundle: Bundle, evaluation: Evaluation, summary: dict[str, Any], path: Path, progress: Progress = QUIET
) -> Report:
    """The HTML file of a bundle that has been judged. summary: of its run, {} where there is none."""
    provenance = bundle.manifest["provenance"]
    command = repeat_command(summary["photos"], provenance["config"]) if "photos" in summary else ""
    record = Record(summary, command, _before(provenance))
    return Report(write_page(path, report_html(bundle, evaluation, record, progress)), evaluation)


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


def recorded(run: Path) -> dict[str, Any]:
    """What can be used of a run's result.json, {} without one."""
    try:
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
        known = {name: found[name] for name in ("photos", "decision") if isinstance(found.get(name), str)}
        seconds = {name: value for name, value in found.get("seconds", {}).items() if isinstance(value, int | float)}
        findings = [one for one in found.get("findings", []) if _is_finding(one)]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return {**known, "seconds": seconds, "findings": findings}


def _is_finding(one: Any) -> bool:
    """Whether it is as `Finding.to_json` gives it."""
    if not isinstance(one, dict) or not isinstance(one.get("kind"), str) or not isinstance(one.get("text"), str):
        return False
    paths = one.get("paths")
    return isinstance(paths, list) and all(isinstance(path, str) for path in paths)


def _kept_for_judging(run: Path, summary: dict[str, Any], progress: Progress, cure: str) -> tuple[str, Dataset]:
    """Name and photos of the split that a training judged its bundle on. Raises DataError."""
    return _of_run(run, summary, ("test", "val"), progress, cure)


def _of_run(
    run: Path, summary: dict[str, Any], names: tuple[str, ...], progress: Progress, cure: str
) -> tuple[str, Dataset]:
    """Name and photos of the first of some splits that a training has had. Raises DataError."""
    use = "learned from" if names == ("train",) else "was judged on"
    try:
        rows = [json.loads(line) for line in (run / "photos.jsonl").read_text(encoding="utf-8").splitlines()]
        folder, splits = Path(summary["photos"]), {row.get("split") for row in rows}
        name = next((name for name in names if name in splits), names[-1])
        wanted = {(row["path"], row["sha256"]) for row in rows if row.get("split") == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{run} does not say which photos its model {use}. {cure}.") from error
    if not wanted:
        raise DataError(f"{run} does not say which photos its model {use}. {cure}.")
    if not folder.exists():
        raise DataError(f"{folder}, the photos of {run}, is gone. {cure}.")
    dataset = list_photos(folder, progress=progress)
    found = [i for i in range(len(dataset)) if (dataset.paths[i], dataset.hashes[i]) in wanted]
    if len(found) < len(wanted):
        missing = f"{len(wanted) - len(found)} of the {len(wanted)} photos that {run} {use}"
        raise DataError(f"{missing} are no longer in {folder}, or have changed. {cure}.")
    return name, dataset.subset(found)


def _before(provenance: dict[str, Any]) -> np.ndarray | None:
    """The first layer as it was before training, where the cache still has it."""
    trunk = cache_folder() / "graphs" / Path(str(provenance.get("first_layer", ""))).name / "trunk.safetensors"
    return first_layer(load_file(trunk)) if trunk.is_file() else None
