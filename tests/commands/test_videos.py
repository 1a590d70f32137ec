"""Videos where answers are wanted: each frame is a photo, and the frames of one video may have one answer."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from conftest import COLOURS
from regraft.bundle.bundle import load
from tiny_bundle import write_tiny
from tiny_video import write_video

NUM_FRAMES, RATE = 9, 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "bundle"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Lossless videos of three seconds, a photo, and a file that is no video; beside them every third frame."""
    root = tmp_path_factory.mktemp("clips")
    for name, colour in COLOURS.items():
        rng = np.random.default_rng(len(name))
        frames = [rng.normal(colour, 20, (40, 48, 3)).clip(0, 255).astype(np.uint8) for _ in range(NUM_FRAMES)]
        path = root / "videos" / f"{name}.mkv"
        write_video(path, frames, RATE)
        for second, frame in enumerate(frames[::RATE]):
            place = root / "frames" / path.name / f"{1000 * second:010d}.ppm"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(place)
    Image.fromarray(frames[0]).save(root / "videos" / "photo.png")
    return root


def answers(done, root):
    return {one.pop("path").removeprefix(f"{root}/"): one for one in map(json.loads, done.stdout.splitlines())}


def test_a_frame_is_answered_as_the_photo_that_it_is(tiny, clips, regraft_main):
    done = regraft_main("predict", tiny.folder, clips / "videos", "--every", "1s", "--json")
    assert done.returncode == 0
    found = answers(done, clips / "videos")
    assert found.pop("photo.png")["label"]
    assert len(found) == 3 * len(COLOURS)
    assert found == answers(regraft_main("predict", tiny.folder, clips / "frames", "--json"), clips / "frames")
    alone = regraft_main("predict", tiny.folder, clips / "videos" / "red.mkv", "--every", "2s", "--json")
    assert list(answers(alone, clips / "videos")) == ["red.mkv/0000000000.ppm", "red.mkv/0000002000.ppm"]


def test_frames_of_a_video_vote(tiny, clips, regraft_main):
    words = ("predict", tiny.folder, "--vote-by", "([a-z]+)[.]mkv", "--format", "csv")
    voted = regraft_main(*words, clips / "videos", "--every", "1s")
    rows = {row.pop("group"): row for row in csv.DictReader(io.StringIO(voted.stdout))}
    assert rows.pop(str(clips / "videos" / "photo.png"))["photos"] == "1"
    of_frames = csv.DictReader(io.StringIO(regraft_main(*words, clips / "frames").stdout))
    assert rows == {row.pop("group"): row for row in of_frames}
    assert {row["photos"] for row in rows.values()} == {"3"}


def test_frames_are_sorted_and_embedded(tiny, clips, tmp_path, regraft_main):
    (tmp_path / "videos").mkdir()
    for path in (clips / "videos").glob("*.mkv"):
        (tmp_path / "videos" / path.name).write_bytes(path.read_bytes())
    done = regraft_main("predict", tiny.folder, tmp_path / "videos", "--every", "1s", "--sort", tmp_path / "sorted")
    assert done.returncode == 0
    put = {path.read_bytes() for path in (tmp_path / "sorted").rglob("*.ppm")}
    assert put == {path.read_bytes() for path in (clips / "frames").rglob("*.ppm")}
    for name in ("videos", "frames"):
        every = ("--every", "1s") if name == "videos" else ()
        out = tmp_path / f"{name}.npy"
        assert regraft_main("embed", clips / name, "-o", out, "--bundle", tiny.folder, *every).returncode == 0
    x, of_frames = np.load(tmp_path / "videos.npy"), np.load(tmp_path / "frames.npy")
    assert len(x) == len(of_frames) + 1
    assert {row.tobytes() for row in of_frames} <= {row.tobytes() for row in x}


def test_without_every_a_video_is_told_and_a_damaged_one_is_no_photo(tiny, clips, tmp_path, regraft_main):
    done = regraft_main("predict", tiny.folder, clips / "videos" / "red.mkv")
    assert (done.returncode, done.stdout) == (1, "")
    assert "red.mkv is a video. Expected photos. Read a frame a second of it with --every 1s." in done.stderr
    done = regraft_main("predict", tiny.folder, clips / "videos", "--json")
    assert done.returncode == 1
    assert sum("error" in one for one in answers(done, clips).values()) == len(COLOURS)
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    done = regraft_main("predict", tiny.folder, tmp_path / "clip.mp4", "--every", "1s", "--json")
    assert done.returncode == 1
    assert len(answers(done, tmp_path)) == 1
    assert "Traceback" not in done.stderr
    assert "not read: " in done.stderr
