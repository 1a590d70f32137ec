"""The story of `regraft compare`: several trainings, or finished models, side by side on the same photos."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regraft.bundle.bundle import Bundle
from regraft.commands.report import NAME as REPORT
from regraft.commands.train import configure, train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError
from regraft.core.files import json_bytes
from regraft.core.ownership import check, write_output
from regraft.core.progress import QUIET, Progress
from regraft.evaluation.comparison import Pair, pairs
from regraft.evaluation.evaluate import evaluate
from regraft.reporting.html_compare import SideBySide, compared_html
from regraft.reporting.page import write_page
from regraft.run import Run
from regraft.run_dir import read_summary
from regraft.run_location import place, run_name
from regraft.run_ownership import check_run

MODES = ("frozen", "full", "scratch")
COMPARED, FIGURES = "compare.html", "compare.json"


@dataclass(frozen=True)
class Comparison:
    """Several trainings side by side on one split.

    Attributes:
        runs: The runs, by mode; by mode and backbone where backbones were named.
        pairs: Every two of them, tested on the same photos.
        page: The HTML file that shows them; None in processes other than the main one.
    """

    runs: dict[str, Run]
    pairs: tuple[Pair, ...]
    page: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what `regraft compare --json` prints."""
        modes = {
            mode: {
                "accuracy": run.summary["accuracy"],
                "seconds": run.summary["seconds"]["total"],
                "history": run.summary["history"],
                "bundle": run.summary["bundle"],
            }
            for mode, run in self.runs.items()
        }
        return {"modes": modes, "pairs": [one.to_json() for one in self.pairs]}


def compare(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    modes: tuple[str, ...] = MODES,
    backbones: tuple[str, ...] = (),
    config: TrainConfig | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Comparison:
    """Train in several modes on the same photos and the same split, and test which differ.

    Args:
        folder: The photos, as for `train`.
        out: Folder for a run of each mode, compare.json and compare.html; default `runs/<folder's name>-compared`.
        modes: Some of "frozen", "full" and "scratch".
        backbones: Networks, each trained in every mode; () for the config's own.
        config: Settings of all trainings.
        progress: Is told what is done; None for lines on stderr.
        settings: As for `train`; used where there is no `config`.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    progress, config = progress or Progress(), config or configure(**settings)
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ConfigError(f"Unknown mode {unknown[0]!r}. Expected some of: {', '.join(MODES)}.")
    out = place(Path(folder), out, f"{run_name(Path(folder))}-compared", progress)
    runs, trainings = {}, _configs(config, modes, backbones)
    check(out, (COMPARED, FIGURES))
    for name in trainings:
        check_run(out / _folder_of(name))
    for name, one in trainings.items():
        progress.say(f"-- {name}")
        runs[name] = train_run(folder, out / _folder_of(name), one, Progress(progress.quiet))
    evaluations = {name: run.evaluation for name, run in runs.items() if run.evaluation is not None}
    page = out / COMPARED if evaluations else None
    comparison = Comparison(runs, pairs({name: one.correct for name, one in evaluations.items()}), page)
    if page is not None:
        write_output(out / FIGURES, json_bytes(comparison.to_json()))
        summaries = {name: run.summary for name, run in runs.items()}
        reports = {name: quote(f"{run.out.name}/{REPORT}") for name, run in runs.items() if config.report}
        title = f"{run_name(Path(folder))}: {', '.join(runs)}"
        write_page(page, compared_html(title, evaluations, summaries, comparison.pairs, reports))
    return comparison


def side_by_side(models: Mapping[str, Bundle], folder: str | Path, *, progress: Progress = QUIET) -> SideBySide:
    """Evaluate models on the same photos, and test which of them really differ.

    Args:
        models: Bundles by name.
        folder: The photos, as for `evaluate`.
        progress: Is told what is done.

    Raises:
        DataError: There is a class that a model does not know, or the folder cannot be read in one way only.
        ConfigError: There are no models.
    """
    if not models:
        raise ConfigError("There are no models to put side by side. Expected one or more, by name.")
    evaluations = {name: evaluate(bundle, folder, progress=progress) for name, bundle in models.items()}
    tested = pairs({name: one.correct for name, one in evaluations.items()})
    return SideBySide(evaluations, tested, {name: _made(bundle) for name, bundle in models.items()})


def _folder_of(name: str) -> str:
    return name.replace("/", "-")


def _configs(config: TrainConfig, modes: tuple[str, ...], backbones: tuple[str, ...]) -> dict[str, TrainConfig]:
    """Return a training's settings for each mode and backbone, by name."""
    by_mode = {mode: _in_mode(config, mode) for mode in modes}
    if not backbones:
        return by_mode
    return {f"{mode} {b}": replace(one, backbone=b, weights=None) for b in backbones for mode, one in by_mode.items()}


def _in_mode(config: TrainConfig, mode: Any) -> TrainConfig:
    """Set the mode; a file of weights is kept only for modes that begin with weights."""
    return replace(config, mode=mode, weights=None if mode == "scratch" else config.weights)


def _made(bundle: Bundle) -> dict[str, str]:
    """Say in words how a model was made."""
    provenance = bundle.manifest["provenance"]
    seconds = read_summary(bundle.folder.parent).get("seconds", {}).get("total")
    epochs = str(len(provenance["history"])) if provenance.get("history") else "none: solved"
    return {"mode": provenance["mode"], "epochs": epochs, "seconds": f"{seconds:.0f}" if seconds else "not recorded"}
