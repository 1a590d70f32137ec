"""From a heap to a model: photos stream in, a script labels them, and what comes out is what was said."""

import csv
import json
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

from regraft.backbones.features import extract, roots
from regraft.bundle.bundle import load
from regraft.commands.label import SittingOptions, label
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError, MissingExtra, OutputError
from regraft.core.progress import QUIET
from regraft.data.scan import list_photos
from regraft.labelling.cards import Annotation
from regraft.labelling.head import find_projection
from regraft.labelling.thumbnails import Thumbnails, jpeg_of
from tiny_backbone import SHADES, draw, draw_photos, only_tiny_backbone, tiny_backbone
from tiny_video import write_video

COUNTS = {"ash": 16, "birch": 16, "cedar": 16}


@pytest.fixture(autouse=True)
def tiny(tmp_path):
    with only_tiny_backbone(tmp_path / "tiny"):
        yield


@pytest.fixture
def heap(tmp_path):
    """Photos of three classes in one folder; a name tells the class. One is there twice, and one file is no photo."""
    sorted_photos, heap = draw_photos(tmp_path / "truth", COUNTS), tmp_path / "heap"
    heap.mkdir()
    for path in sorted_photos.rglob("*.png"):
        shutil.copyfile(path, heap / path.name)
    shutil.copyfile(heap / "ash_0.png", heap / "ash_copy.png")
    (heap / "notes.txt").write_text("no photo")
    return heap


def options(**how):
    return SittingOptions(config=TrainConfig(mode="frozen", report=False), **how)


def truth(path):
    return next(name for name in COUNTS if f"{name}_" in path)


def arrived(sitting):
    while sitting.contents.num_known < len(sitting.heap):
        time.sleep(0.01)
    sitting.wait()


def label_all(sitting):
    arrived(sitting)
    for name in COUNTS:
        if name not in sitting.status().classes:
            sitting.add_class(name)
    while (page := sitting.page("groups")).cards:
        sitting.answer([Annotation(card.photo, truth(card.name)) for card in page.cards], person="ada")
        sitting.wait()


def distances(z):
    return np.linalg.norm(z[:, None] - z[None], axis=2) + np.eye(len(z))


def labels_in(file):
    return {row["path"]: row["label"] for row in csv.DictReader(file.read_text().splitlines())}


def used_photos(run):
    rows = map(json.loads, (run / "photos.jsonl").read_text().splitlines())
    return [row for row in rows if "label" in row]


def test_a_heap_becomes_labels_class_folders_and_a_model_with_its_record(heap, tmp_path):
    before = {path.name: path.read_bytes() for path in heap.iterdir()}
    out, sorted_to = tmp_path / "run", tmp_path / "sorted"

    def show(sitting):
        label_all(sitting)
        aside = next(i for i, path in enumerate(sitting.heap.paths) if path == "birch_3.png")
        sitting.answer([Annotation(aside, None, set_aside=True)], person="bob")
        sitting.answer([Annotation(aside - 1, None)], person="bob")
        sitting.train()
        while sitting.status().training.state == "running":
            time.sleep(0.01)
        assert sitting.status().training.state == "done", sitting.status().training

    done = label(heap, out, options=options(sort=sorted_to), show=show)
    assert {path.name: path.read_bytes() for path in heap.iterdir()} == before
    assert (done.num_photos, done.num_labelled, done.num_set_aside, done.num_sorted) == (48, 46, 1, 49)
    placed = {path.name: path.parent.name for path in sorted_to.rglob("*.png")}
    assert placed.pop("birch_3.png") == "set-aside"
    assert sorted(where for name, where in placed.items() if where != truth(name)) in (["unsure"], ["new"])
    said = labels_in(done.labels)
    assert said.pop("birch_3.png") == ""
    assert len(said) == 47  # the copy too
    assert all(name == truth(path) for path, name in said.items())
    used = used_photos(out)
    assert {row["by"] for row in used} == {"ada"}
    assert all(row["label"] == truth(row["path"]) for row in used)
    assert any(row.get("guess") for row in used)
    assert '"notes.txt"' in (out / "quarantine.csv").read_text()
    assert load(out).classes == ("ash", "birch", "cedar")


def test_a_sitting_goes_on_where_it_ended_also_without_a_page(heap, tmp_path, monkeypatch):
    def some(sitting):
        arrived(sitting)
        for name in COUNTS:
            sitting.add_class(name)
        chosen = [i for i, path in enumerate(sitting.heap.paths) if path.endswith(("_1.png", "_2.png", "_3.png"))]
        sitting.answer([Annotation(i, truth(sitting.heap.paths[i])) for i in chosen], person="ada")

    first = label(heap, tmp_path / "run", options=options(), show=some)
    monkeypatch.setattr("regraft.commands.label.larger", lambda *_: pytest.fail("nobody sees doubts"))
    (heap / "ash_1.png").rename(heap / "moved_1.png")
    again = label(heap, tmp_path / "run", options=options(), show=None)
    assert again.summary["images"]["used"] == first.num_labelled == 9
    assert labels_in(again.labels)["moved_1.png"] == "ash"  # a photo is known by its content


