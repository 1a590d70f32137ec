"""Greys of 12 bits in files of 16 are not nearly black: a data set's own range is found, kept and used everywhere."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import draw_folder
from data.test_decode import encode
from data.test_inputs import SMALL
from regraft.core.progress import Progress
from regraft.data.decode import decode, grey_maximum
from regraft.data.grey_range import BITS, HEAD_BYTES, grey_bits, may_be_16_bit
from regraft.data.inputs import to_input
from regraft.data.scan import list_photos
from regraft.data.transforms import Preprocessing, photo_to_input

RAMP = np.linspace(0, 4095, 48 * 32).reshape(32, 48).astype(np.uint16)


def pgm(values: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


FORMS = {
    "PNG": lambda values: encode(Image.fromarray(values), "PNG"),
    "TIFF": lambda values: encode(Image.fromarray(values), "TIFF"),
    "TIFF, big end first": lambda values: encode(Image.fromarray(values.astype(">u2")), "TIFF"),
    "JPEG 2000": lambda values: encode(Image.fromarray(values), "JPEG2000"),
    "PGM": pgm,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_value_is_found_and_becomes_white(form):
    data = FORMS[form](RAMP)
    assert may_be_16_bit(data[:HEAD_BYTES])
    assert grey_maximum(data) == 4095
    dark, right = (np.asarray(decode(data, grey_bits=bits))[..., 0] for bits in (None, 12))
    assert (dark.max(), right.max()) == (16, 255)
    assert np.abs(right.astype(int) - RAMP / 4095 * 255).max() <= 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_other_photos_have_no_such_value(form):
    data = encode(Image.new("L", (4, 4), 9), form)
    assert grey_maximum(data) is None
    assert may_be_16_bit(data[:HEAD_BYTES]) is (form == "TIFF")


def folder_with(tmp_path, largest: list[int]):
    folder = draw_folder(tmp_path / "photos", ("a", "b"), 2)
    for number, value in enumerate(largest):
        (folder / "a" / f"{number}.png").write_bytes(FORMS["PNG"](np.minimum(RAMP, value).clip(0, value)))
    return list_photos(folder)


@pytest.mark.parametrize(
    ("largest", "bits"),
    [([], None), ([200], 8), ([900, 1023], 10), ([300, 1024], 12), ([4095], 12)],
)
def test_all_photos_of_a_set_share_the_fewest_bits_that_hold_them(tmp_path, capsys, largest, bits):
    assert grey_bits(folder_with(tmp_path, largest), Progress()) == bits
    assert capsys.readouterr().err.count("is white") == (bits is not None)


def test_full_range_stays_as_it_is(tmp_path):
    dataset = folder_with(tmp_path, [900])
    (dataset.root / "b" / "full.png").write_bytes(FORMS["PNG"](RAMP * 16))
    assert grey_bits(list_photos(dataset.root)) is None


def test_the_range_travels_with_the_preprocessing_and_is_absent_without():
    assert "grey_bits" not in SMALL.to_json()
    for bits in BITS:
        with_bits = replace(SMALL, grey_bits=bits)
        assert Preprocessing.from_json(with_bits.to_json()) == with_bits
        assert with_bits.scaled(64).grey_bits == bits
        assert f"16-bit greys of {bits} bits" in str(with_bits)
    for wrong in (0, 16, "12"):
        with pytest.raises(ValueError, match="16-bit greys that use"):
            replace(SMALL, grey_bits=wrong)


def test_a_photo_in_memory_is_scaled_as_its_file_is():
    data, twelve = FORMS["PNG"](RAMP), replace(SMALL, grey_bits=12)
    expected = photo_to_input(data, twelve)
    assert expected.max() > 240 > 20 > photo_to_input(data, SMALL).max()
    for photo in (data, Image.open(io.BytesIO(data)), Image.fromarray(RAMP), RAMP):
        assert np.array_equal(to_input(photo, twelve), expected)
