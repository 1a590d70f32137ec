"""Files and folders are whole or not there, whatever fails on the way."""

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from regraft.core import files
from regraft.core.errors import OutputError
from regraft.core.files import (
    HOLDER,
    LOCK,
    MARKER,
    PARTIAL,
    exclusive,
    json_bytes,
    make_folder,
    marker_bytes,
    published,
    replace_any,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sweep,
    writable_cache,
    write_atomic,
)
from regraft.core.progress import Progress


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def fail_at(monkeypatch, function: str, call: int = 1, error: type[BaseException] = OSError) -> None:
    """Let the call-th call of `os.<function>` raise, as on a full disk or at Ctrl-C."""
    original, calls = getattr(os, function), iter(range(1, 1000))

    def failing(*args, **kwargs):
        if next(calls) == call:
            raise error(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    monkeypatch.setattr(os, function, failing)


@contextmanager
def files_of_at_most(num_bytes: int):
    """What the system does where a disk is full: writing more than this to a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def process(code: str, *arguments: object):
    """A second Python process, once it has printed its first line; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline().strip() == "ready"
            yield child
        finally:
            child.kill()


def test_a_file_is_written_and_written_over(tmp_path):
    for data in (b"old", b"", b"new" * 1000):
        write_atomic(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == data
        assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [{}, {"file": "old"}])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, step, error, before):
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    fail_at(monkeypatch, step, error=error)
    with pytest.raises(OutputError if error is OSError else KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert content(tmp_path) == before


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with files_of_at_most(1000), pytest.raises(OutputError, match=f"Cannot write {path}: file too large"):
        write_atomic(path, b"x" * 5000)
    assert content(tmp_path) == {"file": "old"}


def test_writing_below_a_file_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a directory"):
        write_atomic(tmp_path / "file" / "below", b"")


def test_a_kill_while_writing_leaves_old_or_new(tmp_path):
    code = """if True:
        import itertools, pathlib, sys
        from regraft.core.files import write_atomic
        for letter in itertools.cycle((b"a", b"b")):
            write_atomic(pathlib.Path(sys.argv[1]), letter * 2_000_000)
            print("ready", flush=True)
    """
    with process(code, tmp_path / "file") as child:
        time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        child.wait()
    data = (tmp_path / "file").read_bytes()
    assert len(data) == 2_000_000
    assert len(set(data)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == ["file"]


def test_hashes_agree(tmp_path):
    write_atomic(tmp_path / "file", b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "file") == sha256_bytes(b"abc") == expected


def test_the_hash_of_json_ignores_the_order_of_keys_only():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


@pytest.mark.parametrize("value", [{"é": "日本"}, ["bytes that are not UTF-8: \udcff"], 0.1, None])
def test_json_is_utf8_and_comes_back(value):
    data = json_bytes(value)
    assert json.loads(data.decode()) == value
    assert data.endswith(b"\n")


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    folder = make_folder(tmp_path / "a" / "b")
    assert names(make_folder(folder)) == []


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named_with_its_purpose(tmp_path, where):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=f"Cannot write to the cache {tmp_path / where}: "):
        make_folder(tmp_path / where, kind="cache")


def test_a_folder_that_takes_no_files_is_refused():
    with pytest.raises(OutputError, match="Cannot write to the folder /proc/self: "):
        make_folder(Path("/proc/self"))


def test_the_cache_is_where_the_environment_says(empty_cache, capsys):
    assert writable_cache("graphs", Progress()) == empty_cache / "graphs"
    assert (empty_cache / "graphs").is_dir()
    assert capsys.readouterr() == ("", "")


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_one(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "file" / "below"))
    folder = writable_cache("graphs", Progress())
    write_atomic(folder / "file", b"")
    assert writable_cache("graphs", Progress(quiet=True)) == folder
    assert not folder.is_relative_to(tmp_path)
    assert f"Cannot write to the cache {tmp_path}/file/below/graphs" in capsys.readouterr().err
    files.temporary_folder().cleanup()
    files.temporary_folder.cache_clear()


