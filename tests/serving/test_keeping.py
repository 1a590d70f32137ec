"""A server keeps photos only where it is told to, never more bytes than allowed, under names that no client chooses."""

import asyncio
import errno
import os

import pytest

from conftest import COLOURS, draw, rewrite_manifest, serving
from regraft.core.errors import OutputError
from regraft.core.files import sha256_bytes, write_atomic
from regraft.data.units import share_at
from regraft.serving import keeping as module
from regraft.serving.keeping import BLOCK, KINDS, SAMPLED, Keep, keeping
from tiny_bundle import write_tiny

SURE = {"label": "a", "probability": 0.9, "looks_new": False, "unsure": False}
UNSURE, NEW = {**SURE, "probability": 0.4}, {**SURE, "looks_new": True}


def kept(folder) -> dict[str, int]:
    """Files and their sizes, regraft's own left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def consider(keep, photos, answers, least_sure=0.5):
    with keeping(keep) as keeper:
        asyncio.run(keeper.consider(photos, answers, least_sure))


def test_unsure_new_and_a_sample_are_kept_and_others_are_not(tmp_path):
    photos = [b"\xff\xd8\xff unsure", b"\x89PNG\r\n\x1a\n new", b"bad", *(b"BM%d" % i for i in range(1000))]
    consider(Keep(tmp_path / "k"), photos, [UNSURE, NEW, {"error": "no photo"}, *[SURE] * 1000])
    found = kept(tmp_path / "k")
    assert f"unsure/{sha256_bytes(photos[0])}.jpg" in found
    assert f"new/{sha256_bytes(photos[1])}.png" in found
    drawn = {f"sample/{sha256_bytes(one)}.bmp" for one in photos[3:] if share_at(0, sha256_bytes(one)) < SAMPLED}
    assert found.keys() - drawn == {f"unsure/{sha256_bytes(photos[0])}.jpg", f"new/{sha256_bytes(photos[1])}.png"}
    assert drawn <= found.keys()
    assert 0 < len(drawn) < 30
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o700


def test_there_are_never_more_bytes_than_allowed(tmp_path):
    room = 3 * 10 * BLOCK
    photos = [b"\xff\xd8\xff%05d" % i + b"x" * (i % 3) * 3000 for i in range(200)]
    for _ in range(2):  # a server that begins again counts what is there
        consider(Keep(tmp_path / "k", room), photos, [UNSURE] * 200)
        sizes = kept(tmp_path / "k").values()
        assert sum(max(BLOCK, size) for size in sizes) <= room // 3
        assert len(sizes) >= 6
    consider(Keep(tmp_path / "k", room), [b"\xff\xd8\xff new"], [NEW])
    assert len([name for name in kept(tmp_path / "k") if name.startswith("new/")]) == 1  # its part is its own
    before = kept(tmp_path / "k")
    consider(Keep(tmp_path / "k", 10), photos, [NEW] * 200)
    assert kept(tmp_path / "k") == before


def test_requests_at_the_same_time_do_not_keep_more_together(tmp_path):
    photos = [b"\xff\xd8\xff%05d" % i for i in range(60)]

    async def all_at_once(keeper):
        await asyncio.gather(*(keeper.consider([one], [UNSURE], 0.5) for one in photos))

    with keeping(Keep(tmp_path / "k", 3 * 7 * BLOCK)) as keeper:
        asyncio.run(all_at_once(keeper))
    assert len(kept(tmp_path / "k")) == 7


def test_a_photo_is_kept_once_and_nothing_is_written_over(tmp_path):
    data = b"\xff\xd8\xff photo"
    mine = tmp_path / "k" / "sample" / f"{sha256_bytes(data)}.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    consider(Keep(tmp_path / "k"), [data, data], [UNSURE, NEW])
    assert kept(tmp_path / "k") == {mine.relative_to(tmp_path / "k").as_posix(): 4}


def test_a_full_disk_or_a_kill_leaves_no_part_and_no_lost_room(tmp_path, monkeypatch, caplog):
    def full(path, data):
        (path.parent / f".regraft-partial-{'0' * 32}").write_bytes(data[:4])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with keeping(Keep(tmp_path / "k")) as keeper:
        asyncio.run(keeper.consider([b"\xff\xd8\xff 1", b"\xff\xd8\xff 2"], [UNSURE, UNSURE], 0.5))
        assert keeper.used == dict.fromkeys(KINDS, 0)
    assert [one.message for one in caplog.records if "could not be kept" in one.message] != []
    assert len(caplog.records) == 1
    monkeypatch.setattr(module, "write_atomic", write_atomic)
    consider(Keep(tmp_path / "k"), [b"\xff\xd8\xff 1"], [UNSURE])
    assert [path.name[-4:] for path in (tmp_path / "k" / "unsure").iterdir()] == [".jpg"]


def test_a_folder_that_leads_elsewhere_or_is_in_use_is_refused(tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "unsure").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="is a link"), keeping(Keep(tmp_path / "k")):
        pass
    with keeping(Keep(tmp_path / "j")), pytest.raises(OutputError, match="in use"), keeping(Keep(tmp_path / "j")):
        pass


@pytest.mark.processes
def test_a_server_keeps_what_it_is_told_to_and_answers_as_before(tmp_path):
    folder = write_tiny(tmp_path / "bundle")
    rewrite_manifest(folder, thresholds={"n": 6, "max_error": [[0.3, 0.999, 1.0]], "coverage": []})
    photo = draw(tmp_path / "p.jpg", COLOURS["red"], 1).read_bytes()
    form = (
        b'--x\r\nContent-Disposition: form-data; name="photo"; filename="../../../evil.sh"\r\n\r\n'
        + photo
        + b"\r\n--x--\r\n"
    )
    with serving(folder, "--workers", "1", "--keep", "kept", "--keep-bytes", "1MB", cwd=tmp_path) as server:
        assert server.predict(b"no photo").status == 400
        answer = server.ask("POST", "/v1/predict", form, "multipart/form-data; boundary=x")
        assert answer.json["predictions"][0]["unsure"] is False  # what is answered stays as it was
        assert "photos are kept in kept" in server.said.read_text()
    assert kept(tmp_path / "kept") == {f"unsure/{sha256_bytes(photo)}.jpg": len(photo)}
    assert sorted(os.listdir(tmp_path)) == ["bundle", "kept", "p.jpg"]
