"""Whole tasks in one call: train, compare and demo, built from the other modules.

Training itself is long and has its own module, `commands.train`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regraft.bundle.bundle import Bundle, load
from regraft.commands.report import NAME as REPORT
from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import ConfigError
from regraft.core.files import json_bytes, make_folder, published, sweep
from regraft.core.ownership import check, write_output
from regraft.core.progress import QUIET, Progress
from regraft.core.trackers import Tracker
from regraft.data.fetch import fetch_hymenoptera
from regraft.data.orchard import NUM_PHOTOS, unpack_orchard
from regraft.data.scan import Dataset, list_photos
from regraft.data.splits import split
from regraft.evaluation.comparison import Pair, pairs
from regraft.evaluation.evaluate import evaluate
from regraft.reporting.html_compare import SideBySide, compared_html
from regraft.reporting.page import write_page
from regraft.reporting.plots import dataset_grid, prediction_grid, save_picture
from regraft.run import Run
from regraft.run_dir import place, read_summary
from regraft.run_ownership import check_run
from regraft.training.recipe import check_names

MODES = ("frozen", "full", "scratch")
COMPARED, FIGURES = "compare.html", "compare.json"


def train(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    quiet: bool = False,
    trackers: Sequence[Tracker] = (),
    **settings: Any,
) -> Bundle:
    """Train on a folder of photos.

    Args:
        folder: `folder/<class>/<image>`, or the same below `train`, `val` and `test`.
        out: Folder of the run; default `runs/<folder's name>`, with a number behind it where that holds a run on other
            photos.
        quiet: Whether to show no progress.
        trackers: Your own objects with the three methods of Tracker.
        settings: Fields of TrainConfig and of Recipe, such as `mode="full", epochs=5, track="wandb"`.

    Returns:
        The model, as saved in `out/bundle`.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    return train_run(folder, out, configure(**settings), Progress(quiet), trackers).bundle


def configure(**settings: Any) -> TrainConfig:
    """Sort settings by name into those of the run and those of the recipe.

    Args:
        settings: Fields of TrainConfig and of Recipe.

    Raises:
        ConfigError: A name is unknown, or a value is not allowed.
    """
    own = {field.name for field in fields(TrainConfig)}
    of_recipe = {name: value for name, value in settings.items() if name not in own}
    check_names(of_recipe)
    own_settings = {name: value for name, value in settings.items() if name in own}
    for name in ("also", "relabel", "track"):  # one, or several
        if isinstance(own_settings.get(name), str):
            own_settings[name] = (own_settings[name],)
    return TrainConfig(**own_settings, settings=of_recipe)


def start_of(bundle: str | Path) -> dict[str, Any]:
    """Return the settings that make a training begin with a bundle's backbone and weights.

    Raises:
        BundleError: The bundle cannot be loaded.
    """
    loaded = load(bundle)
    return {"backbone": loaded.manifest["backbone"]["name"], "weights": str(loaded.folder / "model.safetensors")}


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
    out = place(Path(folder), out, f"{Path(folder).resolve().name}-compared", progress)
    runs, trainings = {}, _configs(config, modes, backbones)
    check(out, (COMPARED, FIGURES))
    for name in trainings:
        check_run(out / _folder_of(name))
    for name, one in trainings.items():
        progress.say(f"-- {name}")
        runs[name] = train_run(folder, out / _folder_of(name), one, Progress(progress.quiet))
    evaluations = {name: run.evaluation for name, run in runs.items() if run.evaluation is not None}
    page = out / COMPARED if evaluations else None
    comparison = Comparison(runs, pairs({name: one.right for name, one in evaluations.items()}), page)
    if page is not None:
        write_output(out / FIGURES, json_bytes(comparison.to_json()))
        summaries = {name: run.summary for name, run in runs.items()}
        reports = {name: quote(f"{run.out.name}/{REPORT}") for name, run in runs.items() if config.report}
        title = f"{Path(folder).resolve().name}: {', '.join(runs)}"
        write_page(page, compared_html(title, evaluations, summaries, comparison.pairs, reports))
    return comparison