def publish(final: Path, texts: dict[str, str], error: BaseException | None = None) -> None:
    with published(final, replace_any) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text)
        if error:
            raise error


def test_a_folder_is_published_and_replaced_as_a_whole(tmp_path):
    final = tmp_path / "new" / "final"
    for texts in ({"a": "1", "b": "1"}, {"b": "2"}, {}):
        publish(final, texts)
        assert content(final) == texts
        assert names(final.parent) == ["final"]


def test_nothing_is_seen_before_it_is_whole(tmp_path):
    with published(tmp_path / "final") as partial:
        (partial / "a").touch()
        assert not (tmp_path / "final").exists()
        assert partial.parent.name.startswith(PARTIAL)


@pytest.mark.parametrize(
    ("error", "seen"),
    [(ValueError("no"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "Full"), OutputError)],
)
@pytest.mark.parametrize("before", [None, {"a": "old"}])
def test_a_block_that_fails_publishes_nothing_and_keeps_the_old(tmp_path, error, seen, before):
    if before is not None:
        publish(tmp_path / "final", before)
    with pytest.raises(seen):
        publish(tmp_path / "final", {"a": "new"}, error)
    assert names(tmp_path) == ([] if before is None else ["final"])
    assert before is None or content(tmp_path / "final") == before


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_rename_that_fails_keeps_the_old_folder(tmp_path, monkeypatch, call, error):
    publish(tmp_path / "final", {"a": "old"})
    fail_at(monkeypatch, "replace", call, error)
    with pytest.raises(OutputError if error is OSError else KeyboardInterrupt):
        publish(tmp_path / "final", {"a": "new"})
    assert names(tmp_path) == ["final"]
    assert content(tmp_path / "final") == {"a": "old"}


def test_a_file_or_a_link_in_the_way_is_replaced_and_the_link_not_followed(tmp_path):
    publish(tmp_path / "elsewhere", {"a": "kept"})
    (tmp_path / "link").symlink_to("elsewhere")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        publish(tmp_path / name, {"a": "new"})
        assert content(tmp_path / name) == {"a": "new"}
    assert names(tmp_path) == ["elsewhere", "file", "link"]
    assert content(tmp_path / "elsewhere") == {"a": "kept"}


def test_many_may_publish_the_same_folder_at_once(tmp_path):
    start = threading.Barrier(8)

    def write(number: int) -> None:
        for _ in range(10):
            start.wait(10)
            publish(tmp_path / "final", {"a": str(number), "b": str(number)})

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write, number) for number in range(8)]:
            done.result()
    assert names(tmp_path) == ["final"]
    assert len(set(content(tmp_path / "final").values())) == 1


