"""Pictures: every place holds a photo, colours tell right from wrong, texts do no harm."""

import numpy as np
import pytest
from PIL import Image

from conftest import draw_folder
from regraft.bundle.bundle import Prediction
from regraft.data.scan import scan
from regraft.reporting.plots import (
    CORRECT,
    GAP,
    SEAM,
    TILE,
    WRONG,
    dataset_grid,
    filter_grid,
    heat_overlay,
    photo_grid,
    prediction_grid,
    save_picture,
)


def colours(picture):
    return {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.asarray(picture).reshape(-1, 3)}


def test_grid_has_a_row_for_each_class_and_no_empty_place(photos):
    picture = dataset_grid(scan(photos), per_class=4)
    assert picture.width == 4 * (TILE + GAP) + GAP
    assert picture.height > 3 * TILE
    red_row = np.asarray(picture)[-(TILE + GAP) : -GAP]
    for column in range(4):
        tile = red_row[:, GAP + column * (TILE + GAP) :][:, :TILE]
        assert tile[..., 0].mean() > tile[..., 1].mean() + 50


def test_grid_shows_a_class_of_one_photo_and_says_what_it_leaves_out(tmp_path):
    folder = draw_folder(tmp_path, tuple(f"class {i}" for i in range(15)), 1)
    picture = dataset_grid(scan(folder), max_classes=12)
    assert picture.height < 13 * (TILE + 60)


def test_predictions_are_green_when_right_and_red_when_wrong(photos):
    path = photos / "red" / "red_0.jpg"
    right, wrong = Prediction("red", 0.9, {}), Prediction("blue", 0.6, {})
    assert CORRECT in colours(prediction_grid([(path, "red", right)]))
    assert WRONG not in colours(prediction_grid([(path, "red", right)]))
    assert WRONG in colours(prediction_grid([(path, "red", wrong)]))


def test_long_and_odd_names_fit(photos):
    path = photos / "red" / "red_0.jpg"
    name = "\x1b[2J" + "very long name " * 30 + "\u202e"
    picture = prediction_grid([(path, name, Prediction(name, 0.5, {}))])
    assert picture.width == TILE + 2 * GAP


def test_filters_stand_apart_and_each_has_full_contrast():
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    pixels = np.asarray(filter_grid(weight, tile=30))
    assert pixels.shape == (30, 5 * 30 + 4 * SEAM, 4)
    for number in range(5):
        start = number * (30 + SEAM)
        own = pixels[:, start : start + 30]
        assert (own[..., :3].min(), own[..., :3].max()) == (0, 255)
        assert (own[..., 3] == 255).all()
        assert (pixels[:, start + 30 : start + 30 + SEAM, 3] == 0).all()


def test_heat_glows_where_it_is_highest_and_the_rest_is_grey():
    heat = np.zeros((7, 7), np.float32)
    heat[1, 5], heat[5, 1] = 2, -3
    pixels = np.asarray(heat_overlay(np.full((70, 70, 3), (30, 160, 90), np.uint8), heat)).astype(int)
    red, _, blue = pixels[15, 55]
    assert red > blue + 100
    cold = pixels[45:, :35].reshape(-1, 3)
    assert (cold.max(axis=1) == cold.min(axis=1)).all()


def test_pictures_are_saved_as_png(tmp_path):
    path = save_picture(Image.new("RGB", (3, 2), "red"), tmp_path / "x.png")
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (3, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".regraft", "x.png"]


def test_photos_of_any_size_stand_side_by_side():
    photos = [Image.new(mode, size, "white") for mode, size in (("RGB", (300, 90)), ("L", (40, 80)), ("RGBA", (8, 8)))]
    bare = photo_grid(photos)
    assert bare.size == (3 * (TILE + GAP) + GAP, TILE + 2 * GAP)
    assert photo_grid(photos, columns=2).size == (2 * (TILE + GAP) + GAP, 2 * (TILE + GAP) + GAP)
    named = photo_grid(photos, ["a", "b", "c"], title="three")
    assert named.width == bare.width
    assert named.height > bare.height + 20
    with pytest.raises(ValueError, match="zip"):
        photo_grid(photos, ["a", "b"])