def _folder_of(name: str) -> str:
    return name.replace("/", "-")


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
    tested = pairs({name: one.right for name, one in evaluations.items()})
    return SideBySide(evaluations, tested, {name: _made(bundle) for name, bundle in models.items()})


def _made(bundle: Bundle) -> dict[str, str]:
    """Say in words how a model was made."""
    provenance = bundle.manifest["provenance"]
    seconds = read_summary(bundle.folder.parent).get("seconds", {}).get("total")
    epochs = str(len(provenance["history"])) if provenance.get("history") else "none: solved"
    return {"mode": provenance["mode"], "epochs": epochs, "seconds": f"{seconds:.0f}" if seconds else "not recorded"}


def _configs(config: TrainConfig, modes: tuple[str, ...], backbones: tuple[str, ...]) -> dict[str, TrainConfig]:
    """Return a training's settings for each mode and backbone, by name."""
    own = {mode: _in_mode(config, mode) for mode in modes}
    if not backbones:
        return own
    return {f"{mode} {b}": replace(one, backbone=b, weights=None) for b in backbones for mode, one in own.items()}


def _in_mode(config: TrainConfig, mode: Any) -> TrainConfig:
    """Set the mode; a file of weights is kept only for modes that begin with weights."""
    return replace(config, mode=mode, weights=None if mode == "scratch" else config.weights)


@dataclass(frozen=True)
class Demo:
    """What `regraft demo` leaves.

    Attributes:
        photos: Folder of the photos.
        grid: A picture of some of them.
        run: The training.
        predictions: A picture of six predictions.
    """

    photos: Path
    grid: Path
    run: Run
    predictions: Path


def demo(folder: str | Path = "regraft-demo", *, data: str = "orchard", progress: Progress | None = None) -> Demo:
    """Show the main job on photos that need no download: unpack, look, train, predict, look again.

    Args:
        folder: Where photos, pictures and the model go.
        data: "orchard" for the drawn kiwis and watermelons that come with regraft; "hymenoptera" for the ants and bees
            of PyTorch's tutorial, which are fetched.
        progress: Is told what is done; None for lines on stderr.

    Returns:
        What it left in the folder.

    Raises:
        RegraftError: What stands in the way, and the cure.
    """
    progress = progress or Progress()
    folder = Path(folder)
    check(folder, ("photos.png", "predictions.png"))
    check_run(folder / "run")
    sweep(make_folder(folder, kind="output folder"))
    photos = _demo_photos(folder / data, data, progress)
    dataset = list_photos(photos)
    with progress.step("picture of the photos"):
        grid = save_picture(dataset_grid(dataset), folder / "photos.png")
    run = train_run(photos, folder / "run", TrainConfig(mode="frozen", offline=True), progress)
    six = _spread(split(dataset).judged[1], 6)
    predictions = [(path, label, run.bundle.predict(path)) for path, label in six]
    picture = save_picture(prediction_grid(predictions), folder / "predictions.png")
    return Demo(photos, grid, run, picture)


def _demo_photos(folder: Path, data: str, progress: Progress) -> Path:
    if data == "hymenoptera":
        return fetch_hymenoptera(folder, progress)
    if not folder.exists():
        with published(folder) as partial, progress.step("unpack photos", total=NUM_PHOTOS) as advance:
            unpack_orchard(partial, on_photo=lambda: advance(1))
    return folder


def _spread(dataset: Dataset, count: int) -> list[tuple[Path, str]]:
    """Take `count` photos evenly from a data set, from the classes in turn."""
    per_class = [[i for i in range(len(dataset)) if dataset.labels[i] == c] for c in range(len(dataset.classes))]
    chosen = [members[(k * 7) % len(members)] for k in range(count) for members in per_class if members][:count]
    return [(dataset.root / dataset.paths[i], dataset.classes[dataset.labels[i]]) for i in chosen]
