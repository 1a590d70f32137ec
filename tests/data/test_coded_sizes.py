"""AVIF and HEIC files that say one size and hold another, or ask for work by numbers. (Row S6.)"""

import base64
import io
import struct

import pytest
from PIL import Image

from data.test_decode import HALF_RED_HALF_BLUE
from faults.processes import record
from regraft.data import decode as decoding
from regraft.data.av1_sizes import CODED_BYTES, LARGEST, coded_bytes
from regraft.data.decode import Unreadable, decode


def avif(width: int, height: int, frames: int = 1) -> bytes:
    buffer, image = io.BytesIO(), Image.new("RGB", (width, height), (90, 90, 90))
    others = [Image.new("RGB", (width, height), (n % 256, 0, 0)) for n in range(1, frames)]
    image.save(buffer, "AVIF", speed=10, save_all=frames > 1, append_images=others)
    return buffer.getvalue()


def saying(data: bytes, width: int, height: int) -> bytes:
    """The same file, each of its pictures called so large."""
    changed, at = bytearray(data), 0
    while (at := changed.find(b"ispe", at)) >= 0:
        changed[at + 8 : at + 16] = struct.pack(">II", width, height)
        at += 4
    return bytes(changed)


@pytest.mark.parametrize("size", [(64, 64), (1, 1), (333, 77), (2000, 10)])
def test_the_coded_size_is_found_whatever_the_file_says(size):
    data = avif(*size)
    expected = int(CODED_BYTES * max(1, size[0]) * size[1])
    assert coded_bytes(data) == coded_bytes(saying(data, 9, 9)) == expected


def test_an_odd_layout_counts_as_the_largest():
    data, most = avif(64, 64), int(CODED_BYTES * LARGEST)
    for odd in (avif(16, 16, 3), data[:200], data.replace(b"infe", b"infx"), data.replace(b"iloc", b"ilox"), b""):
        assert coded_bytes(odd) == most


def test_memory_is_taken_for_what_is_coded(monkeypatch):
    """The budget that all threads share is asked for the large picture, not for the small one that it is called."""
    taken = []
    monkeypatch.setattr(decoding.DECODING, "_wait_for", taken.append)
    assert decode(saying(avif(2000, 1500), 64, 64)).size == (64, 64)
    assert taken == [16 * 64 * 64 + int(CODED_BYTES * 2000 * 1500)]


def test_a_size_beyond_all_bounds_is_refused_undecoded():
    for width, height in ((60_000, 60_000), (12_000, 12_000)):
        with pytest.raises(Unreadable):
            decode(saying(avif(64, 64), width, height))


def boxed(kind: bytes, *parts: bytes, version: int | None = None) -> bytes:
    body = (b"" if version is None else bytes([version, 0, 0, 0])) + b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def grid(rows: int, width: int, height: int, *, is_shared: bool = False) -> bytes:
    """A HEIC picture of rows * rows tiles that all are the same 64x64 pixels of one small file."""
    tile = base64.b85decode(HALF_RED_HALF_BLUE)
    at = tile.index(b"hvcC") - 4
    codec = tile[at : at + struct.unpack_from(">I", tile, at)[0]]
    coded = tile[tile.index(b"mdat") + 4 :]
    tiles = range(1, 2 if is_shared else rows * rows + 1)
    whole, plan = len(tiles) + 1, struct.pack(">BBBBII", 0, 1, rows - 1, rows - 1, width, height)
    names = [(n, b"hvc1") for n in tiles] + [(whole, b"grid")]
    infe = [boxed(b"infe", struct.pack(">HH", n, 0), kind, b"\0", version=2) for n, kind in names]
    used = [1] * (rows * rows) if is_shared else list(tiles)
    iref = boxed(b"iref", boxed(b"dimg", struct.pack(f">HH{len(used)}H", whole, len(used), *used)), version=0)
    sizes = [boxed(b"ispe", struct.pack(">II", *size), version=0) for size in ((64, 64), (width, height))]
    owns = [struct.pack(">HBBB", n, 2, 0x81, 2) for n in tiles] + [struct.pack(">HBB", whole, 1, 3)]
    iprp = boxed(b"iprp", boxed(b"ipco", codec, *sizes), boxed(b"ipma", struct.pack(">I", whole), *owns, version=0))

    def start(offset: int) -> bytes:
        places = [struct.pack(">HHHII", n, 0, 1, offset, len(coded)) for n in tiles]
        places.append(struct.pack(">HHHII", whole, 0, 1, offset + len(coded), len(plan)))
        meta = [
            *(
                boxed(b"hdlr", bytes(4), b"pict", bytes(13), version=0),
                boxed(b"pitm", struct.pack(">H", whole), version=0),
            ),
            *(boxed(b"iinf", struct.pack(">H", whole), *infe, version=0), iref, iprp),
            boxed(b"iloc", b"\x44\0", struct.pack(">H", whole), *places, version=0),
        ]
        return boxed(b"ftyp", b"heic", bytes(4), b"mif1heic") + boxed(b"meta", *meta, version=0)

    offset = len(start(0)) + 8
    return start(offset) + boxed(b"mdat", coded, plan)


def test_a_grid_of_tiles_is_read_as_far_as_libheif_allows():
    pytest.importorskip("pi_heif")
    assert decode(grid(2, 128, 128)).size == (128, 128)


@pytest.mark.parametrize(
    "data",
    [
        lambda: grid(90, 5760, 5760),
        lambda: grid(200, 64, 64),
        lambda: grid(255, 64, 64, is_shared=True),
        lambda: grid(255, 16_320, 16_320, is_shared=True),
        lambda: saying(base64.b85decode(HALF_RED_HALF_BLUE), 60_000, 60_000),
        lambda: saying(base64.b85decode(HALF_RED_HALF_BLUE), 8000, 8000),
    ],
    ids=["8100 tiles", "40000 tiles", "one tile 65025 times", "266 megapixels", "said 60000", "said 8000"],
)
def test_a_heic_file_that_asks_for_work_by_numbers_is_refused(data):
    pytest.importorskip("pi_heif")
    with pytest.raises(Unreadable):
        decode(data())


def test_the_figures_are_recorded(record_property):
    record(record_property, "S6", files=6 + 5 + 2)
