"""No switch of the process changes what is decoded, and none of the user's is changed."""

import io
import locale
import logging
import os
import pickle
import re
import signal
import struct
import threading
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from data.test_decode import chunk, encode, exif_block, picture, png, refusal
from regraft.core.errors import DataError
from regraft.data.decode import Unreadable, decode, header
from regraft.data.inputs import to_input
from regraft.data.memory_budget import DECODING
from regraft.data.pillow_settings import Switch, _state, private_settings
from regraft.data.transforms import Preprocessing

SMALL = Preprocessing(32, 32, (32, 32), "bilinear", "squash", (0.5,) * 3, (0.5,) * 3)
ODD_EXIF = b"Exif\0\0II*\0\xff\xff\xff\xff"


def files() -> dict[str, bytes]:
    """Whole, cut and odd ones: each is answered in a way that some switch could change."""
    frames = [Image.new("P", (8, 4), n) for n in range(3)]
    greys = Image.fromarray(np.array([[np.nan, 1.0, 3e38]], np.float32))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 * 2**20)))
    whole = {form: encode(picture(160, 120), form) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")}
    return {
        **whole,
        **{f"cut {form}": data[: len(data) * 2 // 3] for form, data in whole.items()},
        "deflated TIFF, cut": encode(picture(), "TIFF", compression="tiff_adobe_deflate")[:-200],
        "animation": encode(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=0),
        "odd EXIF": encode(picture(), "JPEG", exif=ODD_EXIF),
        "long text": png(1, 1, 8, 0, b"\0\0", text),
        "wide greys": encode(greys, "TIFF"),
        "greys": encode(Image.fromarray(np.array([[-3e38, 0, 3e38]], np.float32)), "TIFF"),
        "a bad sum": whole["PNG"][:30] + b"\0" + whole["PNG"][31:],
    }


def outcome(data: bytes) -> bytes | str:
    try:
        return decode(data).tobytes()
    except Unreadable as error:
        return str(error)


FILES = files()
EXPECTED = {name: outcome(data) for name, data in FILES.items()}
SWITCHES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "truncated": lambda m: m.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "no limit": lambda m: m.setattr(Image, "MAX_IMAGE_PIXELS", None),
    "a small limit": lambda m: m.setattr(Image, "MAX_IMAGE_PIXELS", 4),
    "long text": lambda m: m.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**30),
    "short text": lambda m: m.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1),
    "GIF as RGB": lambda m: m.setattr(GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS),
    "libtiff": lambda m: m.setattr(TiffImagePlugin, "READ_LIBTIFF", True),
    "warnings are errors": lambda _: warnings.simplefilter("error"),
    "numpy's errors": lambda _: np.seterr(all="raise"),
    "numpy's printing": lambda _: np.set_printoptions(precision=1, threshold=2),
    "locale": lambda _: locale.setlocale(locale.LC_ALL, "C"),
}


@pytest.fixture
def unharmed():
    """Puts back what a switch changes."""
    errors, printing, place = np.geterr(), np.get_printoptions(), locale.setlocale(locale.LC_ALL)
    with warnings.catch_warnings():
        yield
    np.seterr(**errors)
    np.set_printoptions(**printing)
    locale.setlocale(locale.LC_ALL, place)


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_of_the_process_changes_nothing_that_is_decoded(monkeypatch, unharmed, name):
    SWITCHES[name](monkeypatch)
    assert {file: outcome(data) for file, data in FILES.items()} == EXPECTED


def test_the_files_above_are_answered_in_every_way():
    refused = {name for name, found in EXPECTED.items() if isinstance(found, str)}
    assert {"cut JPEG", "cut PNG", "deflated TIFF, cut", "long text", "wide greys", "a bad sum"} <= refused
    assert {"JPEG", "animation", "odd EXIF", "greys"} <= EXPECTED.keys() - refused


