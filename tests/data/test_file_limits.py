"""Files that ask for more work or memory than a photo does are refused by their headers; photos never are."""

import io
import itertools
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data.test_decode import chunk, encode, picture, png, refusal
from regraft.data import decode as decoding
from regraft.data import file_limits, tiff_directories
from regraft.data.decode import MAX_BYTES, Unreadable, decode, decoded_size
from regraft.data.memory_budget import DECODING, MemoryBudget
from regraft.data.sources import read_bytes


def directory(*tags: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))


def raw_photo(make: str = "", inner: tuple[tuple[int, int, int, int], ...] = (), **also: int) -> bytes:
    """A TIFF with a thumbnail of 4 x 4 pixels, and within its directory that of a larger picture."""
    start, first = 8 + 48, [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    first += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, 48), (273, 4, 1, 8), (254, 4, 1, also.pop("subfile", 1))]
    first += [(tag, 4, 1, value) for tag, value in {50706: also.get("dng", 0)}.items() if value]
    full = directory((256, 3, 1, 600), (257, 3, 1, 400), *inner) + bytes(4)
    text = make.encode() + b"\0"
    first += [(271, 2, len(text), start + len(full)), (330, 4, 1, start)]
    place = start + len(full) + len(text)
    return b"II*\0" + struct.pack("<I", place) + bytes(48) + full + text + directory(*first) + bytes(4)


MOSAIC = ((262, 3, 1, 32803),)
RAW = {
    "NEF": raw_photo("NIKON CORPORATION", MOSAIC),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(99),
    "ARW": raw_photo("SONY", MOSAIC),
    "PEF": raw_photo("PENTAX Corporation", MOSAIC),
    "SRW": raw_photo("SAMSUNG", MOSAIC),
    "3FR": raw_photo("Hasselblad", MOSAIC),
    "DNG": raw_photo("Google", dng=0x0401),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(99),
    "ORF": b"IIRO\x08\0\0\0" + bytes(99),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(99),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(99),
    "CRW": b"II\x1a\0\0\0HEAPCCDR" + bytes(99),
    "X3F": b"FOVb" + bytes(99),
    "MRW": b"\0MRM" + bytes(99),
    "IIQ": b"II*\0\x10\0\0\0IIII" + bytes(99),
    "for example NEF or ARW": raw_photo("Nobody", MOSAIC),
}


@pytest.mark.parametrize("name", RAW)
def test_camera_raw_files_are_refused_by_name_with_what_to_do(name):
    said = refusal(RAW[name])
    assert said.startswith(f"a camera raw file ({name}); develop it to a JPEG or TIFF first")


def test_a_thumbnail_of_another_picture_is_not_taken_for_the_photo():
    assert refusal(raw_photo()).startswith("a TIFF whose first picture is only a thumbnail")
    assert decode(raw_photo(subfile=0)).size == (4, 4)


def test_directories_of_big_files_and_of_both_byte_orders_are_read():
    frames = [Image.new("L", (8, 8), n) for n in range(3)]
    for big in (False, True):
        data = encode(frames[0], "TIFF", save_all=True, append_images=frames[1:], big_tiff=big)
        assert [one.first(256) for one in tiff_directories.read_directories(data)] == [8, 8, 8]
    motorola = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 256, 3, 1, 77, 0) + bytes(4)
    assert [one.first(256) for one in tiff_directories.read_directories(motorola)] == [77]


def test_any_bytes_are_looked_through_without_an_error():
    rng = np.random.default_rng(0)
    kinds = [encode(picture(), form) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "JPEG2000")]
    for data in (*kinds, raw_photo("NIKON", MOSAIC)):
        for _ in range(60):
            damaged = bytearray(data)
            damaged[rng.integers(len(data))] = rng.integers(256)
            cut = bytes(damaged[: rng.integers(len(data) + 1)])
            for one in (bytes(damaged), cut):
                assert isinstance(file_limits.refusal(one), str | None)
                assert file_limits.coefficient_bytes(one) >= 0


def bmp(width: int, height: int, compression: int, rows: bytes) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + info + bytes(1024) + rows


def scans(image: Image.Image, count: int, **options: object) -> bytes:
    """A progressive JPEG whose last scan comes so often more."""
    data = encode(image, "JPEG", progressive=True, **options)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


