"""Findings from hashes, looks, features and probabilities, on data where the truth is known. (Row D5.)"""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from faults.processes import record
from regraft.data import issues as findings
from regraft.data.decode import header
from regraft.data.image_stats import THUMB, ImageStats, look, measure
from regraft.data.issues import Issue, alike, copies, format_leak, groups_of_copies, label_issues, odd_looks, outliers
from regraft.data.scan import Dataset, list_photos, scan

NUM_DISTINCT = 1000


def pattern(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A soft pattern that no other seed gives, with fine grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, quality: int = 92, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, quality=quality)
    return buffer.getvalue()


def looks_of(photos: list[bytes]) -> ImageStats:
    rows = np.stack([measure(Image.open(io.BytesIO(data)).convert("RGB"), header(data)) for data in photos])
    names = ("width", "height", "format", "camera")
    whole = {name: rows[:, i].astype(np.int64) for i, name in enumerate(names)}
    parts = {name: rows[:, 4 + i] for i, name in enumerate(("brightness", "contrast", "sharpness"))}
    return ImageStats(**whole, **parts, thumbnails=rows[:, 7:].reshape(-1, THUMB, THUMB, 3))


def dataset_of(labels, splits=None, hashes=None, classes=("ant", "bee")) -> Dataset:
    n = len(labels)
    return Dataset(
        root=None,
        paths=tuple(f"{i}.jpg" for i in range(n)),
        labels=np.array(labels),
        classes=classes,
        splits=tuple(splits or [""] * n),
        hashes=tuple(hashes or map(str, range(n))),
    )


@pytest.fixture(scope="module")
def distinct():
    return [encoded(pattern(seed)) for seed in range(NUM_DISTINCT)]


def test_copies_are_found_whatever_their_compression_and_size_and_no_others(distinct, record_property):
    again = {
        "re-encoded": [encoded(pattern(i), quality=60) for i in range(17)],
        "resized": [encoded(pattern(i).resize((112, 84), Image.Resampling.LANCZOS)) for i in range(17, 34)],
        "as PNG": [encoded(Image.open(io.BytesIO(distinct[i])), form="PNG") for i in range(34, 50)],
    }
    photos = [*distinct, *(data for kind in again.values() for data in kind)]
    expected = {(i, NUM_DISTINCT + i) for i in range(50)}
    found = set(alike(looks_of(photos)))
    assert len(found & expected) >= 48
    assert found <= expected
    record(
        record_property, "D5", pairs=50, found=len(found & expected), false=len(found - expected), distinct=NUM_DISTINCT
    )


def test_equal_files_and_pairs_join_into_groups():
    dataset = dataset_of([0] * 7, hashes=["a", "b", "a", "c", "d", "b", "e"])
    assert groups_of_copies(dataset) == [[0, 2], [1, 5]]
    assert groups_of_copies(dataset, [(2, 3), (3, 4)]) == [[0, 2, 3, 4], [1, 5]]
    assert groups_of_copies(dataset_of([0, 1])) == []


@pytest.mark.parametrize(
    ("labels", "splits", "kind", "drop"),
    [
        ([0, 0, 0], ["", "", ""], "duplicates", (1, 2)),
        ([0, 0, 0], ["train", "train", "train"], "duplicates", (1, 2)),
        ([0, 0, 0], ["train", "val", "train"], "leaks", (0, 2)),
        ([0, 0, 0], ["val", "val", "test"], "leaks", (1, 2)),
        ([0, 1, 0], ["", "", ""], "conflicts", (0, 1, 2)),
        ([0, 1, 0], ["train", "val", "train"], "conflicts", (0, 1, 2)),
    ],
)
def test_copies_are_leaks_conflicts_or_duplicates(labels, splits, kind, drop):
    dataset = dataset_of(labels, splits, ["same"] * 3)
    (one,) = copies(dataset, groups_of_copies(dataset))
    assert (one.kind, one.photos, one.drop) == (kind, (0, 1, 2), drop)


