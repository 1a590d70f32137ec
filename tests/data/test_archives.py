"""Archives as their makers did not mean them, and as attackers do: refused by name, nothing written, memory flat."""

import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pyarrow
import pyarrow.parquet
import pytest

from regraft.core.config import FolderOptions
from regraft.core.errors import DataError
from regraft.data import gunzip, sources
from regraft.data.decode import Unreadable
from regraft.data.parquet_rows import read_labels
from regraft.data.scan import list_photos
from regraft.data.sources import read_bytes

PHOTO = b"a photo"
GOOD = ("ant/1.jpg", "ant/2.jpg", "bee/1.jpg", "bee/2.jpg")


def zipped(place, *members, name="set.zip"):
    """members: (name, content) or (ZipInfo, content), after four good ones."""
    with zipfile.ZipFile(place / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in (*((good, good.encode()) for good in GOOD), *members):
            archive.writestr(member, data)
    return place / name


def tarred(place, *members, mode="w", name="set.tar"):
    """members: names of files, or headers with their content, after four good ones."""
    with tarfile.open(place / name, mode) as archive:
        for member, data in (*((good, good.encode()) for good in GOOD), *members):
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return place / name


def special(name, kind, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def packed_by(name, method):
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


def patched(archive, at, value, size=2):
    """Change a field of the last member, in its own header and in the list of members."""
    data = bytearray(archive.read_bytes())
    for signature, place in ((b"PK\3\4", at), (b"PK\1\2", at + 2)):
        start = data.rfind(signature) + place
        data[start : start + size] = value.to_bytes(size, "little")
    archive.write_bytes(data)
    return archive


OUTSIDE = "a path that leads out of the archive"
ABSOLUTE = "an absolute path in an archive"
LINK = "a link in an archive"
NESTED = "an archive in an archive; unpack it first"
ZEROS = bytes(20 * 2**20)

SET_ASIDE = {
    "zip: ..": (lambda d: zipped(d, ("../ant/out.jpg", PHOTO)), "../ant/out.jpg", OUTSIDE),
    "zip: .. within": (lambda d: zipped(d, ("ant/../../out.jpg", PHOTO)), "ant/../../out.jpg", OUTSIDE),
    "zip: .. of Windows": (lambda d: zipped(d, ("ant\\..\\..\\out.jpg", PHOTO)), "ant\\..\\..\\out.jpg", OUTSIDE),
    "zip: absolute": (lambda d: zipped(d, ("/tmp/out.jpg", PHOTO)), "/tmp/out.jpg", ABSOLUTE),
    "zip: a drive": (lambda d: zipped(d, ("C:\\out.jpg", PHOTO)), "C:\\out.jpg", ABSOLUTE),
    "zip: a share": (lambda d: zipped(d, ("\\\\host\\out.jpg", PHOTO)), "\\\\host\\out.jpg", ABSOLUTE),
    "zip: a link": (lambda d: zipped(d, (zip_link("ant/3.jpg"), "/etc/passwd")), "ant/3.jpg", LINK),
    "zip: a zip": (lambda d: zipped(d, ("ant/more.zip", PHOTO)), "ant/more.zip", NESTED),
    "zip: a tar.gz": (lambda d: zipped(d, ("ant/more.TAR.GZ", PHOTO)), "ant/more.TAR.GZ", NESTED),
    "zip: encrypted": (lambda d: patched(zipped(d, ("ant/3.jpg", PHOTO)), 6, 1), "ant/3.jpg", "encrypted"),
    "zip: bzip2": (lambda d: zipped(d, (packed_by("ant/3.jpg", zipfile.ZIP_BZIP2), PHOTO)), "ant/3.jpg", "method 12"),
    "zip: lzma": (lambda d: zipped(d, (packed_by("ant/3.jpg", zipfile.ZIP_LZMA), PHOTO)), "ant/3.jpg", "method 14"),
    "zip: an unknown method": (lambda d: patched(zipped(d, ("ant/3.jpg", PHOTO)), 8, 77), "ant/3.jpg", "method 77"),
    "zip: a bomb": (lambda d: zipped(d, ("ant/3.jpg", ZEROS)), "ant/3.jpg", "bytes that become 20971520"),
    "zip: too large": (lambda d: patched(zipped(d, ("ant/3.jpg", PHOTO)), 22, 2**31, 4), "ant/3.jpg", "larger than"),
    "zip: packed is larger": (
        lambda d: patched(zipped(d, ("ant/3.jpg", PHOTO)), 18, 2**30, 4), "ant/3.jpg", "more bytes packed than"),
    "zip: no end of its name": (lambda d: zipped(d, ("ant/" + "x" * 5000, PHOTO)), "ant/" + "x" * 5000, "no file can"),
    "tar: ..": (lambda d: tarred(d, ("../ant/out.jpg", PHOTO)), "../ant/out.jpg", OUTSIDE),
    "tar: .. within": (lambda d: tarred(d, ("ant/../../out.jpg", PHOTO)), "ant/../../out.jpg", OUTSIDE),
    "tar: absolute": (lambda d: tarred(d, ("/tmp/out.jpg", PHOTO)), "/tmp/out.jpg", ABSOLUTE),
    "tar: a link": (lambda d: tarred(d, (special("ant/3.jpg", tarfile.SYMTYPE), b"")), "ant/3.jpg", LINK),
    "tar: a hard link": (lambda d: tarred(d, (special("ant/3.jpg", tarfile.LNKTYPE, GOOD[0]), b"")), "ant/3.jpg", LINK),
    "tar: a pipe": (lambda d: tarred(d, (special("ant/3.jpg", tarfile.FIFOTYPE), b"")), "ant/3.jpg", "not a regular"),
    "tar: a device": (lambda d: tarred(d, (special("ant/3.jpg", tarfile.CHRTYPE), b"")), "ant/3.jpg", "not a regular"),
    "tar: a tar": (lambda d: tarred(d, ("ant/more.tar", PHOTO)), "ant/more.tar", NESTED),
    "tar: no end of its name": (lambda d: tarred(d, ("ant/" + "x" * 5000, PHOTO)), "ant/" + "x" * 5000, "no file can"),
}  # fmt: skip


def sparse_too_large(place):
    """A tar whose last member says that it has 300 MB, which the file system does not store."""
    info = tarfile.TarInfo("ant/3.jpg")
    info.size = 300 * 2**20
    archive = tarred(place)
    with open(archive, "r+b") as file:
        end = next(i for i in range(0, 20480, 512) if not archive.read_bytes()[i : i + 512].strip(b"\0"))
        file.truncate(end)
        file.seek(end)
        file.write(info.tobuf())
        file.truncate(end + 512 + info.size + 1024)
    return archive


SET_ASIDE["tar: too large"] = (sparse_too_large, "ant/3.jpg", "larger than 256 MB")


def flat(call):
    """Memory that a call takes at its peak, in bytes, by Python and what it calls to make objects."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", SET_ASIDE)
def test_a_bad_member_is_set_aside_by_name_and_the_others_are_used(tmp_path, name):
    build, path, reason = SET_ASIDE[name]
    place = tmp_path / "two" / "deep"  # so that what leads out of it ends in this test's folder
    place.mkdir(parents=True)
    archive = build(place)
    before, found = sorted(tmp_path.rglob("*")), []
    assert flat(lambda: found.append(list_photos(archive))) < 2**23
    (dataset,) = found
    assert sorted(dataset.paths) == list(GOOD)
    (left,) = dataset.quarantine
    assert left.path == path
    assert reason in left.reason
    assert dataset.num_found == 5
    assert sorted(tmp_path.rglob("*")) == before


def cut(archive, size):
    archive.write_bytes(archive.read_bytes()[:size])
    return archive


def named(place, name, data):
    (place / name).write_bytes(data)
    return place / name


def gzip_bomb(place):
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    info = tarfile.TarInfo("ant/3.jpg")
    info.size = 2**25
    parts = [packer.compress(info.tobuf()), *(packer.compress(bytes(2**20)) for _ in range(24))]
    return named(place, "set.tar.gz", b"".join(parts) + packer.flush())


def long_header(place, kind=tarfile.XHDTYPE):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 2**33
    return named(place, "set.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))


def long_header_packed(place):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**26
    return named(place, "set.tar.gz", gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))


def damaged_in_the_middle(place):
    archive = tarred(place)
    data = bytearray(archive.read_bytes())
    data[1024:1536] = b"\xff" * 512  # the header of the second member
    archive.write_bytes(data)
    return archive


def huge_directory(place):
    archive = zipped(place)
    data = bytearray(archive.read_bytes())
    struct.pack_into("<L", data, data.rfind(b"PK\5\6") + 12, 2**31)
    archive.write_bytes(data)
    return archive


REFUSED = {
    "zip: a name twice": (lambda d: zipped(d, ("ant/./1.jpg", PHOTO)), "has ant/1.jpg twice"),
    "zip: a file that is a folder": (lambda d: zipped(d, ("ant", PHOTO)), "has ant as a file and as a folder"),
    "zip: cut": (lambda d: cut(zipped(d), 100), "no whole zip archive"),
    "zip: a directory of 2 GB": (huge_directory, "a list of members of 2147483648 bytes"),
    "zip: nothing but its signature": (lambda d: named(d, "set.zip", b"PK\3\4" + bytes(50)), "no whole zip archive"),
    "tar: a name twice": (lambda d: tarred(d, ("./ant//1.jpg", PHOTO)), "has ant/1.jpg twice"),
    "tar: cut": (lambda d: cut(tarred(d), 1700), "no whole tar archive"),
    "tar: damaged": (damaged_in_the_middle, "is damaged at byte 1024: no header of a member"),
    "tar: a header of 8 GB": (long_header, "a header of 8589934592 bytes"),
    "tar.gz: a header of 64 MB": (long_header_packed, "a header of 67108864 bytes"),
    "tar.gz: a bomb": (gzip_bomb, "is a decompression bomb"),
    "tar.gz: cut": (lambda d: cut(tarred(d, mode="w:gz", name="set.tar.gz"), 90), "ends too early"),
    "tar.gz: not a tar": (lambda d: named(d, "set.tar.gz", gzip.compress(b"words " * 999)), "no whole tar archive"),
    "gz: damaged": (lambda d: named(d, "set.tgz", b"\x1f\x8b\x08" + bytes(99)), "no whole tar archive"),
    "7z": (lambda d: named(d, "set.7z", b"7z\xbc\xaf\x27\x1c" + bytes(9)), "is a 7z archive"),
    "rar": (lambda d: named(d, "set.rar", b"Rar!\x1a\x07\0"), "is a RAR archive"),
    "tar.xz": (lambda d: tarred(d, mode="w:xz", name="set.tar.xz"), "packed by xz"),
    "tar.bz2": (lambda d: tarred(d, mode="w:bz2", name="set.tar.bz2"), "packed by bzip2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_archive_that_cannot_be_read_in_one_way_is_refused_by_name(tmp_path, name):
    build, told = REFUSED[name]
    archive = build(tmp_path)

    def refuse():
        with pytest.raises(DataError, match="set") as refused:
            list_photos(archive)
        assert str(archive) in str(refused.value)
        assert told in str(refused.value)

    assert flat(refuse) < 2**23
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("build", [zipped, tarred, lambda d: tarred(d, mode="w:gz")])
def test_a_member_is_read_as_it_was_written(tmp_path, build):
    archive = build(tmp_path)
    assert [read_bytes(archive / name) for name in GOOD] == [name.encode() for name in GOOD]
    with pytest.raises(Unreadable, match="does not exist in set"):
        read_bytes(archive / "ant/9.jpg")
    with pytest.raises(Unreadable):
        read_bytes(archive / "ant")


def test_a_member_that_is_not_what_the_directory_says_is_unreadable(tmp_path):
    archive = zipped(tmp_path, (packed_by("ant/3.jpg", zipfile.ZIP_STORED), PHOTO))
    archive.write_bytes(archive.read_bytes().replace(PHOTO, b"A photo"))
    dataset = list_photos(archive)
    assert [(q.path, q.reason) for q in dataset.quarantine] == [
        ("ant/3.jpg", "damaged: it is not what the archive says of it")
    ]


def test_an_archive_that_changes_is_read_anew(tmp_path):
    archive = zipped(tmp_path)
    dataset = list_photos(archive)
    zipped(tmp_path, ("ant/3.jpg", PHOTO))
    assert len(list_photos(archive)) == 5
    assert dataset.read(0) == GOOD[0].encode()


def test_any_place_of_a_packed_tar_is_found(tmp_path, monkeypatch):
    """Points are thinned out, gzip pieces stand one behind another, and members are read in any order."""
    monkeypatch.setattr(gunzip, "MAX_POINTS", 4)
    monkeypatch.setattr(gunzip.Points, "__init__", _close_points)
    data = {f"{name}/{i}.jpg": os.urandom(3000 + i) for name in ("ant", "bee") for i in range(40)}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in data.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = buffer.getvalue()
    pieces = [gzip.compress(whole[i : i + 70_001]) for i in range(0, len(whole), 70_001)]
    archive = named(tmp_path, "set.tgz", b"".join(pieces) + bytes(100))
    points = sources._opened(archive).source.points
    assert 2 <= len(points.starts) <= 4
    for name in reversed(data):
        assert read_bytes(archive / name) == data[name]


def _close_points(self):
    self.starts, self.states, self.spacing, self.ends = [], [], 2**12, {}


def test_a_packed_tar_is_unpacked_once_by_many_threads_that_read_in_order(tmp_path, monkeypatch):
    data = {f"{i:03}.jpg": os.urandom(20_000) for i in range(200)}
    archive = tmp_path / "set.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for name, content in data.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    assert len(sources.members(archive)) == 200
    unpacked, unpack = [], gunzip.Gunzip._unpacked

    def counting(self, limit):
        unpacked.append(part := unpack(self, limit))
        return part

    monkeypatch.setattr(gunzip.Gunzip, "_unpacked", counting)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda name: read_bytes(archive / name), data))
    assert read == list(data.values())
    assert sum(map(len, unpacked)) < 4 * sum(map(len, data.values()))  # from the points alone it would be 30 times


def test_a_splitting_archive_is_split_as_a_folder_is(tmp_path):
    members = [(f"{split}/{name}", name.encode()) for split in ("train", "val") for name in GOOD]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, data in (*members, ("__MACOSX/._x", b""), ("train/ant/.hidden", b"")):
            archive.writestr(name, data)
    dataset = list_photos(tmp_path / "set.zip")
    assert dataset.splits == ("train",) * 4 + ("val",) * 4
    assert dataset.num_found == 8


def test_shards_say_which_samples_have_no_label(tmp_path):
    files = (("1.jpg", b"1"), ("1.cls", b"ant"), ("2.jpg", b"2"), ("3.jpg", b"3"), ("3.cls", b" "), ("4.seg.png", b"4"),
             ("4.jpg", b"5"), ("4.cls", b"bee"), ("5.jpg", b"6"), ("5.json", b'{"label": "bee"}'), ("6.jpg", b"7"),
             ("6.json", b"[]"))  # fmt: skip
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    dataset = list_photos(tmp_path / "set.tar")
    assert dict(zip(dataset.paths, dataset.labels, strict=True)) == {"1.jpg": 0, "5.jpg": 1}
    assert {q.path: q.reason.partition(":")[0] for q in dataset.quarantine} == {
        "2.jpg": "no cls or json beside it",
        "3.jpg": "its label 3.cls is empty",
        "4.seg.png": "one of 2 files of a sample; expected one photo",
        "4.jpg": "one of 2 files of a sample; expected one photo",
        "6.jpg": "its label 6.json cannot be read",
    }


def test_shards_named_by_splits_are_these(tmp_path):
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}-000.tar", "w") as archive:
            for i, name in enumerate(("ant", "bee")):
                for kind, data in (("jpg", f"{split}{i}".encode()), ("cls", name.encode())):
                    info = tarfile.TarInfo(f"{i}.{kind}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    dataset = list_photos(tmp_path / "{train,val}-*.tar")
    assert list(zip(dataset.paths, dataset.splits, strict=True)) == [
        ("train-000.tar/0.jpg", "train"),
        ("train-000.tar/1.jpg", "train"),
        ("val-000.tar/0.jpg", "val"),
        ("val-000.tar/1.jpg", "val"),
    ]
    with pytest.raises(DataError, match="Nothing matches"):
        list_photos(tmp_path / "test-*.tar")


def table(place, name="set.parquet", group=2, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), place / name, row_group_size=group)
    return place / name


IMAGES = [{"bytes": bytes([i]) * (i + 1), "path": f"a/{i}.jpg"} for i in range(5)]


def test_rows_are_read_in_any_order_and_those_without_class_or_image_are_set_aside(tmp_path):
    rows = [*IMAGES, {"bytes": None, "path": "b.jpg"}]
    dataset = list_photos(table(tmp_path, image=rows, kind=["ant", "bee", "ant", None, "bee", "bee"]))
    assert dataset.paths == ("0.jpg", "1.jpg", "2.jpg", "4.jpg")
    assert [dataset.read(i) for i in (3, 0, 2, 1)] == [bytes([i]) * (i + 1) for i in (4, 0, 2, 1)]
    assert {q.path: q.reason for q in dataset.quarantine} == {
        "3.jpg": "no class in the column kind",
        "5.jpg": "the row has no image, and there is no file at its path b.jpg",
    }


def test_a_row_without_bytes_is_the_photo_at_its_path_if_that_is_in_the_tables_folder(tmp_path):
    make = tmp_path / "set"
    make.mkdir()
    for file in (make / "1.jpg", make / "2.jpg", tmp_path / "3.jpg"):
        file.write_bytes(file.name.encode())
    (make / "4.jpg").symlink_to(tmp_path / "3.jpg")
    paths = [str(make / "1.jpg"), "2.jpg", str(tmp_path / "3.jpg"), "../3.jpg", "4.jpg", "/etc/passwd", "gone.jpg"]
    labels = ["ant", "bee", "ant", "ant", "ant", "bee", "bee"]
    dataset = list_photos(table(make, image=[{"bytes": None, "path": path} for path in paths], label=labels))
    assert [dataset.read(i) for i in range(len(dataset))] == [b"1.jpg", b"2.jpg"]
    reasons = [q.reason for q in dataset.quarantine]
    assert all(f"the path {path}, outside the table's folder" in reasons[i] for i, path in enumerate(paths[2:6]))
    assert "there is no file at its path gone.jpg" in reasons[4]


@pytest.mark.parametrize("where", ["image", "path", "label"])
def test_a_table_of_one_value_in_many_rows_is_no_bomb(tmp_path, where):
    """A value of a megabyte stands once in the file, and would stand 400 times in memory."""
    large, count = os.urandom(2**19).hex(), 400
    photo = bytes.fromhex(large) * 2 if where == "image" else b"a photo"
    path = f"a/{large}.jpg" if where == "path" else "a.jpg"
    labels = [f"{i % 2}{large if where == 'label' else ''}" for i in range(count)]
    columns = {"image": [{"bytes": photo, "path": path}] * count, "label": labels}
    options = {"row_group_size": count, "dictionary_pagesize_limit": 2**30, "write_statistics": False}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "set.parquet", **options)
    del columns, labels, photo
    assert (tmp_path / "set.parquet").stat().st_size < 2**23

    pool, usual = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool()), pyarrow.default_memory_pool()

    def read():
        source = sources._opened(tmp_path / "set.parquet").source
        assert len(source.names()) == count
        assert len(set(read_labels(tmp_path / "set.parquet", FolderOptions())[0])) == 2
        for name in source.names():
            with nullcontext() if where == "label" else pytest.raises(Unreadable, match="a decompression bomb"):
                assert source.read(name) == b"a photo"

    pyarrow.set_memory_pool(pool)
    try:
        assert flat(read) < 2**28
    finally:
        pyarrow.set_memory_pool(usual)
    assert pool.max_memory() < 2**28


def test_plain_bytes_are_images_too_and_a_column_of_classes_can_be_named(tmp_path):
    file = table(tmp_path, photo=[b"1", b"2"], kind=["ant", "bee"], spot=["x", "y"])
    with pytest.raises(DataError, match=r"has no column label\. Found .*Choose one with --label-column"):
        list_photos(file)
    dataset = list_photos(file, options=FolderOptions(label_column="Kind"))
    assert (dataset.classes, dataset.read(1)) == (("ant", "bee"), b"2")


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda d: cut(table(d, image=IMAGES, label=[0, 1, 0, 1, 0]), 200), "is damaged, or no Parquet file"),
        (lambda d: named(d, "set.parquet", b"PAR1" + bytes(60) + b"PAR1"), "is damaged, or no Parquet file"),
        (lambda d: table(d, label=[0, 1]), "has no column of images with their bytes"),
        (lambda d: table(d, a=[b"1"], b=[b"2"], label=[0]), "has the columns a, b of images"),
        (lambda d: table(d, image=IMAGES), "has no column label"),
    ],
)
def test_a_table_that_cannot_be_read_in_one_way_is_refused_by_name(tmp_path, build, told):
    with pytest.raises(DataError, match=r"set\.parquet") as refused:
        list_photos(build(tmp_path))
    assert told in str(refused.value)