def test_a_run_is_gone_on_from_with_new_photos_and_a_new_class(heap, tmp_path):
    label(heap, tmp_path / "run", options=options(), show=label_all)
    label(heap, tmp_path / "run", options=options(), show=None)
    sides = {row["sha256"]: row["split"] for row in used_photos(tmp_path / "run")}
    new = tmp_path / "new"
    for i in range(8):
        draw(new / f"elm_{i}.png", (120, 118, 134), 9000 + i)

    def add_elms(sitting):
        arrived(sitting)
        assert sitting.status().num_labelled == 48
        sitting.add_class("elm")
        elms = [i for i, path in enumerate(sitting.heap.paths) if "elm_" in path]
        sitting.answer([Annotation(i, "elm") for i in elms], person="bob")
        sitting.train()
        while sitting.status().training.state == "running":
            time.sleep(0.01)
        assert sitting.status().training.state == "done", sitting.status().training

    label(new, None, options=options(start=tmp_path / "run"), show=add_elms)
    assert load(tmp_path / "run").classes == ("ash", "birch", "cedar", "elm")
    rows = used_photos(tmp_path / "run")
    assert {row["by"] for row in rows} == {"ada", "bob"}
    assert all(row["split"] == sides.get(row["sha256"], row["split"]) for row in rows)


def test_frames_of_videos_are_labelled_and_a_video_is_never_parted(tmp_path):
    clips, frames = tmp_path / "clips", {}
    for number, name in enumerate(name for name in COUNTS for _ in range(5)):
        frames[f"{name}_{number}.mkv"] = [
            np.asarray(Image.open(draw(tmp_path / "one.png", SHADES[name], 100 * number + second)))
            for second in range(3)
        ]
        write_video(clips / f"{name}_{number}.mkv", frames[f"{name}_{number}.mkv"], rate=1)
    draw(clips / "ash_99.png", SHADES["ash"], 7)

    def label_frames(sitting):
        label_all(sitting)
        (tmp_path / "pictures").mkdir()
        pictures = Thumbnails(sitting.photo_path, len(sitting.heap), tmp_path / "pictures")
        shown = next(i for i, path in enumerate(sitting.heap.paths) if path == "cedar_12.mkv/0000002000.ppm")
        Image.fromarray(frames["cedar_12.mkv"][2]).save(tmp_path / "frame.png")
        assert pictures.get(shown, "thumb") == jpeg_of(tmp_path / "frame.png", "thumb")
        assert list((tmp_path / "pictures").rglob("*.jpg"))
        pictures.close()

    how = SittingOptions(config=TrainConfig(mode="frozen", report=False, every_s=1.0))
    done = label(clips, tmp_path / "run", options=how, show=label_frames)
    assert done.num_labelled == 46
    label(clips, tmp_path / "run", options=how, show=None)
    sides = {}
    for row in used_photos(tmp_path / "run"):
        sides.setdefault(row["path"].rpartition("/")[0] or row["path"], set()).add(row["split"])
        assert row["label"] == row["path"].partition("_")[0]
    assert all(len(found) == 1 for found in sides.values())
    assert set().union(*sides.values()) == {"train", "val"}
    again = label(clips, None, options=SittingOptions(start=tmp_path / "run"), show=label_all)
    assert (again.num_photos, again.num_labelled) == (46, 46)


def test_what_cannot_be_is_refused_before_anything_is_written(heap, tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        label(tmp_path / "nowhere", tmp_path / "run", options=options(), show=None)
    with pytest.raises(OutputError, match="lies inside"):
        label(heap, tmp_path / "run", options=options(sort=heap / "sorted"), show=None)
    with pytest.raises(OutputError, match="lies inside"):
        label(heap, heap / "run", options=options(), show=None)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="Expected two"):
        label(heap, tmp_path / "run", options=options(), show=None)


def wait_for_features():
    for thread in threading.enumerate():
        if thread.name == "regraft-features":
            thread.join()


def test_all_photos_are_looked_at_again_larger_while_somebody_sees_the_page(heap, tmp_path, monkeypatch):
    other, found = tiny_backbone(tmp_path / "larger", seed=1), {}
    monkeypatch.setattr("regraft.commands.label.larger", lambda *_: other)

    def show(sitting):
        wait_for_features()
        contents = sitting.contents
        found.update({contents.hashes[i]: contents.closer[i] for i in np.flatnonzero(contents.is_ready)})

    label(heap, tmp_path / "run", options=options(), show=show)
    dataset, features = extract(other, list_photos(tmp_path / "truth"))
    known = np.stack([found.pop(content) for content in dataset.hashes])
    assert not found
    table = roots(features.x)
    np.testing.assert_allclose(distances(known), distances(find_projection(table, np.arange(48))(table)), rtol=1e-3)


@pytest.mark.parametrize("why", ["too many", "gone", "no torch", "one size"])
def test_doubts_stay_what_they_are_where_photos_cannot_be_looked_at_again(why, heap, tmp_path, monkeypatch, capsys):
    def larger(*_):
        if why == "no torch":
            raise MissingExtra("timm")
        if why == "gone":
            (heap / "birch_0.png").unlink()
        return None if why == "one size" else tiny_backbone(tmp_path / "larger", seed=2)

    def show(sitting):
        label_all(sitting)
        wait_for_features()
        sitting.wait()
        assert sitting.contents.closer is None
        assert sitting.page("doubts").left > 0

    monkeypatch.setattr("regraft.commands.label.larger", larger)
    monkeypatch.setattr("regraft.labelling.stream.MOST_CLOSER", 10 if why == "too many" else 1000)
    label(heap, tmp_path / "run", options=options(), show=show)
    assert capsys.readouterr().err == ""


def test_two_sittings_in_one_run_are_refused(heap, tmp_path):
    def second(_):
        with pytest.raises(OutputError, match="in use"):
            label(heap, tmp_path / "run", options=options(), show=lambda _: None)

    label(heap, tmp_path / "run", options=options(), show=second, progress=QUIET)
