"""What a training was told about its folders holds when they are read again: to report, to judge, to grow."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import draw
from regraft.commands.report import judged_photos
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError
from regraft.core.progress import QUIET
from regraft.evaluation import evaluate as evaluation


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


def test_a_report_reads_the_photos_as_the_training_did(trained, tmp_path):
    from regraft.data.scan import list_photos

    dataset = list_photos(tmp_path / "photos", options=TrainConfig(class_level="top", follow_links=True).folder_options)
    rows = [
        {"path": path, "label": "x", "split": "val", "sha256": content}
        for path, content in zip(dataset.paths, dataset.hashes, strict=True)
    ]
    trained.folder.mkdir(parents=True)
    (tmp_path / "run" / "photos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "run" / "result.json").write_text(json.dumps({"photos": str(tmp_path / "photos")}))
    assert judged_photos(trained, QUIET, "Give photos").counts == {"sick": 2, "well": 2}


def test_photos_are_judged_at_the_level_of_the_training_and_links_followed_by_wish(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate_dataset", lambda bundle, dataset, *_, **__: dataset.counts)
    monkeypatch.setattr(evaluation, "in_order_of", lambda bundle, dataset: dataset)
    assert evaluation.evaluate(trained, tmp_path / "store") == {"sick": 2, "well": 2}
    assert evaluation.evaluate(trained, tmp_path / "photos", follow_links=True) == {"sick": 2, "well": 2}
    with pytest.raises(DataError, match="--follow-links"):
        evaluation.evaluate(trained, tmp_path / "photos")
    leaves = evaluation.evaluate(trained, tmp_path / "store", class_level="leaf")
    assert leaves == {"p1": 1, "p2": 1, "p3": 1, "p4": 1}
