"""Every file found is used with its own label and content, or set aside with a reason: none is mislabelled."""

import io
import os
import shutil
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import COLOURS, draw, draw_folder
from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data.decode import Unreadable, decode
from regraft.data.folder_entries import is_junk, natural_key
from regraft.data.scan import Dataset, list_photos, scan

HUES = list(COLOURS.values())


def fill(root: Path, tree: dict[str, int]) -> Path:
    """`{"train/cat": 3}` to three photos there, in the colour of the class: classes take colours by sorted name."""
    classes = sorted({Path(folder).name for folder in tree})
    for n, (folder, count) in enumerate(tree.items()):
        (root / folder).mkdir(parents=True)
        for i in range(count):
            colour = HUES[classes.index(Path(folder).name) % len(HUES)]
            draw(root / folder / f"{i}.jpg", colour, 1000 * n + i, (12, 10))
    return root


def colour_of(path: Path) -> int:
    mean = np.asarray(decode(path.read_bytes())).mean(axis=(0, 1))
    return int(np.argmin([np.abs(mean - colour).sum() for colour in HUES]))


def check(dataset: Dataset, root: Path) -> None:
    """Labels are those that the colours tell, splits those that the paths tell, and nothing is lost."""
    names = sorted({Path(path).parent.name for path in dataset.paths} | set(dataset.classes))
    for i, path in enumerate(dataset.paths):
        assert dataset.classes[dataset.labels[i]] == Path(path).parent.name
        assert names[colour_of(root / path)] == Path(path).parent.name, path
        assert dataset.read(i) == (root / path).read_bytes()
    assert dataset.labels.dtype == np.int64
    assert len(dataset) == len(dataset.labels) == len(dataset.splits) == len(dataset.hashes)
    assert dataset.num_found == len(dataset) + len(dataset.quarantine)
    assert len({*dataset.paths, *(q.path for q in dataset.quarantine)}) == dataset.num_found


