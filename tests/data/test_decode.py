"""A photo is decoded whole and upright, or refused with a reason: never something in between."""

import base64
import io
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regraft.data import decode as module
from regraft.data.decode import Unreadable, decode, to_rgb
from regraft.data.sources import read_bytes

LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}
FORMATS = {"JPEG": {"quality": 95}, **LOSSLESS, "GIF": {}, "BMP": {}}


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Smooth, without any symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return Image.fromarray((np.stack([x, y, x * (1 - y)], axis=2) * 255).astype(np.uint8))


def encode(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def refusal(data: bytes) -> str:
    with pytest.raises(Unreadable) as caught:
        decode(data)
    return str(caught.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of `(tag, type, count, four bytes)`, little endian."""
    packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


# What a file stores, by EXIF orientation, of an upright picture `a`: the standard's "0th row is visual ... side".
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: np.rot90(a)[:, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_gives_the_same_upright_picture(form, orientation):
    upright = np.asarray(picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(STORED[orientation](upright)), form, exif=exif, **LOSSLESS[form])
    assert (pixels(data) == upright).all()


@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_is_upright_at_every_scale(orientation):
    upright = np.asarray(picture(480, 320))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(STORED[orientation](upright)), "JPEG", exif=exif, quality=95)
    for at_least in (None, 40):
        image = decode(data, at_least)
        assert image.size == ((480, 320) if at_least is None else (120, 80))
        expected = np.asarray(picture(*image.size)).astype(int)
        assert np.abs(np.asarray(image) - expected).mean() < 3


@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0garbage", False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
        (exif_block((0x0112, 3, 1, b"\x63\0\0\0")), False),
        (exif_block((0x0112, 2, 4, b"abc\0")), False),
        (exif_block((0x0112, 3, 1, b"\6\0\0\0")), True),
        (exif_block((0x0100, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\6\0\0\0")), True),
    ],
)
def test_damaged_or_odd_exif_does_not_cost_the_photo(exif, turned):
    image = decode(encode(picture(), "JPEG", exif=exif))
    assert image.size == ((32, 48) if turned else (48, 32))


@pytest.mark.parametrize("form", FORMATS)
def test_common_formats_come_back(form):
    found = pixels(encode(picture(), form, **FORMATS[form]))
    assert np.abs(found - np.asarray(picture())).max() <= {"JPEG": 12, "GIF": 60}.get(form, 0)


MODES = {"PNG": "1 P L", "TIFF": "1 P L CMYK", "JPEG": "L CMYK", "GIF": "1 P L", "BMP": "1 P L"}  # that a format keeps


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes.split()])
def test_colour_modes_come_back(form, mode):
    image = picture().convert(mode)
    found = pixels(encode(image, form, **({"quality": 98} if form == "JPEG" else {})))
    assert np.abs(found - np.asarray(image.convert("RGB"))).max() <= (12 if form == "JPEG" else 0)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("channels", [4, 2], ids=["RGBA", "LA"])
def test_transparency_shows_white_paper(form, channels):
    black = np.zeros((4, 8, channels), np.uint8)
    black[:, 4:, -1] = 128
    found = pixels(encode(Image.fromarray(black), form, **LOSSLESS[form]))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 127).all()


@pytest.mark.parametrize("form", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(form):
    image = Image.new("P", (8, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.paste(0, (0, 0, 4, 4))
    found = pixels(encode(image, form, transparency=0))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == (10, 200, 30)).all()


def test_palette_entries_may_be_half_transparent():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((0, 0), 0)
    assert pixels(encode(image, "PNG", transparency=bytes([0, 128]))).tolist() == [[[255] * 3, [127] * 3]]


@pytest.mark.parametrize(("mode", "ink", "transparent"), [("L", 7, 7), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 0, 0)])
def test_a_transparent_colour_is_white(mode, ink, transparent):
    assert (pixels(encode(Image.new(mode, (3, 2), ink), "PNG", transparency=transparent)) == 255).all()


GREYS = np.array([[257, 32768, 65278]], np.uint16)


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(GREYS), "PNG"),
        encode(Image.fromarray(GREYS), "TIFF"),
        encode(Image.fromarray(GREYS.astype(">u2")), "TIFF"),
        encode(Image.fromarray(GREYS.astype(np.int32)), "TIFF"),
        b"P5 3 1 65535\n" + GREYS.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-int32", "pgm"],
)
def test_16_bit_greys_are_scaled(data):
    assert pixels(data)[0, :, 0].tolist() == [1, 128, 254]


def test_16_bit_colours_are_scaled():
    row = np.array([0, 32768, 65535], ">u2").tobytes()
    assert pixels(png(1, 1, 16, 2, b"\0" + row)).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("values", [[0, 0.5, 1], [-1, 0, 1], [1e6, 2e6, 3e6]])
def test_float_greys_are_scaled_to_what_they_hold(values):
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() in ([0, 127, 255], [0, 128, 255])


def test_32_bit_greys_are_scaled_to_what_they_hold():
    data = encode(Image.fromarray(np.array([[-10, 0, 10]], np.int32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_greys_that_are_not_finite_are_refused(value):
    data = encode(Image.fromarray(np.array([[0, value]], np.float32)), "TIFF")
    assert refusal(data) == "damaged: grey values that are not finite"


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "I;16B"],
)
def test_every_mode_becomes_rgb(mode):
    image = to_rgb(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(form):
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **LOSSLESS.get(form, {}))
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (pixels(data) == (255, 0, 0)).all()


def page_of_html() -> bytes:
    return b"<!doctype html><html><body>404 Not Found</body></html>"


def zipped_photo() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("photo.png", encode(picture(), "PNG"))
    return file.getvalue()


UNKNOWN = "not an image of a known format"
HEIC = "a HEIC photo; to read these: pip install 'regraft[heic]'"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (page_of_html(), UNKNOWN),
        (zipped_photo(), UNKNOWN),
        (pickle.dumps({"weights": [1.0]}), UNKNOWN),
        (b"\x7fELF\2\1\1" + bytes(60), UNKNOWN),
        (b"\xff", UNKNOWN),
        (b"%PDF-1.7\n", UNKNOWN),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNKNOWN),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n",
            "a Git LFS pointer, not the photo; run: git lfs pull",
        ),
    ],
    ids=["html", "zip", "pickle", "elf", "byte", "pdf", "eps", "svg", "lfs"],
)
def test_what_is_no_photo_is_refused_with_a_helpful_reason(data, reason):
    assert refusal(data) == reason


HALF_RED_HALF_BLUE = (  # 48 x 32, as HEIC
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=I"
    "V*mgE07O6l0RRC200001p#T8@00000002_}001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002}"
    "X>f9I0002pX>en20001XXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDDnbDP"
    "18@KU0|1Z!00RI30{|YNAb|yz>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bbz=;3=025<xY;ta6Y<K_x01W^JfB*mh6lrsCWdHyG"
    "00000KmY&$KmY&$C}V74Z~y=RFaQ7m0RR91AOHXW0ssI1@Bjb+0{{R2-~a#s0ssI25O8UDX#fBK00RgJ2mk;87-?{AVE_OC00000"
    "0RRC7fdT^sga7~lTWw@vbN~PVPbdMe3E<;|nwJ0dumAjRc@G*a#_yl;<K5!*|L_=)-zoY1DZAIgPOIge{SX6pJly(vF?B%-kT=Ev"
    "ay*a4tdoQSMevJ_eWRdr<yA4@"
)


def test_heic_photos_are_read_with_their_extra():
    data = base64.b85decode(HALF_RED_HALF_BLUE)
    found = pixels(data)
    assert found.shape == (32, 48, 3)
    assert np.abs(found[:, 4:20] - (200, 40, 40)).mean() < 12
    assert np.abs(found[:, 28:44] - (40, 60, 200)).mean() < 12
    assert refusal(data[:300]).startswith("damaged")
    assert refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_photos_without_their_extra_are_refused_with_its_name(monkeypatch, brand):
    monkeypatch.setattr("regraft.data.decode._can_read_heic", lambda: False)
    assert refusal(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(99)) == HEIC


@pytest.mark.parametrize("form", FORMATS)
def test_half_a_photo_is_refused(form):
    data = encode(picture(), form, **FORMATS[form])
    assert refusal(data[: len(data) // 2]).startswith(("damaged: ", UNKNOWN))


@pytest.mark.parametrize("form", FORMATS)
def test_a_photo_cut_anywhere_is_refused_or_whole(form):
    data = encode(picture(), form, **FORMATS[form])
    whole = pixels(data)
    num_refused = 0
    for cut in np.linspace(1, len(data) - 1, 16).astype(int):
        try:
            found = pixels(data[:cut])
        except Unreadable:
            num_refused += 1
        else:
            assert (found == whole).all(), cut
    assert num_refused >= 14


@pytest.mark.parametrize("form", FORMATS)
def test_flipped_bits_are_survived(form):
    data = encode(picture(), form, **FORMATS[form])
    rng = random.Random(0)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            outcomes.add(decode(bytes(damaged)).mode)
        except Unreadable as error:
            outcomes.add(str(error))
    assert "RGB" in outcomes
    assert len(outcomes) > 1


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (png(50_000, 50_000, 1, 0, b""), "megapixels"),
        (png(12_000, 12_000, 8, 2, b""), "12000x12000 pixels; at most 134 megapixels are read"),
        (jpeg_that_claims(65_500, 65_500), "megapixels"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0," + bytes(4) + b"\xff\xff\xff\xff\0\x08\0;", "megapixels"),
        (png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))), "too large"),
    ],
    ids=["png", "png-144", "jpeg", "gif", "text"],
)
def test_bombs_are_refused_from_the_header(bomb, reason):
    start = time.thread_time()
    assert reason in refusal(bomb)
    assert time.thread_time() - start < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1600, 1200), (900, 1600), (512, 512)])
def test_a_reduced_scale_is_never_too_small_and_looks_the_same(mode, size):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 64, size[0] // 64, 3), dtype=np.uint8))
    data = encode(coarse.resize(size, Image.Resampling.BICUBIC).convert(mode), "JPEG", quality=90)
    whole = decode(data)
    for at_least in (32, 100, 224, 400, 2000):
        image = decode(data, at_least)
        assert image.size == size or min(image.size) >= 2 * at_least
        small = (at_least, at_least)
        difference = np.asarray(image.resize(small)).astype(int) - np.asarray(whole.resize(small))
        assert np.abs(difference).mean() < 3
    assert decode(data, 32).width < size[0]


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_only_jpegs_are_reduced(form):
    data = encode(picture(640, 480), form, **FORMATS[form])
    assert decode(data, 32).size == (640, 480)


def within(seconds: float, function: Callable[[], object]) -> object:
    """The error that a function raises, or its result. Fails when it hangs, and does not wait for it then."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as error:
            outcome.append(error)

    threading.Thread(target=run, daemon=True).start()
    deadline = time.monotonic() + seconds
    while not outcome and time.monotonic() < deadline:
        time.sleep(0.005)
    assert outcome, "it hangs"
    return outcome[0]


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    Path("folder.jpg").mkdir()
    Path("link.jpg").symlink_to("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        for name in ("pipe.jpg", "folder.jpg", "link.jpg", "socket.jpg", "/dev/zero"):
            outcome = within(5, lambda name=name: read_bytes(Path(name)))
            assert isinstance(outcome, Unreadable), name
            assert str(outcome) == "not a regular file"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.jpg", "the file does not exist"),
        ("file/below.jpg", "the file does not exist"),
        ("loop.jpg", "the file does not exist"),
        ("x" * 300, "cannot be read: file name too long"),
        ("empty.jpg", "the file is empty"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(Unreadable, match=reason):
        read_bytes(tmp_path / name)


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    (tmp_path / "largest").write_bytes(bytes(2**20))
    (tmp_path / "larger").write_bytes(bytes(2**20 + 1))
    assert len(read_bytes(tmp_path / "largest")) == 2**20
    with pytest.raises(Unreadable, match="larger than 1 MB"):
        read_bytes(tmp_path / "larger")


CORPUS = """if True:
    import json, resource, signal, sys, warnings
    from pathlib import Path
    from regraft.data.decode import Unreadable, decode
    from regraft.data.sources import read_bytes
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
    warnings.simplefilter("ignore")
    for path in sorted(Path(sys.argv[1]).rglob("*")):
        if path.is_file():
            print(json.dumps(str(path.relative_to(sys.argv[1]))), flush=True)
            signal.alarm(10)
            try:
                reason = "" if decode(read_bytes(path)).mode == "RGB" else "not RGB"
            except Unreadable as error:
                reason = str(error)
            signal.alarm(0)
            print(json.dumps(reason), flush=True)
"""
REFUSED_ALTHOUGH_VALID: dict[str, str] = {}  # file -> why it is right to refuse it


@pytest.mark.slow
def test_real_oddities_are_decoded_or_refused_and_none_crashes_or_hangs(real_photos):
    done = subprocess.run(
        [sys.executable, "-c", CORPUS, real_photos / "badimages"], capture_output=True, text=True, timeout=300
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{lines[-1]}: {done.returncode} {done.stderr[-2000:]}"
    reasons = dict(zip(lines[::2], lines[1::2], strict=True))
    assert len(reasons) > 150
    assert {name for name, reason in reasons.items() if reason and name.startswith("valid_odd")} == set(
        REFUSED_ALTHOUGH_VALID
    )
    for name, reason in reasons.items():
        if any(word in name for word in ("truncated", "half_downloaded", "lfs__", "html", "bomb.", "Thumbs.db")):
            assert reason, name


@pytest.mark.slow
def test_the_tutorials_gif_that_says_image_not_found_is_a_photo(real_photos):
    path = real_photos / "hymenoptera" / "train" / "ants" / "imageNotFound.gif"
    assert decode(read_bytes(path)).mode == "RGB"
