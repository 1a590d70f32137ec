"""Photos are sorted into class folders and out again, and nothing that is a person's is lost on the way."""

import errno
import json
import os

import pytest

from regraft.core.errors import DataError, OutputError
from regraft.core.files import sha256_bytes
from regraft.core.ownership import record
from regraft.data import sorting
from regraft.data.scan import list_photos
from regraft.data.sorting import RECORD, sort_photos, undo


@pytest.fixture
def heap(tmp_path):
    """Four files, two of which have one name."""
    for name in ("a.jpg", "b.jpg", "more/a.jpg", "more/c.jpg"):
        path = tmp_path / "heap" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"photo {name}".encode())
    return tmp_path / "heap"


def listing(folder) -> dict[str, bytes]:
    """All that can be seen below a folder."""
    visible = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in visible}


@pytest.fixture(params=["links", "copies"])
def way(request, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "another disk")

    if request.param == "copies":
        monkeypatch.setattr(os, "link", refuse)
    return request.param


def test_photos_go_into_class_folders_and_out_again(heap, tmp_path, way):
    out, before = tmp_path / "out" / "sorted", listing(heap)
    given = [
        (heap / "a.jpg", "cat"),
        (heap / "more/a.jpg", "cat"),
        (heap / "b.jpg", "bird/owl"),
        (heap / "b.jpg", "dog"),
    ]
    assert sort_photos(given, out) == 3
    assert listing(out) == {
        "cat/a.jpg": b"photo a.jpg",
        "cat/a-2.jpg": b"photo more/a.jpg",
        "dog/b.jpg": b"photo b.jpg",
    }
    assert (out / "dog/b.jpg").samefile(heap / "b.jpg") == (way == "links")
    dataset = list_photos(out)
    assert dataset.counts == {"cat": 2, "dog": 1}
    assert dataset.quarantine == ()
    assert undo(out) == sorting.UndoneSorting(3)
    assert not out.exists()
    assert listing(heap) == before


def test_what_a_person_changed_or_added_stays(heap, tmp_path, way):
    out = tmp_path / "out"
    (out / "cat").mkdir(parents=True)
    (out / "cat" / "A.JPG").write_bytes(b"mine")
    sort_photos([(path, "cat") for path in sorted(heap.rglob("*.jpg"))], out)
    assert (out / "cat/a-2.jpg").read_bytes() == b"photo a.jpg"  # A.JPG is the same name on other file systems
    (out / "cat/b.jpg").unlink()
    (out / "cat/b.jpg").write_bytes(b"drawn over")
    (out / "dog").mkdir()
    (out / "cat/c.jpg").rename(out / "dog/c.jpg")
    undone = undo(out)
    assert (undone.num_removed, undone.kept) == (2, (out / "cat/b.jpg",))
    assert listing(out) == {"cat/A.JPG": b"mine", "cat/b.jpg": b"drawn over", "dog/c.jpg": b"photo more/c.jpg"}
    assert sorted(path.name for path in out.iterdir()) == ["cat", "dog"]
    with pytest.raises(DataError, match=r"Nothing was sorted into .*out\. Expected"):
        undo(out)


def test_the_last_copy_of_a_photo_is_never_removed(heap, tmp_path, way):
    out = tmp_path / "out"
    sort_photos([(heap / "a.jpg", "cat"), (heap / "b.jpg", "cat")], out)
    (heap / "a.jpg").unlink()
    (heap / "b.jpg").unlink()
    (heap / "b.jpg").write_bytes(b"edited")  # the sorted file is the only one left of what it was
    assert undo(out) == sorting.UndoneSorting(0, (out / "cat/a.jpg", out / "cat/b.jpg"))
    assert listing(out) == {"cat/a.jpg": b"photo a.jpg", "cat/b.jpg": b"photo b.jpg"}


def test_a_photo_that_became_a_link_to_the_sorted_one_is_not_lost(heap, tmp_path, way):
    out = tmp_path / "out"
    sort_photos([(heap / "a.jpg", "cat")], out)
    (heap / "a.jpg").unlink()
    (heap / "a.jpg").symlink_to(out / "cat/a.jpg")
    assert undo(out).num_removed == 0
    assert (heap / "a.jpg").read_bytes() == b"photo a.jpg"