def reasons(dataset: Dataset) -> dict[str, str]:
    return {q.path: q.reason for q in dataset.quarantine}


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        scan(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders_are_read(tmp_path):
    dataset = scan(fill(tmp_path, {"cat": 3, "dog": 2}))
    check(dataset, tmp_path)
    assert dataset.counts == {"cat": 3, "dog": 2}
    assert set(dataset.splits) == {""}
    assert dataset.paths == ("cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/0.jpg", "dog/1.jpg")
    assert (dataset.quarantine, dataset.notes) == ((), ())


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Val", "VALID"])
@pytest.mark.parametrize("train", ["train", "Train"])
def test_split_folders_are_read_under_all_their_names(tmp_path, train, val):
    tree = {f"{train}/cat": 2, f"{train}/dog": 2, f"{val}/cat": 1, f"{val}/dog": 1, "test/dog": 1, "test/cat": 1}
    dataset = scan(fill(tmp_path, tree))
    check(dataset, tmp_path)
    assert dataset.splits == ("train",) * 4 + ("val",) * 2 + ("test",) * 2
    assert dataset.notes == ()


def test_a_val_folder_without_a_class_keeps_labels_by_name_and_says_so(tmp_path):
    dataset = scan(fill(tmp_path, {"train/a": 2, "train/b": 2, "train/c": 2, "val/b": 1, "val/c": 1}))
    check(dataset, tmp_path)
    assert dataset.classes == ("a", "b", "c")
    assert [dataset.labels[i] for i, s in enumerate(dataset.splits) if s == "val"] == [1, 2]
    assert dataset.notes == ("val has no photos of 'a'; scored on 2 of 3 classes",)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_refused_with_the_nearest_name(tmp_path, split):
    message = refusal(fill(tmp_path, {"train/ants": 1, "train/bees": 1, f"{split}/bes": 3}))
    assert f"3 {split} photos of class 'bes', which train does not have. Did you mean 'bees'?" in message


def test_a_class_unlike_any_other_is_refused_with_all_names(tmp_path):
    assert "Expected one of: ants, bees." in refusal(fill(tmp_path, {"train/ants": 1, "train/bees": 1, "val/xyz": 1}))


def test_numbers_are_sorted_as_numbers(tmp_path):
    dataset = scan(fill(tmp_path, dict.fromkeys(("10", "9", "2", "1"), 1)))
    assert dataset.classes == ("1", "2", "9", "10")
    shuffled = ["img12", "img2", "img10", "IMG1", "img1", "img01", "a", "10", "2", "²"]
    assert sorted(shuffled, key=natural_key) == ["2", "10", "IMG1", "a", "img01", "img1", "img2", "img10", "img12", "²"]


@pytest.mark.parametrize("layout", ["", "train"])
def test_hidden_and_system_files_and_folders_are_skipped_and_said(tmp_path, layout):
    root = fill(tmp_path, {f"{layout}/cat".lstrip("/"): 1, f"{layout}/dog".lstrip("/"): 1})
    junk = ("__MACOSX", ".ipynb_checkpoints", ".git", "@eaDir", "$RECYCLE.BIN")
    for name in junk:
        draw(root / layout / name / "0.jpg", HUES[0], 5)
    for name in ("Thumbs.db", ".DS_Store", "._0.jpg", "desktop.ini", "0.jpg~"):
        (root / layout / "cat" / name).touch()
    dataset = scan(root)
    check(dataset, root)
    assert (dataset.classes, dataset.num_found) == (("cat", "dog"), 2)
    said = " ".join(dataset.notes)
    assert all(name in said for name in (*junk, "Thumbs.db", "._0.jpg", "0.jpg~"))
    assert is_junk("Lost+Found")
    assert not is_junk("cat")


@pytest.mark.parametrize("layout", ["", "train"])
def test_files_beside_the_class_folders_are_set_aside(tmp_path, layout):
    root = fill(tmp_path, {f"{layout}/cat".lstrip("/"): 1, f"{layout}/dog".lstrip("/"): 1})
    draw(root / "loose.jpg", HUES[0], 9)
    (root / layout / "labels.csv").write_text("path,label")
    dataset = scan(root)
    check(dataset, root)
    assert reasons(dataset) == dict.fromkeys(
        ("loose.jpg", str(Path(layout, "labels.csv"))), "not inside a class folder"
    )


@pytest.mark.parametrize("layout", ["", "train", "val"])
def test_photos_directly_inside_are_refused_with_their_number(tmp_path, layout):
    root = fill(tmp_path, {"train/cat": 1, "train/dog": 1} if layout == "val" else {})
    for i in range(3):
        draw(root / layout / f"{i}.jpg", HUES[0], i, (12, 10))
    if layout == "train":
        draw(root / "val" / "0.jpg", HUES[0], 1)
    message = refusal(root)
    assert f"{root / layout} has no class folders. Expected {root / layout}/<class>/<image>" in message
    assert "found 3 files directly inside" in message


def test_one_class_is_refused_by_name(tmp_path):
    message = refusal(fill(tmp_path, {"cat": 2}))
    assert "photos of one class only, 'cat'" in message
    assert list_photos(tmp_path, min_classes=1).classes == ("cat",)


def test_an_empty_class_folder_is_no_class_and_said(tmp_path):
    dataset = scan(fill(tmp_path, {"cat": 1, "dog": 1, "eel": 0}))
    assert dataset.classes == ("cat", "dog")
    assert dataset.notes == (f"class folder {tmp_path / 'eel'} is empty",)


def test_a_class_without_a_readable_photo_is_left_out_and_said(tmp_path):
    root = fill(tmp_path, {"a": 1, "b": 1, "c": 1})
    (root / "a" / "0.jpg").write_text("no photo")
    dataset = scan(root)
    assert (dataset.classes, dataset.labels.tolist()) == (("b", "c"), [0, 1])
    assert dataset.counts == {"b": 1, "c": 1}
    assert dataset.notes == ("left out, because no photo of it can be read: 'a'",)


@pytest.mark.parametrize("tree", [{}, {"cat": 0, "dog": 0}, {"train/cat": 0, "train/dog": 0}])
def test_a_folder_without_photos_is_refused(tmp_path, tree):
    assert f"{tmp_path} has no readable photos. Expected {tmp_path}/<class>/<image>" in refusal(fill(tmp_path, tree))


def test_a_folder_without_readable_photos_shows_an_example(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_text("no photo")
    assert "2 files, 0 of them readable photos; the first: a/0.jpg: not an image" in refusal(tmp_path)


def test_a_folder_around_the_data_set_is_named(tmp_path):
    fill(tmp_path / "download", {"train/cat": 1, "train/dog": 1})
    assert f"Point regraft at {tmp_path / 'download'}." in refusal(tmp_path)


@pytest.mark.parametrize("names", [("val", "valid"), ("val", "Val"), ("train", "TRAIN")])
def test_two_folders_for_one_split_are_refused(tmp_path, names):
    tree = {"train/cat": 1, "train/dog": 1} | {f"{name}/cat": 1 for name in names}
    assert f"more than one {names[0]} folder" in refusal(fill(tmp_path, tree))


def test_folders_beside_the_splits_are_skipped_and_said(tmp_path):
    dataset = scan(fill(tmp_path, {"train/cat": 1, "train/dog": 1, "extra/cat": 1}))
    assert dataset.paths == ("train/cat/0.jpg", "train/dog/0.jpg")
    assert dataset.notes == (f"skipped in {tmp_path}: extra (not a split: expected train, val and test)",)


def test_train_is_a_class_when_it_holds_photos_beside_other_classes(tmp_path):
    dataset = scan(fill(tmp_path, {"bus": 1, "train": 2, "test": 1}))
    check(dataset, tmp_path)
    assert dataset.counts == {"bus": 1, "test": 1, "train": 2}


def test_what_is_no_folder_is_refused(tmp_path):
    fill(tmp_path / "photos", {"cat": 1, "dog": 1})
    assert "is a file. Expected the folder" in refusal(tmp_path / "photos" / "cat" / "0.jpg")
    assert "There is no folder" in refusal(tmp_path / "photo")
    assert "Did you mean 'photos'?" in refusal(tmp_path / "photo")
    assert f"Looked in {tmp_path}." in refusal(tmp_path / "zzz")
    assert "There is no folder" in refusal(tmp_path / "no" / "where")


def test_content_decides_not_the_extension(tmp_path):
    root = fill(tmp_path, {"a": 1, "b": 1})
    file = io.BytesIO()
    Image.new("RGB", (12, 10), HUES[0]).save(file, "PNG")
    for name in ("png.jpg", "png.txt", "png"):
        (root / "a" / name).write_bytes(file.getvalue())
    check(scan(root), root)
    assert scan(root).counts == {"a": 4, "b": 1}


def test_damaged_files_are_set_aside_with_their_reasons(tmp_path):
    root = fill(tmp_path, {"a": 3, "b": 3})
    whole = (root / "a" / "0.jpg").read_bytes()
    (root / "a" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "0.jpg").write_bytes(b"")
    (root / "b" / "1.jpg").write_text("<html>")
    dataset = scan(root)
    check(dataset, root)
    found = reasons(dataset)
    assert list(found) == ["a/1.jpg", "b/0.jpg", "b/1.jpg"]
    assert found["a/1.jpg"].startswith("damaged: ")
    assert (found["b/0.jpg"], found["b/1.jpg"]) == ("the file is empty", "not an image of a known format")
    assert dataset.counts == {"a": 2, "b": 1}
    assert list_photos(root).counts == {"a": 3, "b": 2}


def test_links_pipes_and_sockets_are_set_aside_and_nothing_hangs(tmp_path, monkeypatch):
    outside = fill(tmp_path / "outside", {"cat": 1})
    root = fill(tmp_path / "photos", {"a": 1, "b": 1})
    cats = root / "a"
    (cats / "out.jpg").symlink_to(outside / "cat" / "0.jpg")
    (cats / "dangling.jpg").symlink_to("nowhere.jpg")
    (cats / "loop.jpg").symlink_to("loop.jpg")
    (cats / "up").symlink_to("..")
    (cats / "folder").symlink_to("../b")
    (cats / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(cats / "pipe.jpg")
    (root / "linked class").symlink_to(outside / "cat")
    (root / "loop").symlink_to("loop")
    (root / "self").symlink_to(".")
    monkeypatch.chdir(cats)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        outcome: list[Dataset] = []
        worker = threading.Thread(target=lambda: outcome.append(scan(root)), daemon=True)
        worker.start()
        worker.join(10)
    (dataset,) = outcome
    assert dataset.paths == ("a/0.jpg", "b/0.jpg")
    assert dataset.num_found == len(dataset) + len(dataset.quarantine)
    found = reasons(dataset)
    out = "a link that leads out of the data folder"
    assert found["a/out.jpg"] == found["a/zero.jpg"] == found["linked class"] == out
    assert found["a/pipe.jpg"] == found["a/socket.jpg"] == found["a/folder"] == "not a regular file"
    assert found["a/up"] == found["self"] == "a link to a folder around it"
    assert found["a/dangling.jpg"].startswith("cannot be read: ")
    assert found["a/loop.jpg"].startswith("cannot be read: ")
    assert found["loop"] == "not inside a class folder"
    assert len(found) == 11


def test_links_within_the_folder_and_the_folder_itself_are_followed(tmp_path):
    root = fill(tmp_path / "photos", {"a": 1, "b": 1})
    (root / "a" / "again.jpg").symlink_to("0.jpg")
    (tmp_path / "link").symlink_to("photos")
    dataset = scan(tmp_path / "link")
    check(dataset, tmp_path / "link")
    assert dataset.paths == ("a/0.jpg", "a/again.jpg", "b/0.jpg")
    assert dataset.hashes[0] == dataset.hashes[1]


def test_a_split_that_is_a_link_out_is_refused(tmp_path):
    outside = fill(tmp_path / "outside", {"cat": 1, "dog": 1})
    root = fill(tmp_path / "photos", {"train/cat": 1, "train/dog": 1})
    (root / "val").symlink_to(outside)
    assert f"{root / 'val'} is a link that leads out of the data folder" in refusal(root)


ODD_NAMES = (
    b"new\nline",
    b"quote'\"`$(x)",
    b"\x1b[31mescape",
    "bee 🐝".encode(),
    b"-rf",
    b" space ",
    b"not UTF-8 \xff\xfe",
    "\u00e9".encode(),
    "\u202egpj".encode(),
    b"upper",
    b"%s{}",
    b"x" * 200,
)


def test_odd_names_of_files_and_classes_are_names_like_any_other(tmp_path):
    photo = draw(tmp_path / "photo.jpg", HUES[0], 0, (12, 10)).read_bytes()
    root = tmp_path / "photos"
    names = {os.fsdecode(name) for name in ODD_NAMES}
    classes = {name for name in names if name.isprintable() or name.isascii() or "\u202e" in name}  # all but bytes
    for name in names:
        folder = os.fsencode(root / (name if name in classes else "bytes"))
        os.makedirs(folder)  # noqa: PTH103
        with open(os.path.join(folder, os.fsencode(name) + b".jpg"), "wb") as file:  # noqa: PTH118
            file.write(photo)
    dataset = scan(root)
    assert len(classes) == len(names) - 1
    assert set(dataset.classes) == {*classes, "bytes"}
    assert set(dataset.paths) == {f"{name if name in classes else 'bytes'}/{name}.jpg" for name in names}
    assert dataset.counts == dict.fromkeys((*classes, "bytes"), 1)
    assert [dataset.read(i) for i in range(len(dataset))] == [photo] * len(names)


def test_a_class_whose_name_is_no_text_is_refused_with_the_cure(tmp_path):
    root = fill(tmp_path, {"tea": 1})
    shutil.copytree(os.fsencode(root / "tea"), os.fsencode(root) + b"/caf\xe9")
    message = refusal(root)
    assert r"a class whose name is not UTF-8: 'caf\udce9'" in message
    assert f"Rename it, as 'café' if that is Latin-1 (convmv -f latin1 -t utf8 -r --notest {root})." in message
    known = FolderOptions(known_classes=(os.fsdecode(b"caf\xe9"), "tea"))  # of a model that was trained before
    assert list_photos(root, options=known).classes == known.known_classes


def test_a_photo_that_changes_or_vanishes_after_the_scan_is_never_replaced(tmp_path):
    root = fill(tmp_path, {"a": 2, "b": 1})
    dataset = scan(root)
    shutil.copy(root / "b" / "0.jpg", root / "a" / "0.jpg")
    with pytest.raises(DataError, match=f"{root}/a/0.jpg changed while it was being used"):
        dataset.read(0)
    (root / "a" / "1.jpg").unlink()
    with pytest.raises(Unreadable, match="does not exist"):
        dataset.read(1)
    assert dataset.read(2) == (root / "b" / "0.jpg").read_bytes()


def test_a_photo_that_changes_during_the_scan_is_named(tmp_path, monkeypatch):
    root = fill(tmp_path, {"a": 1, "b": 1})

    def meddle(*args, **kwargs):
        dataset = list_photos(*args, **kwargs)
        shutil.copy(root / "b" / "0.jpg", root / "a" / "0.jpg")
        return dataset

    monkeypatch.setattr("regraft.data.scan.list_photos", meddle)
    assert f"{root}/a/0.jpg changed" in refusal(root)


def test_subsets_keep_classes_and_order(tmp_path):
    dataset = scan(fill(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1}))
    part = dataset.subset([4, 1])
    assert part.paths == ("val/a/0.jpg", "train/a/1.jpg")
    assert (part.splits, part.labels.tolist()) == (("val", "train"), [0, 0])
    assert part.hashes == (dataset.hashes[4], dataset.hashes[1])
    assert part.counts == {"a": 2, "b": 0}
    check(part, tmp_path)
    empty = dataset.subset([])
    assert (len(empty), empty.labels.dtype, empty.counts) == (0, np.int64, {"a": 0, "b": 0})


def test_photos_can_be_moved_to_the_quarantine_later(tmp_path):
    root = fill(tmp_path, {"a": 2, "b": 2})
    (root / "b" / "0.jpg").write_text("no photo")
    dataset = scan(root)
    fewer = dataset.without({2: "blurred", 0: "dark"})
    assert fewer.paths == ("a/1.jpg",)
    assert list(reasons(fewer).items()) == [
        ("a/0.jpg", "dark"),
        ("b/0.jpg", "not an image of a known format"),
        ("b/1.jpg", "blurred"),
    ]
    assert fewer.num_found == dataset.num_found == 4
    assert dataset.without({}).paths == dataset.paths


def test_json_tells_what_was_found(tmp_path):
    root = fill(tmp_path, {"a": 1, "b": 2})
    (root / "b" / "1.jpg").write_text("no photo")
    assert scan(root).to_json() == {
        "classes": {"a": 1, "b": 1},
        "found": 3,
        "used": 2,
        "quarantined": [{"path": "b/1.jpg", "reason": "not an image of a known format"}],
        "notes": [],
    }


@pytest.mark.slow
def test_the_real_oddities_are_all_accounted_for(real_photos):
    root = real_photos / "badimages"
    dataset = scan(root)
    on_disk = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and not is_junk(path.name)}
    assert {*dataset.paths, *reasons(dataset)} == on_disk
    assert dataset.num_found == len(on_disk)
    assert not [path for path in reasons(dataset) if path.startswith("valid_odd")]
    assert all(
        dataset.classes[label] == path.split("/")[0] for path, label in zip(dataset.paths, dataset.labels, strict=True)
    )


def test_a_val_folder_without_photos_is_said_to_be_empty(tmp_path):
    draw_folder(tmp_path / "train", ("a", "b"), 2)
    (tmp_path / "val" / "a").mkdir(parents=True)
    assert any(note.startswith("val has no photos") for note in scan(tmp_path).notes)


def test_a_notebook_shows_classes_and_counts(tmp_path):
    draw_folder(tmp_path, ("a<b>", "c"), 2)
    page = scan(tmp_path)._repr_html_()
    assert "4 photos used of 4 found" in page
    assert "<td>a&lt;b&gt;</td><td>2</td>" in page
