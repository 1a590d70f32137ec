"""The orchard comes whole, is laid out as a data set, and colour alone tells no class."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conftest import TESTS
from regraft.core.errors import DataError
from regraft.data import orchard
from regraft.data.orchard import COUNTS, NUM_PHOTOS, unpack_orchard
from regraft.data.scan import scan
from regraft.data.splits import split

CLASSES = ("kiwi", "watermelon")
MAX_BYTES = 8_000_000


def digests(root: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, hidden ones included."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The whole orchard and how often it reported a photo."""
    calls = []
    root = tmp_path_factory.mktemp("orchard")
    assert unpack_orchard(root, on_photo=lambda: calls.append(1)) == root
    return root, len(calls)


def test_it_holds_each_photo_once_and_reports_each(unpacked):
    root, calls = unpacked
    found = digests(root)
    assert set(found) == {
        f"{split}/{label}/{label}_{index:03d}.jpg"
        for split, count in (("train", 120), ("val", 40))
        for label in CLASSES
        for index in range(count)
    }
    assert calls == len(found) == len(set(found.values())) == NUM_PHOTOS
    assert orchard.ARCHIVE.stat().st_size < MAX_BYTES


def test_it_is_a_data_set_without_a_fault(unpacked):
    dataset = scan(unpacked[0])
    assert (dataset.classes, dataset.counts) == (CLASSES, dict.fromkeys(CLASSES, 160))
    assert dataset.quarantine == ()
    splits = split(dataset)
    assert splits.given
    assert (len(splits.train), len(splits.val)) == (240, 80)


def test_every_file_is_an_upright_rgb_jpeg_of_a_photos_size(unpacked):
    for path in unpacked[0].rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert 300 <= min(image.size) <= max(image.size) <= 640
            assert not image.getexif()


def test_some_of_them_are_the_first_and_replace_what_is_there(unpacked, tmp_path):
    broken = tmp_path / "val" / "kiwi" / "kiwi_000.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half a file")
    unpack_orchard(tmp_path, train_per_class=3, val_per_class=2)
    whole, some = digests(unpacked[0]), digests(tmp_path)
    assert some == {name: whole[name] for name in some}
    assert [sum(name.startswith(part) for name in some) for part in COUNTS] == [6, 4]


@pytest.mark.parametrize("damage", ["absent", "changed"])
def test_a_damaged_archive_says_so_and_writes_nothing(damage, tmp_path, monkeypatch):
    archive = tmp_path / "orchard.zip"
    if damage == "changed":
        archive.write_bytes(orchard.ARCHIVE.read_bytes()[:-1])
    monkeypatch.setattr(orchard, "ARCHIVE", archive)
    with pytest.raises(DataError, match=r"orchard\.zip.*Install regraft anew"):
        unpack_orchard(tmp_path / "photos")
    assert not (tmp_path / "photos").exists()


def test_an_interrupted_unpacking_stops(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack_orchard(tmp_path, on_photo=interrupt)
    assert len(digests(tmp_path)) == 1


def test_the_drawing_code_still_draws_these_photos(unpacked):
    """One of them, but for what another Pillow or processor rounds otherwise."""
    sys.path.insert(0, str(TESTS.parent / "tools"))
    try:
        from orchard.photos import SIZES, draw_photo
    finally:
        sys.path.pop(0)
    with Image.open(unpacked[0] / "train" / "watermelon" / "watermelon_002.jpg") as image:
        stands = np.asarray(image, np.int16)
    source = (0, 0, 1, 2)
    size = SIZES[np.random.default_rng((*source, 1)).integers(len(SIZES))]
    drawn = draw_photo("watermelon", (*source, 0), size)
    assert drawn.shape == stands.shape
    assert np.abs(drawn - stands).mean() < 10
    assert np.array_equal(drawn, draw_photo("watermelon", (*source, 0), size))


def linear_accuracy(root: Path, side: int) -> float:
    """The best accuracy on val of logistic regression over a few strengths, on photos of side x side pixels."""
    features, targets = {}, {}
    for part in COUNTS:
        paths = sorted((root / part).rglob("*.jpg"))
        features[part] = np.stack([thumbnail(path, side) for path in paths])
        targets[part] = np.array([CLASSES.index(path.parent.name) for path in paths])
    scores = []
    for strength in (1e-4, 1e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        scores.append(model.fit(features["train"], targets["train"]).score(features["val"], targets["val"]))
    return max(scores)


def thumbnail(path: Path, side: int) -> np.ndarray:
    """A photo resized to side x side as a vector (3 side^2,) of values in 0..1."""
    with Image.open(path) as photo:
        photo.draft("RGB", (160, 120))
        return np.asarray(photo.resize((side, side), Image.Resampling.BILINEAR), np.float32).ravel() / 255


def test_mean_colour_does_not_give_the_class_away(unpacked):
    assert linear_accuracy(unpacked[0], 1) < 0.75


def test_a_linear_model_of_pixels_stays_under_85_per_cent(unpacked):
    assert 0.5 < linear_accuracy(unpacked[0], 32) < 0.85
