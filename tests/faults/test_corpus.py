"""Hundreds of files that no camera wrote: each is used with its own picture, or refused. (Rows D1 to D3, D6, D7.)"""

import io
import itertools
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import COLOURS, draw_folder
from data.test_decode import chunk, jpeg_that_claims, png
from faults.processes import IS_LONG, Trip, mostly_long, nursery, record, toy
from regraft.data.decode import decode

pytestmark = pytest.mark.slow
FORMATS = {"JPEG": {"quality": 95}, "PNG": {}, "GIF": {}, "BMP": {}, "WEBP": {"lossless": True}, "TIFF": {}}
SIZE = (24, 20)
SCAN = r"""if True:
    import json, re, resource, sys
    from pathlib import Path
    from regraft.data.scan import scan
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
    dataset = scan(Path(sys.argv[1]))
    peak = int(re.search(r"VmHWM:\s+([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(json.dumps({**dataset.to_json(), "paths": dataset.paths, "labels": dataset.labels.tolist(), "peak": peak}))
"""


def scanned(folder: Path, timeout: float) -> dict:
    """What a process of its own finds, within a limit of memory and of time."""
    command = [sys.executable, "-c", SCAN, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def plain(colour: tuple[int, int, int]) -> Image.Image:
    rng = np.random.default_rng(sum(colour))
    return Image.fromarray(
        (np.asarray(colour) + rng.normal(0, 10, (SIZE[1], SIZE[0], 3))).clip(0, 255).astype(np.uint8)
    )


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def damaged_and_odd(colour: tuple[int, int, int], seed: int) -> dict[str, bytes]:
    """Files by name: some whole, most not."""
    image, rng, files = plain(colour), np.random.default_rng(seed), {}
    for form, options in FORMATS.items():
        data = encoded(image, form, **options)
        files[f"whole.{form}"] = data
        for cut in np.linspace(0, len(data) - 1, 16).astype(int):
            files[f"cut{cut}.{form}"] = data[:cut]
        for number in range(34):
            flipped = bytearray(data)
            for place in rng.integers(0, len(data), 1 + number % 4):
                flipped[place] ^= 1 << int(rng.integers(8))
            files[f"flipped{number}.{form}"] = bytes(flipped)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("photo.png", encoded(image, "PNG"))
    files |= {
        "page.jpg": b"<!doctype html><html></html>",
        "zip.jpg": archive.getvalue(),
        "pickle.jpg": pickle.dumps({"a": 1}),
        "elf.jpg": b"\x7fELF\2\1\1" + bytes(60),
        "byte.jpg": b"\xff",
        "png.jpg": encoded(image, "PNG"),
        "no extension": encoded(image, "BMP"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "palette.png": encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "rgba.png": encoded(image.convert("RGBA"), "PNG"),
        "animated.gif": encoded(image, "GIF", save_all=True, append_images=[plain((0, 0, 0))] * 3),
        "pages.tiff": encoded(image, "TIFF", save_all=True, append_images=[plain((0, 0, 0))] * 3),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        files[f"exif{orientation}.jpg"] = encoded(image, "JPEG", quality=95, exif=exif)
    return files


def test_every_file_is_used_with_its_own_label_and_picture_or_refused(tmp_path, record_property):
    num_files, folder = 0, tmp_path / "photos"
    for number, (name, colour) in enumerate(list(COLOURS.items())[:3]):
        (folder / name).mkdir(parents=True)
        for file, data in damaged_and_odd(colour, number).items():
            (folder / name / file).write_bytes(data)
            num_files += 1
    found = scanned(folder, 10 * 60)
    assert num_files >= 600
    assert found["found"] == num_files == found["used"] + len(found["quarantined"])
    classes, wrong = list(found["classes"]), []
    for path, label in zip(found["paths"], found["labels"], strict=True):
        assert classes[label] == path.partition("/")[0]
        mean = np.asarray(decode((folder / path).read_bytes())).reshape(-1, 3).mean(axis=0)
        if "flipped" not in path and np.abs(mean - COLOURS[classes[label]]).max() > 12:
            wrong.append(path)
    assert wrong == []
    whole = [q["path"] for q in found["quarantined"] if not any(w in q["path"] for w in ("cut", "flipped"))]
    assert {Path(path).name for path in whole} == {"page.jpg", "zip.jpg", "pickle.jpg", "elf.jpg", "byte.jpg"}
    record(record_property, "D1", files=num_files, used=found["used"], refused=len(found["quarantined"]), mislabelled=0)


def looped_tiff() -> bytes:
    """A directory whose next one is itself."""
    entries = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0)]
    entries += [(278, 3, 1, 8), (279, 4, 1, 64)]
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", 8)


def bombs() -> dict[str, bytes]:
    small = plain((1, 2, 3))
    packed = zlib.compress(bytes(2**27))
    gif = encoded(small, "GIF", save_all=True, append_images=[plain((n, n, n)) for n in range(3)])
    wide = ((50_000, 50_000), (2**31 - 1, 1), (1, 2**31 - 1), (12_000, 12_000))
    claims = {f"{w}x{h}.png": png(w, h, 1, 0, b"") for w, h in wide}
    tall = ((65_500, 65_500), (65_500, 30_000), (20_000, 20_000))
    claims |= {f"{w}x{h}.jpg": jpeg_that_claims(w, h) for w, h in tall}
    jpeg = encoded(small, "JPEG")
    frames = struct.pack("<HH", 65_535, 65_535)
    return claims | {
        "canvas.gif": b"GIF89a" + frames + b"\0\0\0," + bytes(4) + frames + b"\0\x08\0;",
        "frames.gif": gif[:-1] + gif[gif.index(b",") : -1] * 30_000 + b";",
        "looped.tiff": looped_tiff(),
        "text.png": png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"a\0\0" + packed)),
        "international.png": png(1, 1, 8, 0, b"\0\0", chunk(b"iTXt", b"a\0\1\0\0\0" + packed)),
        "profile.png": png(1, 1, 8, 0, b"\0\0", chunk(b"iCCP", b"a\0\0" + packed)),
        "pixels.png": png(11_000, 11_000, 8, 2, b"") + packed,
        "exif.jpg": jpeg[:2] + b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527) + jpeg[2:],
        "header.bmp": b"BM" + struct.pack("<IHHIIiiHHII", 0, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0) + bytes(8),
        "header.webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff",
        "header.ppm": b"P6 60000 60000 255\n",
        "header.ico": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0",
        "header.jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h\0\0\0\x16ihdr"
        + struct.pack(">IIHBBBB", 60_000, 60_000, 3, 7, 7, 0, 0),
    }


