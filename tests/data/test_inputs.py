"""A photo is the same photo in whatever form it is handed over; what is none is refused by name."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.test_decode import FORMATS, GREYS, STORED, encode, picture
from regraft.core.errors import DataError
from regraft.data.decode import MAX_PIXELS, Unreadable, decode
from regraft.data.inputs import content_of, to_input
from regraft.data.transforms import Preprocessing

SMALL = Preprocessing(32, 32, (32, 32), "bilinear", "squash", (0.5,) * 3, (0.5,) * 3)


def as_input(photo: object) -> np.ndarray | str:
    try:
        return to_input(photo, SMALL)
    except DataError as error:
        return str(error).partition(" cannot be used: ")[2].partition(". Expected")[0]


def forms_of(data: bytes, folder: Path) -> dict[str, object]:
    """One photo in every form that holds a whole file."""
    path = folder / "photo"
    path.write_bytes(data)
    at_the_end = io.BytesIO()
    at_the_end.write(data)
    return {
        "path": path,
        "str": str(path),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": at_the_end,
        "file": path.open("rb"),
    }


def assert_one_answer(data: bytes, folder: Path, name: str) -> None:
    forms = forms_of(data, folder)
    expected = as_input(forms["path"])
    for form, photo in forms.items():
        assert np.array_equal(as_input(photo), expected), (name, form)
        assert np.array_equal(as_input(photo), expected), (name, form, "again")
    forms["file"].close()
    try:
        opened = Image.open(io.BytesIO(data))
    except Exception:
        return
    assert np.array_equal(as_input(opened), expected), (name, "Image.open")
    assert np.array_equal(as_input(content_of(opened)) if not isinstance(expected, str) else expected, expected)


def modes() -> dict[str, bytes]:
    image = picture()
    found = {f"{mode} {form}": encode(image.convert(mode), form) for mode, form in (("1", "PNG"), ("L", "JPEG"))}
    found |= {f"{mode} TIFF": encode(image.convert(mode), "TIFF") for mode in ("CMYK", "LA", "P", "RGBA", "I", "F")}
    found |= {"CMYK JPEG": encode(image.convert("CMYK"), "JPEG"), "16 bits": encode(Image.fromarray(GREYS), "PNG")}
    found |= {"P PNG": encode(image.convert("P"), "PNG", transparency=bytes(range(256)))}
    found |= {form: encode(image, form, **options) for form, options in FORMATS.items()}
    found |= {f"cut {form}": encode(image, form)[:-90] for form in ("JPEG", "PNG", "TIFF", "WEBP")}
    return found | {"large": encode(picture(640, 480), "JPEG"), "none": b"<html></html>", "nothing": b""}


@pytest.mark.parametrize("name", modes())
def test_a_photo_in_any_form_is_answered_alike(tmp_path, name):
    assert_one_answer(modes()[name], tmp_path, name)


@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_in_memory_is_turned_as_its_file_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(STORED[orientation](np.asarray(picture()))), "PNG", exif=exif)
    assert_one_answer(data, tmp_path, str(orientation))
    loaded = Image.open(io.BytesIO(data))
    loaded.load()
    assert np.array_equal(as_input(loaded), as_input(data))
    assert np.array_equal(np.asarray(decode(content_of(loaded))), np.asarray(picture()))


@pytest.mark.slow
def test_real_oddities_are_answered_alike_in_every_form(real_photos, tmp_path):
    paths = sorted((real_photos / "badimages" / "valid_odd").iterdir())
    assert len(paths) > 90
    for path in paths:
        assert_one_answer(path.read_bytes(), tmp_path, path.name)


def test_a_file_is_left_where_it_stood(tmp_path):
    (tmp_path / "photo").write_bytes(encode(picture(), "PNG"))
    with open(tmp_path / "photo", "rb") as file:
        file.seek(7)
        as_input(file)
        assert file.tell() == 7
        opened = Image.open(file)
        as_input(opened)
        assert np.array_equal(np.asarray(opened), np.asarray(picture()))


def test_what_can_only_be_read_on_is_read(tmp_path):
    data = encode(picture(), "PNG")
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert np.array_equal(as_input(pipe), as_input(data))


rgb = np.asarray(picture())
KINDS = {
    "uint8": (rgb, rgb),
    "one grey channel": (rgb[..., :1], np.repeat(rgb[..., :1], 3, 2)),
    "grey": (rgb[..., 0], np.repeat(rgb[..., :1], 3, 2)),
    "not contiguous": (rgb[::-1, ::-1], rgb[::-1, ::-1]),
    "opaque": (np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)]), rgb),
    "transparent": (np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)]), np.full_like(rgb, 255)),
    "bool": (rgb[..., 0] > 99, np.repeat((rgb[..., :1] > 99) * np.uint8(255), 3, 2)),
    "16 bits": (rgb[..., 0].astype(np.uint16) * 257, np.repeat(rgb[..., :1], 3, 2)),
    "float32": (rgb.astype(np.float32) / 255, rgb),
    "float16": ((rgb / 255).astype(np.float16), rgb),
    "float64 grey": (rgb[..., 0] / 255, np.repeat(rgb[..., :1], 3, 2)),
}


@pytest.mark.parametrize("name", KINDS)
def test_arrays_of_sure_meaning_are_pictures(name):
    given_, expected = KINDS[name]
    assert np.array_equal(np.asarray(decode(content_of(given_))), expected)
    assert np.array_equal(as_input(given_), as_input(encode(Image.fromarray(expected), "PNG")))


class Tensor:
    """What regraft asks of a torch tensor, without torch. values: as torch would hold them."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def float(self) -> "Tensor":
        return Tensor(self.values.astype(np.float32))

    def is_floating_point(self) -> bool:
        return self.values.dtype.kind == "f"

    def numpy(self) -> np.ndarray:
        assert self.values.dtype != np.float16, "as for bfloat16, which numpy does not have"
        return self.values