def test_suspects_come_by_margin_and_never_where_nothing_is_known():
    labels = np.array([0, 0, 1, 1, 0])
    told = np.array([[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.4, 0.6], [np.nan, np.nan]])
    ranked = label_issues(labels, told)
    assert [(s.photo, s.suggested, s.probability) for s in ranked] == [(2, 0, 0.95), (1, 1, 0.7)]
    dataset = dataset_of(labels)
    (sure,) = findings.confident_label_issues(dataset, ranked)
    assert sure == Issue("suspects", (2,), "'bee', looks like 'ant' (95 %)", (2,))


def test_a_photo_unlike_all_others_is_an_outlier():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 32)) * 0.3 + rng.normal(size=(1, 32))
    assert outliers(x) == []
    x[17] = -5 * x.mean(axis=0)
    assert [one.photos for one in outliers(x)] == [(17,)]
    assert outliers(x[:5]) == []


def test_odd_looks_are_named():
    photos = [encoded(pattern(seed)) for seed in range(30)]
    photos.append(encoded(Image.new("RGB", (160, 120), "white")))
    photos.append(encoded(Image.fromarray((np.asarray(pattern(31)) // 8).astype(np.uint8))))
    photos.append(encoded(pattern(32, (20, 24))))
    photos.append(encoded(pattern(33, (900, 100))))
    photos.append(encoded(pattern(34).resize((8, 6)).resize((160, 120), Image.Resampling.BICUBIC)))
    found = {(one.kind, one.photos) for one in odd_looks(looks_of(photos))}
    assert found == {("blank", (30,)), ("dark", (31,)), ("tiny", (32,)), ("odd shapes", (33,)), ("blurred", (34,))}


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("format", [1, 2], "the file format"),
        ("camera", [5, 9], "the camera"),
        ("width", [100, 140], "the size in pixels"),
    ],
)
def test_a_class_that_the_file_alone_tells_is_a_leak(column, values, told):
    labels = [i % 2 for i in range(60)]
    stats = looks_of([encoded(pattern(0))] * 60)
    assert format_leak(dataset_of(labels), stats) == []
    given = replace(stats, **{column: np.array([values[label] for label in labels])})
    (one,) = format_leak(dataset_of(labels), given)
    assert one.kind == "format leak"
    assert one.text == f"{told} alone tells the class of 100 % (chance 50 %)"
    mixed = replace(stats, **{column: np.array([values[i // 2 % 2] for i in range(60)])})
    assert format_leak(dataset_of(labels), mixed) == []


def test_what_is_dropped_is_said_with_its_reason():
    found = [Issue("dark", (3,), "brightness 2 %", (3,)), Issue("leaks", (0, 1), "the same file", (0,))]
    assert findings.left_out(found, ["leaks"]) == {0: "leaks: the same file"}
    assert findings.left_out(found, findings.KINDS) == {3: "dark: brightness 2 %", 0: "leaks: the same file"}


def test_looks_are_measured_once_and_kept_by_content(tmp_path, empty_cache, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "photos" / name / f"{i}.jpg").write_bytes(encoded(pattern(ord(name) + i)))
    dataset = scan(tmp_path / "photos")
    first, failures = look(dataset)
    assert failures == {}
    assert list(first.width) == [160] * 6
    monkeypatch.setattr("regraft.data.image_stats.measure", None)
    again, _ = look(dataset)
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    some = first.without({0, 5})
    assert np.array_equal(some.thumbnails, first.thumbnails[1:5])


def test_a_photo_that_cannot_be_looked_at_is_told(tmp_path, empty_cache):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.jpg").write_bytes(encoded(pattern(ord(name))))
    (tmp_path / "b" / "cut.jpg").write_bytes(encoded(pattern(7))[:1500])
    stats, failures = look(list_photos(tmp_path))
    assert list(failures) == [2]
    assert failures[2].startswith("damaged")
    assert list(stats.width) == [160, 160, 0]