def test_bombs_do_no_harm(tmp_path, record_property):
    """What is refused, is refused in a second; what opens, does so within limits."""
    folder = draw_folder(tmp_path / "photos", ("a", "b"), 2)
    quiet_mb = scanned(folder, 60)["peak"]
    for name, data in bombs().items():
        (folder / "a" / name).write_bytes(data)
    assert len(bombs()) >= 20
    found = scanned(folder, 60)
    assert found["found"] == 4 + len(bombs())
    assert found["peak"] - quiet_mb <= 256
    refused = {Path(q["path"]).name for q in found["quarantined"]}
    assert len(refused) >= 15, found["quarantined"]
    assert {"50000x50000.png", "65500x65500.jpg", "canvas.gif", "header.bmp", "pixels.png"} <= refused
    figures = {"files": len(bombs()), "refused": len(refused), "megabytes": round(found["peak"] - quiet_mb)}
    record(record_property, "D2", **figures)


NAMES = [
    *("new\nline.jpg", "quote'\"`.jpg", "\x1b[31mred.jpg", "bee 🐝.jpg", "-rf", " space .jpg", "%s{}.jpg", "x" * 250),
    *(
        "e\u0301.jpg",
        "\u00e9.jpg",
        "\u202egpj.exe",
        "UPPER.JPG",
        "upper.jpg",
        "a;b.jpg",
        "$(x).jpg",
        "*.jpg",
        "tab\t.jpg",
    ),
]