IN_THE_WAY = {
    "a full folder": lambda path: (path.mkdir(), (path / "own").touch()),
    "a file": lambda path: path.touch(),
    "a link to a folder": lambda path: path.symlink_to("elsewhere"),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_nothing_is_replaced_unasked(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    IN_THE_WAY[kind](tmp_path / "final")
    before = sorted((str(path), path.lstat().st_ino) for path in tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"{tmp_path / 'final'} is there already"), published(tmp_path / "final"):
        pass
    assert sorted((str(path), path.lstat().st_ino) for path in tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "final").mkdir()
    with published(tmp_path / "final") as partial:
        (partial / "a").touch()
    assert names(tmp_path / "final") == ["a"]


def workspace_of_a_killed_writer(folder: Path, final: str = "bundle") -> Path:
    place = folder / f"{PARTIAL}{0:032x}"
    place.mkdir(parents=True)
    (place / MARKER).write_bytes(marker_bytes(final=final))
    return place


def test_sweeping_removes_leftovers_only(tmp_path):
    (tmp_path / f"{PARTIAL}{1:032x}").touch()
    (tmp_path / f"{PARTIAL}{2:032x}").mkdir()
    (workspace_of_a_killed_writer(tmp_path) / "new" / "full").mkdir(parents=True)
    own = [".partial-mine", f"{PARTIAL}notes", f"{PARTIAL}{3:031x}", f"{PARTIAL}{3:032x}-2", "kept"]
    for name in (*own, f"{PARTIAL}{4:032x}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").touch()
    (tmp_path / f"{PARTIAL}notes.txt").touch()
    sweep(tmp_path)
    assert names(tmp_path) == sorted([*own, f"{PARTIAL}{4:032x}", f"{PARTIAL}notes.txt"])
    assert all(names(folder) == ["a"] for folder in tmp_path.iterdir() if folder.is_dir())


HOLD = """if True:
    import pathlib, sys, time
    from regraft.core.files import exclusive
    with exclusive(pathlib.Path(sys.argv[1])):
        print("ready", flush=True)
        time.sleep(60)
"""


def test_a_second_run_is_refused_by_name_until_the_holder_is_killed(tmp_path):
    folder = tmp_path / "run"
    with process(HOLD, folder) as child:
        holder = f"{folder} is in use by process {child.pid} on {socket.gethostname()}"
        with pytest.raises(OutputError, match=holder), exclusive(folder):
            raise AssertionError("two runs have one folder")
        child.send_signal(signal.SIGKILL)
        child.wait()
        with exclusive(folder):
            assert str(os.getpid()) in (folder / HOLDER).read_text()
    assert not (folder / HOLDER).exists()


def test_a_folder_is_free_again_after_a_failure(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), exclusive(tmp_path):
            raise ValueError("no")


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path):
    with exclusive(tmp_path), pytest.raises(OutputError, match="in use by process"), exclusive(tmp_path):
        raise AssertionError("two runs have one folder")


def test_a_full_disk_leaves_the_folder_free(tmp_path):
    with files_of_at_most(1), pytest.raises(OutputError, match="Cannot write"), exclusive(tmp_path):
        raise AssertionError("the holder cannot be named")
    with exclusive(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["a link", "a folder", "a full file"])
def test_a_lock_that_is_not_ours_is_refused_by_name(tmp_path, kind):
    path, own = tmp_path / "run" / LOCK, tmp_path / "own"
    path.parent.mkdir()
    own.write_text("mine")
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link":
        path.symlink_to(own)
    else:
        path.write_text("mine")
    with pytest.raises(OutputError, match=f"{path} is no lock"), exclusive(tmp_path / "run"):
        raise AssertionError("a lock of somebody else's was taken")
    assert own.read_text() == "mine"
    assert kind != "a full file" or path.read_text() == "mine"


def test_files_named_as_locks_of_earlier_versions_are_the_users(tmp_path):
    (tmp_path / "own").write_text("mine")
    (tmp_path / ".lock").symlink_to("own")
    (tmp_path / ".holder").write_text("mine too")
    with exclusive(tmp_path):
        pass
    assert (tmp_path / "own").read_text() == "mine"
    assert (tmp_path / ".holder").read_text() == "mine too"


def test_sweep_brings_back_a_folder_whose_writer_died_before_the_new_one_was_there(tmp_path):
    place = workspace_of_a_killed_writer(tmp_path)
    (place / "old").mkdir()
    (place / "old" / "a").touch()
    (place / "new").mkdir()
    sweep(tmp_path)
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["bundle", "a"]


def test_sweep_removes_what_stood_aside_once_the_new_folder_is_there(tmp_path):
    (workspace_of_a_killed_writer(tmp_path) / "old").mkdir()
    (tmp_path / "bundle").mkdir()
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("final", ["", ".", "..", "../bundle", "/tmp/bundle", 3])
def test_sweep_puts_nothing_outside_the_folder(tmp_path, final):
    place = workspace_of_a_killed_writer(tmp_path / "run", final)
    (place / "old").mkdir()
    sweep(tmp_path / "run")
    assert [p.name for p in tmp_path.rglob("*")] == ["run"]


def test_sweep_of_a_shared_folder_spares_what_is_young(tmp_path):
    for number, age in ((1, 10), (2, 1000)):
        (tmp_path / f"{PARTIAL}{number:032x}").touch()
        os.utime(tmp_path / f"{PARTIAL}{number:032x}", (time.time() - age,) * 2)
    sweep(tmp_path, older_than_s=100)
    assert [p.name for p in tmp_path.iterdir()] == [f"{PARTIAL}{1:032x}"]
