"""The story of `regraft demo`: the main job on photos that come with regraft."""

from dataclasses import dataclass
from pathlib import Path

from regraft.commands.train import train_run
from regraft.core.config import TrainConfig
from regraft.core.files import make_folder, published, sweep
from regraft.core.ownership import check
from regraft.core.progress import Progress
from regraft.data.fetch import fetch_hymenoptera
from regraft.data.orchard import NUM_PHOTOS, unpack_orchard
from regraft.data.scan import Dataset, list_photos
from regraft.data.splits import split
from regraft.reporting.plots import dataset_grid, prediction_grid, save_picture
from regraft.run import Run
from regraft.run_ownership import check_run


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
    six = _spread(split(dataset).eval_photos, 6)
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
