"""The stories, one screen each: how the rooms work together."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.backbones.features import Features, extract
from regraft.backbones.graph import Backbone, load_backbone
from regraft.data.fetch import fetch_hymenoptera
from regraft.data.orchard.photos import draw_orchard
from regraft.data.scan import Dataset, list_photos
from regraft.data.splits import Splits, fold_ids, split
from regraft.deliver.build import manifest_of, seal, write_model
from regraft.deliver.bundle import Bundle, load
from regraft.deliver.evaluate import Evaluation, evaluate_dataset
from regraft.ground.config import TrainConfig
from regraft.ground.errors import OutputError
from regraft.ground.files import exclusive, json_bytes, make_folder, published, sha256_json, sweep, write_atomic
from regraft.ground.progress import Progress
from regraft.ground.statistics import Accuracy, accuracy
from regraft.learn.head import Head, cross_validate, solve
from regraft.show.plots import dataset_grid, prediction_grid, save_picture

NUM_DRAWN = 320  # photos in the orchard as `draw_orchard` makes it


@dataclass(frozen=True)
class Run:
    """A finished training. out: its folder.  summary: what `regraft train --json` prints."""

    out: Path
    bundle: Bundle
    summary: dict[str, Any]


def train(folder: str | Path, out: str | Path | None = None, *, quiet: bool = False, **settings: Any) -> Bundle:
    """Train on a folder of photos and return the model, as saved in `out/bundle`.

    folder: `folder/<class>/<image>`, or the same below `train`, `val` and `test`.  out: default `runs/<folder's name>`.
    settings: fields of TrainConfig.  Raises RegraftError with what to do about it.
    """
    return train_run(folder, out, TrainConfig(**settings), Progress(quiet)).bundle


def train_run(folder: str | Path, out: str | Path | None, config: TrainConfig, progress: Progress) -> Run:
    """The whole story of `regraft train`."""
    out = _outside(Path(folder), Path(out) if out else Path("runs") / Path(folder).resolve().name)
    with progress.step("total"), exclusive(out):
        sweep(out)
        dataset = list_photos(folder, progress=progress)
        backbone = load_backbone(
            config.backbone, config.weights, offline=config.offline, seed=config.seed, progress=progress
        )
        dataset, features = extract(backbone, dataset, progress=progress)
        splits = split(dataset, val_fraction=config.val_fraction, seed=config.seed)
        _say_what_is_there(dataset, splits, progress)
        with progress.step("solve head"):
            head = _solve(features.of(splits.train), dataset, config)
            cross_validated = None if splits.given else _cross_validated(features, dataset, head, config)
        with published(out / "bundle") as partial, progress.step("save and judge"):
            provenance = _provenance(dataset, splits, head, config)
            write_model(partial, backbone, head.weight, head.bias, dataset.classes)
            evaluation = _judge_and_seal(
                partial, manifest_of(backbone, dataset.classes, provenance), splits, cross_validated
            )
        write_atomic(out / "photos.jsonl", _photo_lines(dataset, splits))
    summary = _summary(out, dataset, backbone, evaluation, cross_validated, config, progress)
    write_atomic(out / "result.json", json_bytes(summary))
    return Run(out, load(out / "bundle"), summary)


@dataclass(frozen=True)
class Demo:
    """What `regraft demo` leaves: the photos, a picture of them, the run, and a picture of six predictions."""

    photos: Path
    grid: Path
    run: Run
    predictions: Path


def demo(folder: str | Path = "regraft-demo", *, data: str = "orchard", progress: Progress | None = None) -> Demo:
    """The main job on photos that need no download: draw, look, train, predict, look again.

    data: "orchard" draws kiwis and watermelons; "hymenoptera" fetches the ants and bees of PyTorch's tutorial.
    """
    progress = progress or Progress()
    folder = make_folder(Path(folder), kind="output folder")
    sweep(folder)
    photos = _demo_photos(folder / data, data, progress)
    dataset = list_photos(photos)
    with progress.step("picture of the photos"):
        grid = save_picture(dataset_grid(dataset), folder / "photos.png")
    run = train_run(photos, folder / "run", TrainConfig(offline=True), progress)
    six = _spread(split(dataset).judged[1], 6)
    predictions = [(path, label, run.bundle.predict(path)) for path, label in six]
    picture = save_picture(prediction_grid(predictions), folder / "predictions.png")
    return Demo(photos, grid, run, picture)


def _outside(folder: Path, out: Path) -> Path:
    if out.resolve().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{out} lies inside the photos' folder {folder}, where it would be taken for a class. "
            "Choose another place with --out."
        )
    return out


def _solve(features: Features, dataset: Dataset, config: TrainConfig) -> Head:
    folds = fold_ids(features.y, features.hashes, config.num_folds, config.seed)
    return solve(features, len(dataset.classes), folds)


def _cross_validated(features: Features, dataset: Dataset, head: Head, config: TrainConfig) -> Accuracy | None:
    """Accuracy over all photos, each judged by a head that has not seen it, at the penalty the train split chose."""
    folds = fold_ids(features.y, features.hashes, config.num_folds, config.seed)
    if not (folds >= 0).any():
        return None
    score = cross_validate(features, len(dataset.classes), folds, head.penalty)
    return accuracy(score.num_right, score.n, "cross-validated")


def _judge_and_seal(
    folder: Path, manifest: dict[str, Any], splits: Splits, cross_validated: Accuracy | None
) -> Evaluation:
    """Judge the bundle as it was read back from disk, then write what was found into it."""
    seal(folder, manifest)
    name, dataset = splits.judged
    evaluation = evaluate_dataset(load(folder), dataset, name)
    metrics = {key: value for key, value in evaluation.to_json().items() if key not in ("classes", "quarantined")}
    if cross_validated is not None:
        metrics["cross_validated"] = cross_validated.to_json()
    seal(folder, {**manifest, "metrics": metrics})
    return evaluation


def _provenance(dataset: Dataset, splits: Splits, head: Head, config: TrainConfig) -> dict[str, Any]:
    photos = sorted(zip(dataset.hashes, (dataset.classes[label] for label in dataset.labels), strict=True))
    return {
        "config": config.to_json(),
        "data_sha256": sha256_json(photos),
        "images": {"found": dataset.num_found, "used": len(dataset), "quarantined": len(dataset.quarantine)},
        "split": {"given": splits.given, "train": len(splits.train), "judged": len(splits.judged[1])},
        "head": {"penalty": head.penalty, "curve": [vars(score) for score in head.curve]},
    }


def _summary(
    out: Path,
    dataset: Dataset,
    backbone: Backbone,
    evaluation: Evaluation,
    cross_validated: Accuracy | None,
    config: TrainConfig,
    progress: Progress,
) -> dict[str, Any]:
    seconds = {name.replace(" ", "_"): round(value, 3) for name, value in progress.seconds.items()}
    return {
        "bundle": str(out / "bundle"),
        "mode": config.mode,
        "backbone": backbone.name,
        "classes": list(dataset.classes),
        "images": {"found": dataset.num_found, "used": len(dataset), "quarantined": len(dataset.quarantine)},
        "accuracy": evaluation.accuracy.to_json(),
        "cross_validated": None if cross_validated is None else cross_validated.to_json(),
        "seconds": seconds,
    }


def _photo_lines(dataset: Dataset, splits: Splits) -> bytes:
    """Where every file found went: one JSON object a line."""
    rows: list[dict[str, Any]] = []
    for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if part is not None:
            labels = (part.classes[label] for label in part.labels)
            rows += [
                {"path": path, "label": label, "split": name, "sha256": content}
                for path, label, content in zip(part.paths, labels, part.hashes, strict=True)
            ]
    rows += [{"path": q.path, "quarantined": q.reason} for q in dataset.quarantine]
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows).encode()


def _say_what_is_there(dataset: Dataset, splits: Splits, progress: Progress) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in dataset.counts.items())
    progress.say(f"photos: {len(dataset)} used of {dataset.num_found} found; {counts}")
    for note in dataset.notes:
        progress.say(f"  {note}")
    for q in dataset.quarantine:
        progress.say(f"  left out: {q.path}: {q.reason}")
    name, judged = splits.judged
    how = "as the folder says" if splits.given else "drawn by content, the same every time"
    progress.say(f"split: {len(splits.train)} to learn from, {len(judged)} {name} to judge on ({how})")


def _demo_photos(folder: Path, data: str, progress: Progress) -> Path:
    if data == "hymenoptera":
        return fetch_hymenoptera(folder, progress)
    if not folder.exists():
        with published(folder) as partial, progress.step("draw photos", total=NUM_DRAWN) as advance:
            draw_orchard(partial, on_photo=lambda: advance(1))
    return folder


def _spread(dataset: Dataset, count: int) -> list[tuple[Path, str]]:
    """`count` photos taken evenly from a data set, the classes in turn."""
    per_class = [[i for i in range(len(dataset)) if dataset.labels[i] == c] for c in range(len(dataset.classes))]
    chosen = [members[(k * 7) % len(members)] for k in range(count) for members in per_class if members][:count]
    return [(dataset.root / dataset.paths[i], dataset.classes[dataset.labels[i]]) for i in chosen]