def test_objects_of_the_file_system_are_read_or_named(tmp_path, record_property):
    root = draw_folder(tmp_path / "photos", ("a", "b"), 3)
    outside = draw_folder(tmp_path / "outside", ("a",), 1) / "a" / "a_0.jpg"
    own = root / "a" / "a_0.jpg"
    for name in NAMES:
        shutil.copy(own, root / "a" / name)
    for name in (b"\xff\xfe.jpg", b"\x80"):
        shutil.copy(own, os.fsencode(root / "b") + b"/" + name)
    (root / "b" / "hard.jpg").hardlink_to(root / "b" / "b_0.jpg")
    (root / "b" / "linked.jpg").symlink_to("b_0.jpg")
    used = 6 + len(NAMES) + 2 + 2
    links = {"out": outside, "zero": "/dev/zero", "null": "/dev/null", "passwd": "/etc/passwd", "dangling": "nowhere"}
    links |= {
        "loop": "loop.jpg",
        "up": "..",
        "folder": "../b",
        "root": "/",
        "proc": "/proc/self/environ",
        "long": "x" * 300,
    }
    for name, target in links.items():
        (root / "a" / f"{name}.jpg").symlink_to(target)
    os.mkfifo(root / "a" / "pipe.jpg")
    os.mkfifo(root / "b" / "pipe")
    (root / "outside").symlink_to(tmp_path / "outside" / "a")
    (root / "self").symlink_to(".")
    here = Path.cwd()
    os.chdir(root / "a")
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.jpg")
            found = scanned(root, 60)
    finally:
        os.chdir(here)
    refused = len(links) + 2 + 2 + 1
    assert used + refused >= 40
    assert (found["used"], len(found["quarantined"])) == (used, refused), found["quarantined"]
    assert all(q["reason"] for q in found["quarantined"])
    assert Counter(found["labels"]) == {0: 3 + len(NAMES), 1: used - 3 - len(NAMES)}
    record(record_property, "D3", objects=used + refused, used=used, refused=refused, hung=0)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return toy(tmp_path_factory.mktemp("toy") / "toy")


CHANGES = {
    "changed": lambda path, other: path.write_bytes(other.read_bytes()),
    "gone": lambda path, _: path.unlink(),
    "emptied": lambda path, _: path.write_bytes(b""),
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[:300]),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


SHORT = [*(("frozen", change) for change in CHANGES), ("full", "changed")]
ALL = [(mode, change) for mode in ("frozen", "full") for change in CHANGES]


@pytest.mark.parametrize(("mode", "change"), [*mostly_long(ALL, *SHORT), *(ALL if IS_LONG else ())])
def test_a_photo_that_changes_after_the_scan_is_named_and_never_replaced(
    tmp_path, network, record_property, mode, change
):
    """The process sleeps after it has listed the photos; meanwhile one changes."""
    root = draw_folder(tmp_path / "photos", ("red", "green"), 4)
    at = "regraft.commands.train.configured"
    command = ("train", root, *network, "--mode", mode, "--epochs", 1, "--strict", "--out", tmp_path / "run", "--json")
    child = nursery().start(*command, trips=(Trip(at, 1, pause=60.0),), REGRAFT_CACHE=str(tmp_path / "cache"))
    child.wait_until(child.is_paused)
    path = root / "red" / "red_1.jpg"
    CHANGES[change](path, root / "green" / "green_1.jpg")
    child.resume()
    ended = child.wait()
    assert ended.code == 1, ended.stderr
    assert "red_1.jpg" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / "bundle").exists()
    record(record_property, f"D6-{mode}-{change.replace(' ', '-')}", named=1)


SHAPES = {
    "a last batch of one": (("a", "b"), 5, ("--batch-size", 7), True),
    "a batch larger than the set": (("a", "b"), 3, ("--batch-size", 64), True),
    "a batch of one": (("a", "b"), 3, ("--batch-size", 1, "--batchnorm", "eval"), True),
    "two photos a class": (("a", "b"), 2, (), True),
    "fewer photos to judge than classes": (("a", "b", "c", "d"), 2, (), True),
    "one photo a class": (("a", "b"), 1, (), False),
}


SOME = [("full", "a last batch of one"), ("full", "a batch larger than the set")]
SOME += [("frozen", "two photos a class"), ("frozen", "one photo a class")]


@pytest.mark.parametrize(("mode", "name"), mostly_long(itertools.product(("frozen", "full"), SHAPES), *SOME))
def test_sets_of_any_shape_train_or_are_refused_at_once(tmp_path, network, record_property, mode, name):
    classes, count, flags, trains = SHAPES[name]
    root = draw_folder(tmp_path / "photos", classes, count)
    flags = (*flags, "--epochs", 1) if mode == "full" else ()
    ended = nursery().run("train", root, *network, "--mode", mode, *flags, "--out", tmp_path / "run", "--json")
    assert "Traceback" not in ended.stderr
    if trains:
        assert ended.summary["images"]["used"] == count * len(classes)
    else:
        assert ended.code == 1
        assert "leaves no photos to judge" in ended.stderr
    record(record_property, f"D7-{mode}-{name.replace(' ', '-')}", code=ended.code)