JPEG, GIF = encode(picture(), "JPEG"), encode(Image.new("P", (8, 8)), "GIF")
GIF_HEADER = 13 + (3 << (GIF[10] % 8 + 1))
TIFF_TAGS = tuple((1000 + n, 4, 1, 0) for n in range(2000))
GREEDY = {
    "run-length rows that skip": (bmp(11_000, 12_000, 1, b"\0\2\xff\xff" * 3 + b"\0\0\1\1"), "in a slow kind of BMP"),
    "a PPM with an odd white": (b"P6 3000 3000 254\n" + bytes(99), "in a slow kind of PPM"),
    "a PPM as text": (b"P3 3000 3000 255\n" + b"0 " * 99, "in a slow kind of PPM"),
    "thousands of scans": (scans(Image.new("RGB", (64, 64)), 3000), "a JPEG of more than 128 scans"),
    "scans of a large picture": (scans(Image.new("L", (11_000, 11_000)), 50), "a JPEG of more than 35 scans"),
    "segments": (JPEG[:2] + b"\xff\xe5\0\2" * 200_000 + JPEG[2:], "more than 50000 segments"),
    "bytes between segments": (JPEG[:2] + b"\xff" * 200_000 + JPEG[2:], "more than 50000 segments"),
    "chunks": (png(1, 1, 8, 0, b"\0\0", chunk(b"tEXt", b"a\0b") * 60_000), "a PNG of more than 50000 chunks"),
    "text": (GIF[:GIF_HEADER] + (b"!\xfe" + (b"\xff" + b"a" * 255) * 9000 + b"\0") + GIF[GIF_HEADER:], "1 MB of text"),
    "texts": (GIF[:GIF_HEADER] + b"!\xfe\1a\0" * 400_000 + GIF[GIF_HEADER:], "1 MB of text"),
    "boxes": (b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x08free" * 60_000, "a JPEG 2000 of more than"),
    "icons": (b"\0\0\1\0\xff\xff" + bytes(99), "an icon of 65535 pictures"),
    "a large icon": (
        b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 99, 22) + png(9000, 9000, 8, 6, b""),
        "9000x9000 pixels in an icon; at most 4 megapixels",
    ),
    "a large bitmap in an icon": (
        b"\0\0\1\0\1\0" + struct.pack("<BBBBHHIIIii", 0, 0, 0, 0, 1, 32, 99, 22, 40, 9000, 18_000) + bytes(24),
        "9000x9000 pixels in an icon",
    ),
    "tags": (b"II*\0\x08\0\0\0" + directory(*TIFF_TAGS) + bytes(99), "2000 tags in one directory"),
    "strips": (b"II*\0\x08\0\0\0" + directory((273, 4, 10**6, 8)) + bytes(99), "a tag of more than"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_what_asks_for_unbounded_work_is_refused_from_its_header(name):
    data, reason = GREEDY[name]
    started = time.thread_time()
    assert reason in refusal(data)
    assert time.thread_time() - started < 0.5  # of this thread's own work, whatever else the machine does


def test_what_looks_like_scans_after_the_picture_is_not_counted():
    film = b"\xff\xda\0\2" * 1000
    photo = scans(picture(64, 48), 20)
    assert decode(photo + film).size == (64, 48)
    assert decode(JPEG + film).size == (48, 32)


def test_work_hidden_behind_a_marker_without_a_segment_is_found():
    data = scans(picture(64, 48), 300)
    for alone in (b"\xff\x01", b"\xff\xd0", b"\xff\xd8"):
        assert file_limits.refusal(data[:2] + alone + data[2:]) == "a JPEG of more than 128 scans"


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_memory_of_waiting_coefficients_is_known_from_the_header(subsampling):
    image = picture(640, 480)
    each = {0: 6, 1: 4, 2: 3}[subsampling]
    waiting = encode(image, "JPEG", progressive=True, subsampling=subsampling)
    assert file_limits.coefficient_bytes(waiting) == each * 640 * 480
    assert file_limits.coefficient_bytes(encode(image, "JPEG", subsampling=subsampling)) == 0


def jpeg_of(width: int, height: int) -> bytes:
    return encode(Image.new("L", (width, height), 200), "JPEG", quality=20)


def test_a_phones_200_megapixels_are_read_at_a_reduced_scale_and_counted_as_decoded():
    data = jpeg_of(16_320, 12_240)
    assert decoded_size(data, 256) == (2040, 1530)
    image = decode(data, 256)
    assert image.size == (2040, 1530)
    assert abs(np.asarray(image).mean() - 200) < 4
    assert refusal(data) == "16320x12240 pixels; at most 134 megapixels are read"


PEAKS = {"PNG": 8, "TIFF": 8, "WEBP": 16, "AVIF": 16, "JPEG2000": 24}


@pytest.mark.parametrize("form", PEAKS)
def test_a_picture_that_takes_more_memory_than_all_may_is_refused_before_it_is_decoded(monkeypatch, form):
    """Of the formats of today too: a kilobyte may claim any size."""
    data = encode(Image.new("RGB", (1024, 512)), form)
    monkeypatch.setattr(decoding, "DECODING", MemoryBudget(PEAKS[form] * 2**19))
    assert decode(data).size == (1024, 512)
    monkeypatch.setattr(decoding, "DECODING", MemoryBudget(PEAKS[form] * 2**19 - 1))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it is decoded"))
    assert refusal(data).startswith(f"1024x512 pixels take {PEAKS[form] // 2} MB to decode; at most ")


STRIPPED = {
    "RGBA": Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 4), dtype=np.uint8)),
    "LA": Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 2), dtype=np.uint8)),
    "P": picture(200, 300).convert("P"),
    "I;16": Image.fromarray(np.random.default_rng(0).integers(0, 65536, (300, 200), dtype=np.uint16)),
    "F": Image.fromarray(np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)),
    "I": Image.fromarray(np.random.default_rng(0).integers(-9, 10**6, (300, 200)).astype(np.int32)),
    "CMYK": picture(200, 300).convert("CMYK"),
}


