"""The orchard is drawn the same every time, is laid out as a data set, and colour alone tells no class."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from regraft.data.orchard.photos import CLASSES, SIZES, SPLITS, draw_orchard, draw_photo


def digests(root: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, hidden ones included."""
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture(scope="module")
def orchard(tmp_path_factory):
    """A small orchard of seed 0 and how often it reported a photo."""
    calls = []
    root = tmp_path_factory.mktemp("orchard")
    assert draw_orchard(root, train_per_class=3, val_per_class=2, on_photo=lambda: calls.append(1)) == root
    return root, len(calls)


def test_layout_and_counts(orchard):
    root, _ = orchard
    wanted = {
        f"{split}/{label}/{label}_{index:03d}.jpg"
        for split, count in (("train", 3), ("val", 2))
        for label in CLASSES
        for index in range(count)
    }
    assert set(digests(root)) == wanted


def test_on_photo_is_called_once_a_file(orchard):
    root, calls = orchard
    assert calls == len(digests(root)) == 10


def test_every_file_is_an_rgb_jpeg_of_a_photos_size(orchard):
    root, _ = orchard
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.size in SIZES


def test_a_photo_does_not_depend_on_how_many_are_drawn(orchard, tmp_path):
    fewer = digests(draw_orchard(tmp_path, train_per_class=1, val_per_class=2))
    whole = digests(orchard[0])
    assert len(fewer) == 6
    assert fewer == {name: whole[name] for name in fewer}


def test_drawing_again_replaces_what_is_there(orchard, tmp_path):
    draw_orchard(tmp_path, train_per_class=1, val_per_class=1)
    before, broken = digests(tmp_path), tmp_path / "val" / "kiwi" / "kiwi_000.jpg"
    broken.write_bytes(b"half a file")
    draw_orchard(tmp_path, train_per_class=1, val_per_class=1)
    assert digests(tmp_path) == before


def test_every_photo_is_another(orchard, tmp_path):
    other_seed = digests(draw_orchard(tmp_path, seed=1, train_per_class=1, val_per_class=1))
    drawn = [*digests(orchard[0]).values(), *other_seed.values()]
    assert len(set(drawn)) == len(drawn)


def test_draw_photo_is_a_pure_function():
    first = draw_photo("kiwi", (5, 1), (300, 200))
    draw_photo("watermelon", 3, (200, 300))
    assert first.shape == (200, 300, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, draw_photo("kiwi", (5, 1), (300, 200)))
    assert not np.array_equal(first, draw_photo("watermelon", (5, 1), (300, 200)))
    assert not np.array_equal(first, draw_photo("kiwi", (5, 2), (300, 200)))


def test_only_the_two_fruits_can_be_drawn():
    with pytest.raises(KeyError):
        draw_photo("durian", 0, (300, 200))


def test_an_interrupted_drawing_stops(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_orchard(tmp_path, on_photo=interrupt)
    assert len(digests(tmp_path)) < 20


def linear_accuracy(features: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
    """The best accuracy on val of logistic regression over a few strengths."""
    scores = []
    for strength in (1e-4, 1e-3, 1e-2, 1e-1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))
        scores.append(model.fit(features["train"], targets["train"]).score(features["val"], targets["val"]))
    return max(scores)


def thumbnail(photo: Image.Image, size: int) -> np.ndarray:
    """A photo resized to size x size as a vector (3 size^2,) of values in 0..1."""
    return np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR), np.float32).ravel() / 255


def test_mean_colour_does_not_give_the_class_away():
    features = {
        split: np.stack(
            [
                thumbnail(Image.fromarray(draw_photo(label, (0, k, c, i), (160, 120))), 1)
                for c, label in enumerate(CLASSES)
                for i in range(30)
            ]
        )
        for k, split in enumerate(SPLITS)
    }
    targets = dict.fromkeys(SPLITS, np.repeat([0, 1], 30))
    assert linear_accuracy(features, targets) < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_linear_model_of_pixels_stays_under_85_per_cent(seed, tmp_path):
    draw_orchard(tmp_path, seed=seed)
    features, targets = {}, {}
    for split in SPLITS:
        paths = sorted((tmp_path / split).rglob("*.jpg"))
        features[split] = np.stack([thumbnail(Image.open(path), 32) for path in paths])
        targets[split] = np.array([CLASSES.index(path.parent.name) for path in paths])
    assert 0.5 < linear_accuracy(features, targets) < 0.85
