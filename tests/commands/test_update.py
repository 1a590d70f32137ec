"""A model that learns again: the same bytes as from the start, only new photos computed, labels that stay put right."""

import json
import shutil

import pytest
from PIL import Image, ImageOps

import regraft
from conftest import draw_folder, rewrite_manifest
from faults.processes import long_form
from regraft.backbones import features
from regraft.bundle.bundle import load
from regraft.commands import update
from regraft.core.errors import ConfigError, DataError
from regraft.data.orchard import unpack_orchard
from tiny_backbone import only_tiny_backbone

MODEL = ("model.onnx", "model.safetensors", "config.json")


def train(folder, out, **settings):
    regraft.train(folder, out, mode="frozen", report=False, quiet=True, **settings)
    return out


@pytest.fixture
def tiny(tmp_path):
    """A training takes a tenth of a second."""
    with only_tiny_backbone(tmp_path / "tiny"):
        yield


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


@pytest.mark.usefixtures("tiny")
def test_a_class_more_gives_the_bytes_of_a_training_on_all_and_computes_new_photos_only(photos, counted, tmp_path):
    more = draw_folder(tmp_path / "more", ("yellow",), 7, seed=4000)
    old = train(photos, tmp_path / "old")
    counted()
    updated = update.add(old, more, tmp_path / "grown")
    assert counted() == 7
    whole = shutil.copytree(photos, tmp_path / "whole")
    shutil.copytree(more / "yellow", whole / "yellow")
    assert same_model(updated.run.out, train(whole, tmp_path / "from the start"))
    assert counted() == 0
    assert updated.added == ("yellow",)
    assert updated.before.n == updated.after.n == 6
    assert updated.run.bundle.classes == ("blue", "green", "red", "yellow")
    again = update.add(old, more)
    assert again.run.out == old
    assert same_model(old, updated.run.out)


@pytest.mark.usefixtures("tiny")
def test_labels_put_right_stay_so_when_more_are_and_when_photos_are_added(photos, tmp_path):
    wrong = shutil.copytree(photos, tmp_path / "wrong")
    for name in ("red_3.jpg", "red_4.jpg"):
        shutil.move(wrong / "red" / name, wrong / "green" / name)
    run = train(wrong, tmp_path / "run")
    for name in ("red_3.jpg", "red_4.jpg"):
        (tmp_path / f"{name}.csv").write_text(f"path,label,suggested\ngreen/{name},red,red\n")
        updated = update.relabel(run, tmp_path / f"{name}.csv")
    assert labels_of(run)["red_3.jpg"] == labels_of(run)["red_4.jpg"] == "red"
    rows = map(json.loads, (run / "photos.jsonl").read_text().splitlines())
    listed = [f"{row['path']},{row['label']},{row['split']}" for row in rows]
    (wrong / "right.csv").write_text("\n".join(["path,label,split", *listed]))
    assert same_model(run, train(wrong / "right.csv", tmp_path / "right"))
    assert updated.added == ()
    update.add(run, draw_folder(tmp_path / "more", ("yellow",), 4, seed=4100))
    assert labels_of(run)["red_3.jpg"] == labels_of(run)["red_4.jpg"] == "red"
    assert set(labels_of(run).values()) == {"red", "green", "blue", "yellow"}


@pytest.mark.usefixtures("tiny")
def test_lists_that_name_no_photo_or_several_are_refused(photos, tmp_path):
    run = train(photos, tmp_path / "run")
    file = tmp_path / "labels.csv"
    file.write_text("path,label\nred/red_99.jpg,blue\n")
    with pytest.raises(
        DataError, match=r"line 2, which the photos' folders do not hold\. Did you mean 'red/red_9\.jpg'"
    ):
        update.relabel(run, file, tmp_path / "no")
    twin = draw_folder(tmp_path / "twin", ("red", "blue"), 2, seed=4200)
    update.add(run, twin)
    file.write_text("path,label\nred/red_0.jpg,blue\n")
    with pytest.raises(DataError, match=r"names red/red_0\.jpg in line 2, which 2 of the folders hold"):
        update.relabel(run, file, tmp_path / "no")


def test_what_cannot_grow_says_why(bundle, photos, tmp_path):
    alone = shutil.copytree(bundle.folder, tmp_path / "alone" / "bundle")
    with pytest.raises(DataError, match="does not say which photos its model was made of"):
        update.add(alone, photos)
    for name in ("result.json", "photos.jsonl"):
        shutil.copy(bundle.folder.parent / name, alone.parent)
    manifest = json.loads((alone / "regraft.json").read_text())
    rewrite_manifest(alone, provenance={**manifest["provenance"], "mode": "full"})
    with pytest.raises(DataError, match=r"result\.json speaks of another bundle"):
        update.add(alone, photos)
    summary = json.loads((alone.parent / "result.json").read_text())
    summary["record"]["bundle_sha256"] = load(alone).sha256
    (alone.parent / "result.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=r"is of mode full: its backbone has learned too"):
        update.add(alone, photos)


@pytest.mark.slow
@long_form
def test_a_sixth_fruit_gives_the_bytes_of_a_training_on_six(real_photos, counted, tmp_path):
    sixth = unpack_orchard(tmp_path / "drawn", train_per_class=12, val_per_class=6)
    for path in sixth.rglob("*.jpg"):  # mirrored, no other test has seen them
        ImageOps.mirror(Image.open(path)).save(path)
    for split in ("train", "val"):
        shutil.rmtree(sixth / split / "watermelon")
        (sixth / split / "kiwi").rename(sixth / split / "Drawn")
    (sixth / "val").rename(sixth / "test")
    five = train(real_photos / "grocery_fruit5", tmp_path / "five")
    counted()
    updated = update.add(five, sixth, tmp_path / "grown")
    assert counted() == 18
    whole = shutil.copytree(real_photos / "grocery_fruit5", tmp_path / "whole")
    shutil.copytree(sixth, whole, dirs_exist_ok=True)
    assert same_model(updated.run.out, train(whole, tmp_path / "six"))
    assert updated.before.n == 232
    assert updated.added == ("Drawn",)
