"""Places that cannot be written, and surroundings without what one takes for granted. (Rows F2, F8 and F9.)"""

import itertools
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import TESTS, draw_folder
from faults.processes import IS_LONG, mostly_long, nursery, record, toy
from regraft.core.config import FolderOptions
from regraft.data.folder_layout import list_folder

pytestmark = pytest.mark.slow


@contextmanager
def read_only(folder: Path):
    """A folder that nobody can write to, root neither."""
    bind = ["mount", "--bind", folder, folder]
    if os.geteuid() != 0 or subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos and the options of a small network."""
    folder = tmp_path_factory.mktemp("place")
    return draw_folder(folder / "photos", ("red", "green", "blue"), 6), toy(folder / "toy")


def environment(tmp_path, **changes: str) -> dict[str, str]:
    """Variables that point into a folder of this test's own."""
    for name in ("cache", "home", "temporary", "out"):
        (tmp_path / name).mkdir(exist_ok=True)
    own = {"REGRAFT_CACHE": tmp_path / "cache", "HOME": tmp_path / "home", "TMPDIR": tmp_path / "temporary"}
    return {name: str(value) for name, value in own.items()} | changes


WHAT = ("photos", "cache", "home", "temporary", "out")


@pytest.mark.parametrize(
    ("mode", "what"),
    mostly_long(
        itertools.product(("frozen", "full"), WHAT), *(("frozen", what) for what in WHAT), ("full", "temporary")
    ),
)
def test_places_that_cannot_be_written(place, traced, tmp_path, record_property, mode, what):
    photos, options = place
    if not IS_LONG and what in ("photos", "temporary"):
        shutil.copytree(traced, tmp_path / "cache")
    env = environment(tmp_path, **({"REGRAFT_CACHE": "", "XDG_CACHE_HOME": ""} if what == "home" else {}))
    folder = photos if what == "photos" else tmp_path / what
    command = ("train", photos, *options, "--mode", mode, "--json", "--out", tmp_path / "out" / "run")
    command += ("--epochs", 1) if mode == "full" else ()
    with read_only(folder):
        ended = nursery().run(*command, **env)
        cached = list((tmp_path / "cache").rglob("*.*"))
        scanned = nursery().run("scan", photos, "--fast", "--json", **env)
    assert scanned.code == 0, scanned.stderr
    assert "Traceback" not in ended.stderr
    if what == "out":
        assert ended.code == 1
        assert cached == [], "it worked before it refused"
        assert str(tmp_path / "out") in ended.stderr.splitlines()[-1]
    else:
        assert ended.summary["accuracy"]["n"] > 0
    told = [line for line in ended.stderr.splitlines() if "Going on without" in line]
    assert len(told) == (1 if what in ("cache", "home") else 0) or what == "out", ended.stderr
    record(record_property, f"F2-{mode}-{what}", code=ended.code)


SURROUNDINGS = {
    "no network": (["unshare", "-n"], {}),
    "an empty home": ([], {"HOME": "/nonexistent"}),
    "no locale": ([], {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "a safe path": ([], {"PYTHONSAFEPATH": "1"}),
    "a bare environment": (
        [],
        {"HOME": "/nonexistent", "LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONSAFEPATH": "1"},
    ),
    "a working folder that is gone": (["sh", "-c", 'mkdir gone; cd gone; rmdir ../gone; exec "$@"', "sh"], {}),
}


@pytest.fixture(scope="module")
def traced(place, tmp_path_factory) -> Path:
    """A cache that has the network's graph."""
    photos, options = place
    folder = tmp_path_factory.mktemp("traced")
    words = ("train", photos, *options, "--mode", "frozen", "--no-report", "--out", folder / "run")
    assert nursery().run(*words, REGRAFT_CACHE=str(folder / "cache")).code == 0
    return folder / "cache"


HARDEST = [("train", "no network"), ("train", "a bare environment"), ("train", "a working folder that is gone")]


@pytest.mark.parametrize(
    ("command", "name"),
    mostly_long(itertools.product(["train", "scan"], SURROUNDINGS), *HARDEST, ("scan", "a bare environment")),
)
def test_surroundings_without_what_one_takes_for_granted(place, traced, tmp_path, record_property, name, command):
    photos, options = place
    prefix, changes = SURROUNDINGS[name]
    if "LC_ALL" in changes and not str(TESTS).isascii():
        pytest.skip("without a locale Python itself does not start where an editable install lies at such a path")
    if not IS_LONG and name != "no network":
        shutil.copytree(traced, tmp_path / "cache")
    words = ["scan", photos, "--fast", "--json"]
    if command == "train":
        words = ["train", photos, *options, "--mode", "frozen", "--json", "--out", tmp_path / "out" / "run"]
    env = {**os.environ, **environment(tmp_path), "PYTHONPATH": str(TESTS / "blocked"), **changes}
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "regraft", *map(str, words)],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode and prefix and prefix[0] == "unshare" and "unshare" in done.stderr:
        pytest.skip("a namespace without network is not allowed here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")
    record(record_property, f"F8-{command}-{name.replace(' ', '-')}", code=done.returncode)


LIST = """
import collections, re, sys
from pathlib import Path
from regraft.data.folder_layout import list_folder
from regraft.core.config import FolderOptions
asked = collections.Counter()
sys.addaudithook(lambda event, _: asked.update([event]))
listing = list_folder(Path(sys.argv[1]), FolderOptions("top"))
num_listed, num_opened = asked["os.scandir"] + asked["os.listdir"], asked["open"]
peak = re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]
print(len(listing.files), num_listed, num_opened, int(peak) / 1024)
"""


def test_very_many_paths_are_listed(tmp_path, record_property):
    count = 1_000_000 if IS_LONG else 20_000
    for number in range(count // 1000):
        folder = tmp_path / "photos" / f"class{number % 10}" / f"part{number}"
        folder.mkdir(parents=True)
        for i in range(1000):
            os.mknod(folder / f"{i}.jpg")
    assert len(list_folder(tmp_path / "photos", FolderOptions("top")).files) == count
    done = subprocess.run([sys.executable, "-c", LIST, tmp_path / "photos"], capture_output=True, text=True, check=True)
    found, num_listed, num_opened, megabytes = map(float, done.stdout.split())
    assert found == count
    assert num_listed <= 2 * (1 + 10 + count // 1000), "every folder is read once or twice"
    assert num_opened == 0, "to list photos is not to open them"
    assert megabytes < 1000
    record(record_property, "F9", paths=count, folders_read=num_listed, megabytes=round(megabytes))


def test_a_pipe_does_not_hang(tmp_path):
    photos = draw_folder(tmp_path / "photos", ("a", "b"), 2)
    os.mkfifo(photos / "a" / "pipe.jpg")
    assert nursery().run("scan", photos, "--fast", "--json", "--strict").code == 1
