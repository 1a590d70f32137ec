"""A model that learns again: the same bytes as from the start, only new photos computed, labels that stay put right."""

import json
import shutil

import pytest

import regraft
from conftest import draw_folder, rewrite_manifest
from regraft import growing
from regraft.backbones import features
from regraft.data.orchard.photos import draw_orchard
from regraft.ground.errors import ConfigError, DataError

MODEL = ("model.onnx", "model.safetensors", "config.json")


def train(folder, out, **settings):
    regraft.train(folder, out, mode="frozen", report=False, quiet=True, **settings)
    return out


@pytest.fixture
def counted(monkeypatch):
    """How many photos have gone through a backbone since the last look."""
    decoded, plain = [], features._decoded
    monkeypatch.setattr(features, "_decoded", lambda *job: decoded.append(job) or plain(*job))

    def look():
        number = len(decoded)
        decoded.clear()
        return number

    return look


def same_model(a, b):
    return all((a / "bundle" / name).read_bytes() == (b / "bundle" / name).read_bytes() for name in MODEL)


def labels_of(run):
    rows = map(json.loads, (run / "photos.jsonl").read_text().splitlines())
    return {row["path"].rpartition("/")[2]: row["label"] for row in rows}


def test_a_class_more_gives_the_bytes_of_a_training_on_all_and_computes_new_photos_only(photos, counted, tmp_path):
    more = draw_folder(tmp_path / "more", ("yellow",), 7, seed=4000)
    old = train(photos, tmp_path / "old")
    counted()
    grown = growing.add(old, more, tmp_path / "grown")
    assert counted() == 7
    whole = shutil.copytree(photos, tmp_path / "whole")
    shutil.copytree(more / "yellow", whole / "yellow")
    assert same_model(grown.run.out, train(whole, tmp_path / "from the start"))
    assert counted() == 0
    assert grown.added == ("yellow",)
    assert grown.before.n == grown.after.n == 6
    assert grown.run.bundle.classes == ("blue", "green", "red", "yellow")
    again = growing.add(old, more)
    assert again.run.out == old
    assert same_model(old, grown.run.out)


def test_labels_put_right_stay_so_when_more_are_and_when_photos_are_added(photos, tmp_path):
    wrong = shutil.copytree(photos, tmp_path / "wrong")
    for name in ("red_3.jpg", "red_4.jpg"):
        shutil.move(wrong / "red" / name, wrong / "green" / name)
    run = train(wrong, tmp_path / "run")
    for name in ("red_3.jpg", "red_4.jpg"):
        (tmp_path / f"{name}.csv").write_text(f"path,label,suggested\ngreen/{name},red,red\n")
        grown = growing.relabel(run, tmp_path / f"{name}.csv")
    assert labels_of(run)["red_3.jpg"] == labels_of(run)["red_4.jpg"] == "red"
    assert same_model(run, train(photos, tmp_path / "right"))
    assert grown.added == ()
    growing.add(run, draw_folder(tmp_path / "more", ("yellow",), 4, seed=4100))
    assert labels_of(run)["red_3.jpg"] == labels_of(run)["red_4.jpg"] == "red"
    assert set(labels_of(run).values()) == {"red", "green", "blue", "yellow"}


def test_lists_that_name_no_photo_or_several_are_refused(photos, tmp_path):
    run = train(photos, tmp_path / "run")
    file = tmp_path / "labels.csv"
    file.write_text("path,label\nred/red_99.jpg,blue\n")
    with pytest.raises(
        DataError, match=r"line 2, which the photos' folders do not hold\. Did you mean 'red/red_9\.jpg'"
    ):
        growing.relabel(run, file, tmp_path / "no")
    twin = draw_folder(tmp_path / "twin", ("red", "blue"), 2, seed=4200)
    growing.add(run, twin)
    file.write_text("path,label\nred/red_0.jpg,blue\n")
    with pytest.raises(DataError, match=r"names red/red_0\.jpg in line 2, which 2 of the folders hold"):
        growing.relabel(run, file, tmp_path / "no")


def test_what_cannot_grow_says_why(bundle, photos, tmp_path):
    alone = shutil.copytree(bundle.folder, tmp_path / "alone" / "bundle")
    with pytest.raises(DataError, match="does not say which photos it was trained on"):
        growing.add(alone, photos)
    manifest = json.loads((alone / "regraft.json").read_text())
    rewrite_manifest(alone, provenance={**manifest["provenance"], "mode": "full"})
    (alone.parent / "result.json").write_text(json.dumps({"photos": str(photos)}))
    with pytest.raises(ConfigError, match=r"is of mode full: its backbone has learned too"):
        growing.add(alone, photos)


@pytest.mark.slow
def test_a_sixth_fruit_gives_the_bytes_of_a_training_on_six(real_photos, counted, tmp_path):
    sixth = draw_orchard(tmp_path / "drawn", train_per_class=12, val_per_class=6, seed=1789)  # seen by no other test
    for split in ("train", "val"):
        shutil.rmtree(sixth / split / "watermelon")
        (sixth / split / "kiwi").rename(sixth / split / "Drawn")
    (sixth / "val").rename(sixth / "test")
    five = train(real_photos / "grocery_fruit5", tmp_path / "five")
    counted()
    grown = growing.add(five, sixth, tmp_path / "grown")
    assert counted() == 18
    whole = shutil.copytree(real_photos / "grocery_fruit5", tmp_path / "whole")
    shutil.copytree(sixth, whole, dirs_exist_ok=True)
    assert same_model(grown.run.out, train(whole, tmp_path / "six"))
    assert grown.before.n == 232
    assert grown.added == ("Drawn",)
