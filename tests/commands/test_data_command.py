"""What was read is written for others, whole, with classes and splits, or not at all."""

import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from conftest import COLOURS, draw, draw_folder
from regraft.commands import data as module
from regraft.commands.data import write_data
from regraft.core.errors import ConfigError, DataError, OutputError
from regraft.core.files import sha256_bytes
from regraft.data import dataset_writers
from regraft.data.scan import list_photos
from regraft.data.sorting import sort_photos, undo
from regraft.data.splits import split

PLACES = [("out", None), ("out.zip", None), ("out", "parquet"), ("out", "webdataset")]


@pytest.fixture
def photos(tmp_path):
    """Photos of three classes in two splits; two have one name, and one file is no photo."""
    root = draw_folder(tmp_path / "photos" / "train", ("10", "2", "ä b"), 3)
    draw_folder(tmp_path / "photos" / "val", ("10", "2"), 2, seed=50)
    (root / "2" / "broken.jpg").write_bytes(b"no photo")
    return tmp_path / "photos"


def content(dataset) -> Counter:
    return Counter(zip(dataset.hashes, (dataset.classes[i] for i in dataset.labels), dataset.splits, strict=True))


def as_others_read(place: Path) -> Counter:
    """Content, class and split of every photo, by other libraries alone."""
    if place.suffix == ".zip":
        with zipfile.ZipFile(place) as archive:
            assert archive.testzip() is None
            rows = [(archive.read(name), *name.split("/")[1::-1]) for name in archive.namelist()]
    elif parquets := list(place.glob("*.parquet")):
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = []
        for file in parquets:
            table = parquet.read_table(file)
            names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
            for row in table.to_pylist():
                rows.append((row["image"]["bytes"], names[row["label"]], file.name.split("-")[0]))
    elif shards := list(place.glob("*.tar")):
        rows = []
        for file in shards:
            with tarfile.open(file) as members:
                files = {one.name: members.extractfile(one).read() for one in members.getmembers()}
            for key in {name.split(".")[0] for name in files}:
                label = json.loads(files[f"{key}.json"])["label"]
                rows.append((files[f"{key}.jpg"], label, file.name.split("-")[0]))
    else:
        files = [path for path in place.rglob("*") if path.is_file()]
        rows = [(path.read_bytes(), path.parent.name, path.parent.parent.name) for path in files]
    return Counter((sha256_bytes(data), label, part) for data, label, part in rows)