def test_switches_that_are_set_all_the_time_by_another_thread_change_nothing():
    """And that thread finds what it set, while photos are decoded beside it."""
    stop, wrong = threading.Event(), []

    def turn() -> None:
        while not stop.is_set():
            for value in (True, False):
                ImageFile.LOAD_TRUNCATED_IMAGES = value
                Image.MAX_IMAGE_PIXELS = 5 if value else None
                if ImageFile.LOAD_TRUNCATED_IMAGES is not value or (Image.MAX_IMAGE_PIXELS is None) is value:
                    wrong.append(value)

    before = Image.MAX_IMAGE_PIXELS
    other = threading.Thread(target=turn)
    other.start()
    try:
        for _ in range(20):
            for name in ("cut JPEG", "cut PNG", "JPEG", "PNG", "cut TIFF"):
                assert outcome(FILES[name]) == EXPECTED[name]
    finally:
        stop.set()
        other.join()
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, before
    assert not wrong


def test_pillow_obeys_the_user_as_before(monkeypatch):
    outcome(FILES["JPEG"])
    cut, large = FILES["cut JPEG"], FILES["PNG"]
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(cut)).load()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Image.open(io.BytesIO(cut)).load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(large))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Image.open(io.BytesIO(large)).size == (160, 120)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 160 * 120 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(large))


def test_a_cut_photo_in_memory_is_refused_whatever_the_switch(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("cut JPEG", "cut PNG"):
        with pytest.raises(DataError, match="cannot be used: damaged"):
            to_input(Image.open(io.BytesIO(FILES[name])), SMALL)


def odd_tiff(num_tags: int) -> bytes:
    """A deflated picture whose directory has many tags that no library knows."""
    data = encode(Image.new("L", (64, 64), 99), "TIFF", compression="tiff_adobe_deflate")
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = data[start + 2 : start + 2 + 12 * count]
    more = b"".join(struct.pack("<HHII", 40_000 + n, 99, 1, 0) for n in range(num_tags))
    directory = struct.pack("<H", count + num_tags) + entries + more + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


def test_what_decoders_say_of_odd_files_is_counted_and_goes_nowhere_else(capfd, caplog, recwarn):
    caplog.set_level(logging.INFO, "regraft.decode")
    data = odd_tiff(500)
    assert np.asarray(decode(data)).mean() == 99
    decode(FILES["odd EXIF"])
    header(FILES["odd EXIF"])
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert len(caplog.records) == 3
    assert all("complained" in record.message and len(record.message) < 300 for record in caplog.records)
    assert refusal(odd_tiff(2000)).endswith("tags in one directory of a TIFF; at most 1000 are read")


def test_no_filter_of_warnings_is_left_behind_and_a_copy_of_it_matches_nothing():
    before = list(warnings.filters)
    seen = []
    with private_settings(9):
        seen += [warnings.filters[0]]
        with private_settings(9):
            assert len(warnings.filters) == len(before) + 1
        assert warnings.filters[0] is seen[0]
    assert warnings.filters == before
    assert re.match(seen[0][1].pattern, "any warning") is None
    assert pickle.loads(pickle.dumps(seen[0]))[0] == "ignore"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_that_is_forked_while_others_decode_decodes_too():
    with _state.lock, DECODING.take(DECODING.total):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(outcome(FILES["PNG"]) != EXPECTED["PNG"])
    assert os.waitpid(child, 0)[1] == 0


def test_a_switch_stands_for_its_value():
    switch = Switch(lambda most: most, None)
    assert (2 * switch, switch > 5, switch < 5, bool(switch), str(switch)) == (float("inf"), True, False, False, "None")
    switch.users = 7
    assert (2 * switch, switch > 5, switch < 5, switch == 7, hash(switch), b"a" * switch) == (
        14,
        True,
        False,
        True,
        hash(7),
        b"a" * 7,
    )


def test_a_switch_that_was_set_behind_the_module_is_taken_again():
    vars(ImageFile)["LOAD_TRUNCATED_IMAGES"] = True  # as a reload of the module does
    try:
        assert outcome(FILES["cut JPEG"]) == EXPECTED["cut JPEG"]
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def test_an_exif_block_that_turns_is_obeyed_whatever_else_is_odd_in_it():
    exif = exif_block((0x0112, 3, 1, b"\6\0\0\0"), (0x9999, 4, 2**31 - 1, b"abcd"))
    assert decode(encode(picture(), "JPEG", exif=exif)).size == (32, 48)