def test_sorting_again_moves_only_what_has_another_class(heap, tmp_path, way):
    out = tmp_path / "out"
    sort_photos([(heap / "a.jpg", "cat"), (heap / "b.jpg", "dog")], out)
    inode = (out / "cat/a.jpg").stat().st_ino
    assert sort_photos([(heap / "a.jpg", "cat"), (heap / "b.jpg", "cat"), (heap / "more/a.jpg", "Cat")], out) == 3
    assert listing(out) == {
        "cat/a.jpg": b"photo a.jpg",
        "cat/b.jpg": b"photo b.jpg",
        "Cat-2/a.jpg": b"photo more/a.jpg",
    }
    assert (out / "cat/a.jpg").stat().st_ino == inode
    assert not (out / "dog").exists()
    undo(out)
    assert not out.exists()


@pytest.mark.parametrize(
    "label", ["..", ".", "", "/", "/etc", "../../x", "a/../..", ".hidden", "CON", "nul.txt", "a:b", "x ", "%"]
)
def test_no_class_name_leads_out_or_hides(heap, tmp_path, label):
    out = tmp_path / "deep" / "out"
    sort_photos([(heap / "a.jpg", label), (heap / "b.jpg", "plain")], out)
    (name,) = [name for name, data in listing(out).items() if data == b"photo a.jpg"]
    assert len(listing(tmp_path)) == 6
    assert name.split("/")[0].upper() not in ("CON", "NUL.TXT")
    assert not set(':"*?<>|\\') & set(name)
    undo(out)
    assert not out.exists()


def test_photos_in_the_folder_itself_are_refused(heap, tmp_path):
    (tmp_path / "link").symlink_to(heap)
    for out in (heap, tmp_path / "link", tmp_path):
        with pytest.raises(OutputError, match=r"a\.jpg is in .* Choose a folder beside the photos"):
            sort_photos([(heap / "a.jpg", "cat")], out)
    assert len(listing(tmp_path)) == 4
    assert not (heap / RECORD).exists()


def test_a_folder_that_leads_elsewhere_is_not_written_to(heap, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "cat").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="leads out of"):
        sort_photos([(heap / "a.jpg", "cat")], out)
    assert list(elsewhere.iterdir()) == []


def test_a_list_that_somebody_changed_removes_nothing(heap, tmp_path):
    out = tmp_path / "out"
    sort_photos([(heap / "a.jpg", "cat")], out)
    other = {"source": str(tmp_path / "copy.jpg"), "label": "cat", "name": "../heap/a.jpg"}
    (tmp_path / "copy.jpg").write_bytes((heap / "a.jpg").read_bytes())
    data = json.dumps(other).encode()
    (out / RECORD).write_bytes(data)
    with pytest.raises(OutputError, match="not as regraft wrote it"):
        undo(out)
    record(out, {RECORD: [sha256_bytes(data)]})  # and where the marker was changed with it
    assert undo(out).num_removed == 0
    assert (heap / "a.jpg").exists()


def test_a_sorting_that_was_cut_is_continued_and_undone(heap, tmp_path, way, monkeypatch):
    out, put = tmp_path / "out", sorting._put
    given = [(path, "cat") for path in sorted(heap.rglob("*.jpg"))]

    def cut(place, placed):
        if placed.source.endswith("b.jpg"):
            raise KeyboardInterrupt
        put(place, placed)

    monkeypatch.setattr(sorting, "_put", cut)
    for finish in (False, True):
        with pytest.raises(KeyboardInterrupt):
            sort_photos(given, out)
        assert listing(out) == {"cat/a.jpg": b"photo a.jpg"}
        if finish:
            monkeypatch.setattr(sorting, "_put", put)
            assert sort_photos(given, out) == 4
            assert len(listing(out)) == 4
        undo(out)
        assert not out.exists()
