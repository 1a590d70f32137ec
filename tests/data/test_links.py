"""Links among photos are followed by wish: anywhere, but never in a circle, and each folder once."""

import os
import shutil

import pytest

from conftest import draw_folder
from regraft.commands.scan import ScanResult, write_fixed
from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data.scan import list_photos

READ_ALREADY = "a folder that is read already, by a link or under another name"
FOLLOW = FolderOptions(follow_links=True)


def reasons(dataset):
    return {q.path: q.reason for q in dataset.quarantine}


@pytest.fixture
def linked(tmp_path):
    """Photos all of which are links into another folder, as download caches make them."""
    draw_folder(tmp_path / "blobs", ("cat", "dog"), 2)
    for path in sorted((tmp_path / "blobs").rglob("*.jpg")):
        place = tmp_path / "photos" / path.relative_to(tmp_path / "blobs")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    return tmp_path / "photos"


def test_photos_that_are_links_are_refused_with_the_option_that_follows_them(linked):
    with pytest.raises(
        DataError, match=r"a link that leads out of the data folder\. Follow the links with --follow-links"
    ):
        list_photos(linked)
    dataset = list_photos(linked, options=FOLLOW)
    assert dataset.counts == {"cat": 2, "dog": 2}
    assert dataset.quarantine == ()


def test_some_links_that_lead_out_are_counted_in_a_note(linked):
    for path in linked.rglob("*_1.jpg"):
        target = path.resolve()
        path.unlink()
        shutil.copy(target, path)
    (linked / "cat" / "more").symlink_to(linked / "dog")
    notes = list_photos(linked).notes
    assert f"2 links lead out of {linked}, such as cat/cat_0.jpg; --follow-links follows them" in notes
    assert f"1 links to folders are not followed in {linked}, such as cat/more; --follow-links follows them" in notes


def test_linked_classes_and_splits_are_followed(tmp_path):
    draw_folder(tmp_path / "store" / "a", ("cat", "dog"), 1)
    draw_folder(tmp_path / "store" / "b", ("cat",), 1, seed=9)
    (tmp_path / "photos" / "val").mkdir(parents=True)
    (tmp_path / "photos" / "train").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "photos" / "val" / "cat").symlink_to(tmp_path / "store" / "b" / "cat")
    with pytest.raises(DataError, match="Follow links with --follow-links"):
        list_photos(tmp_path / "photos")
    dataset = list_photos(tmp_path / "photos", options=FOLLOW)
    assert sorted(zip(dataset.splits, dataset.paths, strict=True)) == [
        ("train", "train/cat/cat_0.jpg"),
        ("train", "train/dog/dog_0.jpg"),
        ("val", "val/cat/cat_0.jpg"),
    ]


@pytest.mark.parametrize("level", ["top", "path"])
def test_circles_and_what_is_no_photo_are_refused_by_name(tmp_path, level):
    root = draw_folder(tmp_path / "photos", ("a", "b"), 1)
    draw_folder(tmp_path / "store", ("inner",), 1, seed=5)
    if level == "path":
        (root / "a" / "a_0.jpg").unlink()
    os.mkfifo(tmp_path / "pipe")
    for place, target in {
        "a/out": tmp_path / "store",
        "a/up": "..",
        "a/around": tmp_path,
        "b/dangling.jpg": "nowhere.jpg",
        "b/loop.jpg": "loop.jpg",
        "b/zero.jpg": "/dev/zero",
        "b/pipe.jpg": tmp_path / "pipe",
    }.items():
        (root / place).symlink_to(target)
    (tmp_path / "store" / "inner" / "back").symlink_to(root / "a") if level == "top" else None
    (tmp_path / "store" / "again").symlink_to("inner")
    dataset = list_photos(root, options=FolderOptions(level, follow_links=True))
    found = reasons(dataset)
    assert found["a/up"] == found["a/around"] == "a link to a folder around it"
    assert found["a/out/inner"] == READ_ALREADY
    assert level == "path" or found["a/out/again/back"] == READ_ALREADY
    assert found["b/zero.jpg"] == found["b/pipe.jpg"] == "not a regular file"
    assert all(found[name].startswith("cannot be read: ") for name in ("b/dangling.jpg", "b/loop.jpg"))
    assert len(dataset) == len({path.split("/")[-1] for path in dataset.paths})


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    root = draw_folder(tmp_path / "photos", ("a", "b"), 1)
    for level in range(12):
        folder = tmp_path / "store" / str(level)
        folder.mkdir(parents=True)
        for name in ("left", "right"):
            (folder / name).symlink_to(tmp_path / "store" / str(level + 1))
    (tmp_path / "store" / "12").mkdir()
    (root / "a" / "deep").symlink_to(tmp_path / "store" / "0")
    dataset = list_photos(root, options=FolderOptions("top", follow_links=True))
    assert len(dataset) == 2
    assert list(reasons(dataset).values()) == [READ_ALREADY] * 12


def test_a_list_of_links_is_followed_and_its_paths_stay_inside(linked):
    (linked / "list.csv").write_text("path,label\ncat/cat_0.jpg,cat\ndog/dog_0.jpg,dog\n../blobs/cat/cat_1.jpg,cat\n")
    with pytest.raises(DataError, match="Follow the links with --follow-links"):
        list_photos(linked / "list.csv")
    dataset = list_photos(linked / "list.csv", options=FOLLOW)
    assert dataset.counts == {"cat": 1, "dog": 1}
    assert reasons(dataset) == {"../blobs/cat/cat_1.jpg": "leads out of the list's folder"}


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_cleaned_copy_keeps_its_list_and_holds_photos_not_links(linked, tmp_path, name):
    rows = {"cat/cat_0.jpg": "dog", "./dog/dog_0.jpg": "cat", "dog/dog_1.jpg": "cat"}
    csv = "path,label,who\n" + "".join(f"{path},{label},me\n" for path, label in rows.items())
    jsonl = "".join(f'{{"path": "{path}", "label": "{label}", "who": "me"}}\n' for path, label in rows.items())
    (linked / name).write_text(csv if name == "list.csv" else jsonl)
    found = ScanResult(list_photos(linked / name, options=FOLLOW).without({2: "blurred"}), ())
    write_fixed(found, tmp_path / "fixed")
    again = list_photos(tmp_path / "fixed" / name)
    assert {path: again.classes[label] for path, label in zip(again.paths, again.labels, strict=True)} == {
        "cat/cat_0.jpg": "dog",
        "dog/dog_0.jpg": "cat",
    }
    assert "me" in (tmp_path / "fixed" / name).read_text()
    assert not (tmp_path / "fixed" / "cat" / "cat_0.jpg").is_symlink()
