"""Thumbnails: what they show, when they are made anew, and that they stay within their bounds."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image

from conftest import draw
from regraft.data.decode import Unreadable
from regraft.labelling.thumbnails import EDGES, Thumbnails, jpeg_of


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def thumbnails(folder, paths, **bounds) -> Thumbnails:
    (folder / "kept").mkdir(exist_ok=True)
    return Thumbnails(lambda photo: paths[photo], len(paths), folder / "kept", **bounds)


def kept(folder) -> list:
    return sorted((folder / "kept").glob("*/*.jpg"))


def test_a_thumbnail_is_upright_small_and_says_nothing_of_the_camera(tmp_path):
    photo = Image.new("RGB", (1200, 800), (200, 30, 30))
    photo.paste((30, 30, 200), (0, 0, 1200, 200))  # blue above
    exif = photo.getexif()
    exif[0x0112], exif[0x010F] = 6, "Camera of mine"  # turned a quarter to the right when shown
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for size, edge in EDGES.items():
        data = jpeg_of(tmp_path / "turned.jpg", size)
        shown = opened(data)
        assert shown.size == (round(min(edge, 1200) * 2 / 3), min(edge, 1200))
        assert not shown.getexif()
        assert b"Camera" not in data
        right, left = (np.asarray(shown.convert("RGB"))[shown.height // 2, x] for x in (shown.width - 5, 5))
        assert right[2] > 150 > right[0]
        assert left[0] > 150 > left[2]


def test_small_photos_stay_as_they_are_and_greys_of_12_bits_are_not_black(tmp_path):
    assert opened(jpeg_of(draw(tmp_path / "small.png", (9, 9, 9), 0, (100, 80)), "thumb")).size == (100, 80)
    Image.fromarray(np.full((50, 50), 3000, np.uint16)).save(tmp_path / "grey.png")
    grey = np.asarray(opened(jpeg_of(tmp_path / "grey.png", "thumb")))
    assert abs(int(grey.mean()) - round(3000 / 4095 * 255)) <= 1  # of rounding, and of the JPEG


def test_what_is_no_photo_is_told(tmp_path):
    (tmp_path / "no.jpg").write_bytes(b"no photo")
    made = thumbnails(tmp_path, [tmp_path / "no.jpg", tmp_path / "gone.jpg"])
    with pytest.raises(Unreadable, match="not an image"):
        made.get(0, "thumb")
    with pytest.raises(Unreadable, match="does not exist"):
        made.get(1, "thumb")
    assert kept(tmp_path) == []


def test_a_thumbnail_is_made_once_and_anew_when_its_photo_changes_or_it_is_damaged(tmp_path):
    photo = draw(tmp_path / "a.bmp", (200, 40, 40), 1)  # as many bytes, whatever it shows
    first = thumbnails(tmp_path, [photo]).get(0, "thumb")
    [file] = kept(tmp_path)
    file.write_bytes(first[:-1] + b"\0" + first[-2:])  # a whole file, other than what would be made
    assert thumbnails(tmp_path, [photo]).get(0, "thumb") == file.read_bytes() != first
    file.write_bytes(first[:100])
    assert thumbnails(tmp_path, [photo]).get(0, "thumb") == first == file.read_bytes()
    draw(photo, (40, 40, 200), 2)
    os.utime(photo, ns=(1, 1))
    assert thumbnails(tmp_path, [photo]).get(0, "thumb") != first
    assert len(kept(tmp_path)) == 2


def test_memory_and_disk_are_bounded(tmp_path):
    paths = [draw(tmp_path / f"{i}.jpg", (90, 90, 90), i) for i in range(12)]
    size = len(jpeg_of(paths[0], "thumb"))
    made = thumbnails(tmp_path, paths, memory_bytes=3 * size, disk_bytes=6 * size)
    for photo in range(12):
        made.get(photo, "thumb")
        assert made._memory._used == sum(map(len, made._memory._kept.values())) <= 3 * size
        assert sum(file.stat().st_size for file in kept(tmp_path)) <= 6 * size
    assert list(made._memory._kept)[-2:] == [(10, "thumb"), (11, "thumb")]
    assert len(kept(tmp_path)) >= 3
    made.get(0, "screen")
    assert len(kept(tmp_path)) < 12  # large ones are not kept


def test_thumbnails_are_made_ahead(tmp_path, monkeypatch):
    paths = [draw(tmp_path / f"{i}.jpg", (90, 90, 90), i) for i in range(8)]
    made, order, is_done = thumbnails(tmp_path, paths), [], threading.Event()
    get = made.get

    def noted(photo, size):
        order.append(photo)
        data = get(photo, size)
        if len(order) == 8:
            is_done.set()
        return data

    monkeypatch.setattr(made, "get", noted)
    made.start()
    assert is_done.wait(60)
    made.close()
    assert order == list(range(8))
    assert len(kept(tmp_path)) == 8
