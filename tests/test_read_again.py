"""What a training was told about its folders holds when they are read again: to report, to judge, to grow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import draw
from regraft.bundle.bundle import load
from regraft.commands.report import eval_photos
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError
from regraft.core.progress import QUIET
from regraft.data.scan import Labelling, list_photos
from regraft.evaluation import evaluate as evaluation
from regraft.run_dir import PhotoRecord, RunRecord
from tiny_bundle import write_tiny


@dataclass
class Trained:
    """As much of a bundle as says how its photos were read."""

    folder: Path
    manifest: dict[str, Any]
    classes: tuple[str, ...] = ("sick", "well")


@pytest.fixture
def trained(tmp_path):
    """Photos of patients in a linked folder, and a run on them that was told how to read these."""
    for number, path in enumerate(("sick/p1/a.png", "sick/p2/a.png", "well/p3/a.png", "well/p4/a.png")):
        draw(tmp_path / "store" / path, (200, 0, 0), number, (8, 8))
    (tmp_path / "photos").mkdir()
    for name in ("sick", "well"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "store" / name)
    config = TrainConfig(class_level="top", follow_links=True)
    return Trained(tmp_path / "run" / "bundle", {"provenance": {"config": config.to_json()}})


def test_a_report_reads_the_photos_that_the_run_has_recorded_links_too(tmp_path, trained):
    """Classes are those of the record; the photos lie behind links, as the training found them."""
    config = TrainConfig(class_level="top", follow_links=True)
    dataset = list_photos(tmp_path / "photos", options=config.folder_options)
    run = tmp_path / "run"
    bundle = load(write_tiny(run / "bundle", ("sick", "well")))
    photos = tuple(
        PhotoRecord(path, (dataset.classes[label],), Labelling("folder", "2026-01-01"), "val", content)
        for path, label, content in zip(dataset.paths, dataset.labels, dataset.hashes, strict=True)
    )
    header = {"root": dataset.root.resolve(), "roots": (".",), "split_given": False, "steps": ()}
    record = RunRecord(
        run, tmp_path / "photos", **header, config=config, photos=photos, quarantine=(), bundle_sha256=bundle.sha256
    )
    record.write({"photos": str(tmp_path / "photos"), "decision": ""})
    assert eval_photos(bundle, QUIET, "Give photos").counts == {"sick": 2, "well": 2}


def test_photos_are_judged_at_the_level_of_the_training_and_links_followed_by_wish(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate_dataset", lambda bundle, dataset, *_, **__: dataset.counts)
    monkeypatch.setattr(evaluation, "in_order_of", lambda bundle, dataset: dataset)
    assert evaluation.evaluate(trained, tmp_path / "store") == {"sick": 2, "well": 2}
    assert evaluation.evaluate(trained, tmp_path / "photos", follow_links=True) == {"sick": 2, "well": 2}
    with pytest.raises(DataError, match="--follow-links"):
        evaluation.evaluate(trained, tmp_path / "photos")
    leaves = evaluation.evaluate(trained, tmp_path / "store", class_level="leaf")
    assert leaves == {"p1": 1, "p2": 1, "p3": 1, "p4": 1}