@pytest.mark.parametrize("mode", STRIPPED)
def test_in_strips_the_same_comes_out(monkeypatch, mode):
    image = STRIPPED[mode]
    if mode == "P":
        image.info["transparency"] = bytes(range(256))
    whole = np.asarray(decoding.to_rgb(image))
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 200 * 7)
    assert np.array_equal(np.asarray(decoding.to_rgb(image)), whole)


def test_in_strips_numpy_holds_little_of_a_large_grey_picture():
    data = encode(Image.new("I;16", (4000, 4000), 40_000), "PNG", compress_level=1)
    tracemalloc.start()
    try:
        assert decode(data).getpixel((0, 0)) == (156, 156, 156)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 8 * decoding.STRIP_PIXELS < 16 * 4000 * 4000


@pytest.fixture
def peak_use(monkeypatch) -> Iterator[list[int]]:
    """Bytes that were held at a time, of a budget of 4 MB."""
    held, most, lock = [0], [0], threading.Lock()
    original = Image.Image.load

    budget = MemoryBudget(4 * 2**20)
    monkeypatch.setattr(decoding, "DECODING", budget)

    def load(image: Image.Image) -> object:
        with lock:
            held[0] = budget.total - budget._free
            most[0] = max(most[0], held[0])
        return original(image)

    monkeypatch.setattr(Image.Image, "load", load)
    yield most
    assert budget._free == budget.total


def test_64_large_pictures_at_once_share_one_budget(peak_use):
    """Each takes a bit less than a third of it."""
    data = encode(Image.new("RGBA", (400, 400), (9, 9, 9, 200)), "PNG")
    with ThreadPoolExecutor(16) as pool:
        assert {image.size for image in pool.map(decode, [data] * 64)} == {(400, 400)}
    assert 400 * 400 * 8 <= peak_use[0] <= 3 * 400 * 400 * 8 <= 4 * 2**20


def test_a_budget_serves_in_the_order_of_coming_and_gets_all_back():
    budget, order, entered = MemoryBudget(10), [], threading.Semaphore(0)

    def job(number: int, size: int) -> None:
        entered.release()
        with budget.take(size):
            order.append(number)

    with budget.take(8):
        threads = []
        for number, size in enumerate((9, 1, 50)):
            threads.append(threading.Thread(target=job, args=(number, size)))
            threads[-1].start()
            entered.acquire()
            while len(budget._waiting) <= number:
                time.sleep(0.001)
        assert order == []  # the second would fit, but the first would wait for ever behind such as it
    for thread in threads:
        thread.join()
    assert (order, budget._free, len(budget._waiting)) == ([0, 1, 2], 10, 0)
    with pytest.raises(RuntimeError), budget.take(3):
        raise RuntimeError
    assert budget._free == 10
    assert DECODING.total == 2**30


def test_a_sparse_file_is_refused_by_its_size(tmp_path, monkeypatch):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable, match="larger than 256 MB"):
            read_bytes(tmp_path / "huge")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert MAX_BYTES == 256 * 2**20


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "PPM"])
def test_ordinary_photos_are_never_refused(form):
    for size in ((16, 16), (48, 32), (200, 300)):
        assert file_limits.refusal(encode(picture(*size), form)) is None
    assert file_limits.refusal(encode(picture(), form)) is None
    assert decode(encode(picture(32, 32), form)).size == (32, 32)


@pytest.mark.slow
def test_real_photos_are_never_refused_for_the_work_they_ask(real_photos):
    """All the published photos of the sets, and unusual ones."""
    folders = ("hymenoptera", "hemlock2", "pollen2", "badimages/valid_odd")
    paths = list(itertools.chain.from_iterable(sorted((real_photos / one).rglob("*.*")) for one in folders))
    assert len(paths) > 1000
    assert [path.name for path in paths if file_limits.refusal(path.read_bytes())] == []


def test_an_open_file_says_its_size_first(tmp_path):
    with pytest.raises(Unreadable, match="larger than"):
        decoding.read_open(io.BufferedReader(Endless()))


class Endless(io.RawIOBase):
    """Gives bytes for ever, and does not know how many."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: bytearray) -> int:
        return len(buffer)