@pytest.mark.parametrize(("name", "kind"), PLACES)
def test_others_and_regraft_read_the_same_photos_classes_and_splits(photos, tmp_path, name, kind, regraft_main):
    done = regraft_main("data", photos, "--to", tmp_path / name, *(["--format", kind] if kind else []), "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["used"], said["found"], said["splits"]) == (0, 13, 14, {"train": 9, "val": 4})
    assert [one["path"] for one in said["quarantined"]] == ["train/2/broken.jpg"]
    wanted = content(
        list_photos(photos).without({i: "" for i, p in enumerate(list_photos(photos).paths) if "bro" in p})
    )
    assert as_others_read(tmp_path / name) == wanted
    assert content(list_photos(said["read_as"])) == wanted
    assert list_photos(said["read_as"]).classes == ("2", "10", "ä b")


@pytest.mark.parametrize("name", ["out.parquet", "out.tar", "out.zip"])
def test_photos_that_are_not_split_go_into_one_file_with_the_same_bytes_each_time(tmp_path, name):
    folder = draw_folder(tmp_path / "photos", ("a", "b"), 4)
    write_data(folder, tmp_path / name)
    again = write_data(folder, tmp_path / f"again{name[3:]}")
    assert (tmp_path / name).read_bytes() == again.place.read_bytes()
    assert content(list_photos(tmp_path / name)) == content(list_photos(folder))
    write_data(folder, tmp_path / name)  # what regraft wrote, regraft may replace
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="is there already"):
        write_data(folder, tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"mine"


def test_the_split_is_that_of_a_training(tmp_path):
    folder = draw_folder(tmp_path / "photos", ("a", "b"), 10)
    done = write_data(folder, tmp_path / "out", with_split=True)
    found, wanted = list_photos(done.read_as), split(list_photos(folder))
    assert {h for h, s in zip(found.hashes, found.splits, strict=True) if s == "val"} == set(wanted.val.hashes)
    assert found.splits.count("train") == len(wanted.train)


def test_photos_of_one_name_and_hidden_names_all_arrive(tmp_path):
    lines = ["path,label"]
    for i, path in enumerate(["x/p.jpg", "y/p.jpg", "y/P.JPG", "y/.hidden.jpg", "y/p.jpg~"]):
        draw(tmp_path / f"{i}.jpg", list(COLOURS.values())[i % 4], i)
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / f"{i}.jpg").rename(tmp_path / path)
        lines.append(f"{path},{'ab'[i % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for name in ("out", "out.zip"):
        done = write_data(tmp_path / "list.csv", tmp_path / name)
        assert content(list_photos(done.read_as)) == content(list_photos(tmp_path / "list.csv"))
        assert len(done.dataset) == 5


@pytest.mark.parametrize("label", ["a:b", "..", "train", ".x", "CON"])
def test_a_class_that_folders_cannot_say_is_refused_there_and_kept_elsewhere(tmp_path, label):
    draw_folder(tmp_path / "photos", ("one", "two"), 2)
    rows = [f"photos/{name}/{name}_{i}.jpg,{label if name == 'one' else 'val' if label == 'train' else name}"
            for name in ("one", "two") for i in range(2)]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    for name in ("out", "out.zip"):
        with pytest.raises(DataError, match="parquet or webdataset"):
            write_data(tmp_path / "list.csv", tmp_path / name)
        assert not (tmp_path / name).exists()
    done = write_data(tmp_path / "list.csv", tmp_path / "out.tar")
    assert content(list_photos(done.read_as)) == content(list_photos(tmp_path / "list.csv"))
    assert not list(tmp_path.glob(".regraft-partial*"))


def test_what_would_not_read_back_the_same_is_not_kept(photos, tmp_path, monkeypatch):
    write = dataset_writers.write_dataset
    monkeypatch.setattr(module, "write_dataset", lambda d, *more: write(d.subset(range(1, len(d))), *more))
    for name, kind in PLACES:
        with pytest.raises(DataError, match="does not read back as it was, and was not kept"):
            write_data(photos, tmp_path / name, kind=kind)
        assert not (tmp_path / name).exists()


def test_places_that_cannot_be_are_refused_before_anything_is_read(photos, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--to .*out --format parquet"):
        write_data(photos, tmp_path / "out.parquet")
    monkeypatch.setattr(module, "scan", lambda *_, **__: pytest.fail("it is known before"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        write_data(photos, tmp_path / "mine")
    with pytest.raises(OutputError, match="among the photos"):
        write_data(photos, photos / "out.zip")


@pytest.mark.parametrize("name", ["out.tar.gz", "out.TGZ", "out.csv", "out.npy"])
def test_a_file_of_a_kind_that_is_not_written_becomes_no_folder(photos, tmp_path, name):
    with pytest.raises(
        ConfigError, match=rf"as {tmp_path}/{name} is called\. Expected a folder, or a file that ends in"
    ):
        write_data(photos, tmp_path / name)
    write_data(photos, tmp_path / name, kind="folder")


def test_large_sets_are_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_writers, "SHARD_BYTES", 20_000)
    folder = draw_folder(tmp_path / "photos", ("a", "b"), 6)
    done = write_data(folder, tmp_path / "out", kind="webdataset")
    shards = sorted((tmp_path / "out").iterdir())
    assert [one.name for one in shards[:2]] == ["photos-000000.tar", "photos-000001.tar"]
    assert content(list_photos(done.read_as)) == content(list_photos(folder))


def test_photos_in_an_archive_are_sorted_too(tmp_path):
    folder = draw_folder(tmp_path / "photos", ("a", "b"), 2)
    write_data(folder, tmp_path / "p.zip")
    found = list_photos(tmp_path / "p.zip")
    given = [(found.root / path, "x") for path in found.paths]
    assert sort_photos(given, tmp_path / "out") == 4
    assert {sha256_bytes(path.read_bytes()) for path in (tmp_path / "out" / "x").iterdir()} == set(found.hashes)
    assert undo(tmp_path / "out").num_removed == 4
    sort_photos(given, tmp_path / "out")
    (tmp_path / "p.zip").unlink()
    assert undo(tmp_path / "out").num_removed == 0
    assert len(list((tmp_path / "out" / "x").iterdir())) == 4
