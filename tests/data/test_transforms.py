"""Preprocessing gives the very numbers that the libraries give which the weights were trained with."""

import functools
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from regraft.data.decode import decode
from regraft.data.transforms import MAX_ASPECT, Preprocessing, photo_to_input, transform

SIZES = [(200, 150), (150, 200), (160, 160), (7, 5), (64, 64), (65, 63), (300, 41), (41, 300), (1, 37), (37, 1)]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@functools.cache
def photo(size: tuple[int, int]) -> Image.Image:
    rng = np.random.default_rng(size)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def preprocessing(
    height: int, width: int, crop_pct: float = 1.0, crop_mode: str = "center", **changes
) -> Preprocessing:
    resize = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    values = {"interpolation": "bilinear", "mean": MEAN, "std": STD, **changes}
    return Preprocessing(height, width, resize, crop_mode=crop_mode, **values)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"])
def test_bit_for_bit_as_timm_does(crop_mode, interpolation):
    from timm.data import create_transform

    for height, width in ((64, 64), (64, 40), (40, 64)):
        for crop_pct in (1.0, 0.9, 0.875):
            reference = create_transform(
                (3, height, width),
                is_training=False,
                use_prefetcher=True,
                interpolation=interpolation,
                crop_pct=crop_pct,
                crop_mode=crop_mode,
                mean=MEAN,
                std=STD,
            )
            ours = preprocessing(height, width, crop_pct, crop_mode, interpolation=interpolation)
            for size in SIZES:
                expected = reference(photo(size)).numpy().transpose(1, 2, 0)
                found = transform(photo(size), ours)
                assert found.dtype == expected.dtype == np.uint8
                assert np.array_equal(found, expected), (size, height, width, crop_pct)


@pytest.mark.parametrize("resize", [64, 73, 40])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_bit_for_bit_as_torchvision_does(resize, interpolation):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    reference = Compose([Resize(resize, InterpolationMode(interpolation)), CenterCrop(64)])
    ours = Preprocessing(64, 64, (resize, resize), interpolation, "center", MEAN, STD)
    for size in SIZES:
        assert np.array_equal(transform(photo(size), ours), np.asarray(reference(photo(size)))), size


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(65_500, 1), (1, 65_500), (20_000, 3), (1, 1)])
def test_lines_of_pixels_cost_no_more_than_photos(crop_mode, size, monkeypatch):
    """No picture on the way has more pixels than one as much longer than broad as is let through."""
    made, new = [], Image.Image._new
    monkeypatch.setattr(Image.Image, "_new", lambda *of: made.append(new(*of)) or made[-1])
    found = transform(Image.new("RGB", size, "red"), preprocessing(224, 224, 0.875, crop_mode, mean=(1.0, 0.0, 0.0)))
    assert made
    assert max(one.width * one.height for one in made) <= 256 * 256 * MAX_ASPECT
    assert found.shape == (224, 224, 3)
    assert (found == (255, 0, 0)).all()


def test_of_a_line_of_pixels_the_middle_is_seen():
    line = Image.new("RGB", (10_001, 1), "blue")
    line.paste("red", (4_998, 0, 5_003, 1))
    assert (transform(line, preprocessing(64, 64))[:, 20:44] == (255, 0, 0)).all()


def test_a_border_has_the_mean_colour():
    found = transform(Image.new("RGB", (100, 50), "white"), preprocessing(64, 64, crop_mode="border"))
    assert (found[:16] == (124, 116, 104)).all()
    assert (found[16:48] == 255).all()
    assert (found[48:] == (124, 116, 104)).all()


def test_a_file_becomes_what_its_pixels_become():
    file = io.BytesIO()
    photo((200, 150)).save(file, "PNG")
    ours = preprocessing(64, 40, 0.875)
    assert np.array_equal(photo_to_input(file.getvalue(), ours), transform(photo((200, 150)), ours))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_a_jpeg_at_reduced_scale_becomes_nearly_the_same(crop_mode):
    file = io.BytesIO()
    photo((12, 9)).resize((1200, 900), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    ours = preprocessing(64, 64, 0.875, crop_mode)
    assert decode(file.getvalue(), max(ours.resize)).size == (300, 225)
    difference = photo_to_input(file.getvalue(), ours) - transform(decode(file.getvalue()), ours).astype(int)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_preprocessing_survives_json(crop_mode):
    ours = preprocessing(224, 192, 0.9, crop_mode, interpolation="bicubic", std=(0.1, 1 / 3, 1e-9))
    assert Preprocessing.from_json(json.loads(json.dumps(ours.to_json()))) == ours


@pytest.mark.parametrize("change", [{"mean": None}, {"colour": "RGB"}])
def test_preprocessing_with_missing_or_unknown_values_is_refused(change):
    values = preprocessing(224, 224).to_json() | change
    with pytest.raises(TypeError):
        Preprocessing.from_json({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (
            preprocessing(224, 224, 0.875, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"),
            "bicubic resize to 256, center crop 224x224, mean 0.5, std 0.5",
        ),
        (
            preprocessing(64, 32, 0.5, "squash", std=(1.0,) * 3),
            "bilinear resize to 128x64, squash crop 64x32, mean 0.485/0.456/0.406, std 1",
        ),
    ],
)
def test_preprocessing_can_be_read_by_people(ours, words):
    assert str(ours) == words