Tensor.__module__ = "torch"


def test_tensors_are_pictures_channels_first():
    first = np.moveaxis(rgb, -1, 0)
    for values in (first, first / 255, (first / 255).astype(np.float16)):
        assert np.array_equal(np.asarray(decode(content_of(Tensor(values)))), rgb)
    assert np.array_equal(as_input(Tensor(rgb[..., 0])), as_input(rgb[..., 0]))
    assert np.array_equal(as_input(Tensor(first[:1])), as_input(rgb[..., 0]))


class Coroutine:
    async def read(self, size: int = -1) -> bytes:
        return b""


def closed() -> io.BytesIO:
    file = io.BytesIO(b"a")
    file.close()
    return file


NONE = {
    "a row of a table": (np.zeros(64, np.uint8), "pixels of shape (64,), a row of a table"),
    "several photos": (np.zeros((2, 8, 8, 3), np.uint8), "pixels of shape (2, 8, 8, 3), several photos"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "pixels of shape (3, 8, 8), channels first"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), "pixels of shape (8, 8, 2);"),
    "nothing in it": (np.zeros((0, 8, 3), np.uint8), "pixels of shape (0, 8, 3);"),
    "floats of 0 to 255": (rgb.astype(np.float32), "floats from 0 to 255; expected 0..1"),
    "normalised": (rgb / 127.5 - 1, "floats from -1 to 1; expected 0..1"),
    "not a number": (np.full((4, 4), np.nan), "floats from nan to nan"),
    "whole numbers": (rgb.astype(np.int64), "pixels of type int64; expected uint8"),
    "16-bit colours": (rgb.astype(np.uint16), "pixels of type uint16; expected uint8"),
    "objects": (np.array([[None, 1]]), "pixels of type object"),
    "a tensor, channels last": (Tensor(rgb), "a tensor of shape (32, 48, 3); expected (3, H, W), channels first"),
    "a list": ([[1, 2], [3, 4]], "list is no photo"),
    "nothing": (None, "NoneType is no photo"),
    "a number": (5, "int is no photo"),
    "empty bytes": (b"", "the file is empty"),
    "an empty file": (io.BytesIO(), "the file is empty"),
    "a text file": (io.StringIO("a"), 'a file opened as text; open it with "rb"'),
    "an upload that must be awaited": (Coroutine(), "Coroutine cannot be read: read() gave coroutine, not bytes"),
    "a closed file": (closed(), "BytesIO cannot be read: I/O operation on closed file"),
    "an address": ("https://example.org/cat.jpg", "an address, not a file"),
    "an odd name": ("a\0b", "the file does not exist"),
}


@pytest.mark.filterwarnings("ignore:coroutine 'Coroutine.read' was never awaited")
@pytest.mark.parametrize("name", NONE)
def test_what_is_no_photo_is_refused_by_name(name):
    photo, reason = NONE[name]
    said = as_input(photo)
    assert isinstance(said, str), name
    assert said.startswith(reason)
    with pytest.raises(DataError, match=r"^(photo 3|https|a.b)"):
        content_of(photo, "photo 3")


def test_arrays_of_other_libraries_are_named_with_the_cure():
    class Array:
        def __array__(self) -> np.ndarray:
            return rgb

    assert as_input(Array()) == "Array is no photo; numpy.asarray(...) makes an array of it"


def test_a_closed_picture_and_one_that_is_too_large_are_refused():
    opened = Image.open(io.BytesIO(encode(picture(), "PNG")))
    opened.close()
    assert isinstance(as_input(opened), str)
    line = np.broadcast_to(np.zeros(1, np.uint8), (MAX_PIXELS // 2**10 + 1, 2**10))
    assert "at most 134 megapixels are read" in as_input(line)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text(max_size=20), st.integers(), st.lists(st.integers(), max_size=3)))
def test_anything_at_all_is_answered_by_pixels_or_a_data_error(photo):
    assert isinstance(as_input(photo), str)


def test_a_picture_of_the_users_is_not_changed():
    image = picture().convert("RGBA")
    before = image.tobytes()
    as_input(image)
    content_of(image)
    assert (image.mode, image.tobytes()) == ("RGBA", before)


def test_unreadable_is_the_cause_that_servers_look_for():
    with pytest.raises(DataError) as caught:
        to_input(b"<html>", SMALL)
    assert isinstance(caught.value.__cause__, Unreadable)
    assert str(caught.value).startswith("The photo cannot be used: not an image of a known format. Expected a path")
