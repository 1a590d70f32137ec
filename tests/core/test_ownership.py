"""What regraft made itself is known again; nothing else is replaced or removed."""

import json
import os

import pytest

from regraft.core import ownership
from regraft.core.errors import OutputError
from regraft.core.files import MARKER, PARTIAL, write_atomic
from regraft.core.ownership import (
    check,
    foreign,
    is_sealed,
    output_folder,
    record,
    remove_made,
    seal_text,
    write_output,
)


def publish(final, **texts: str) -> None:
    with output_folder(final) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text)


def listing(folder) -> dict[str, bytes | str]:
    """All below a folder: contents of files, targets of links."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_file_that_regraft_wrote_is_written_over(tmp_path):
    for data in (b"1", b"2", b"2", b"3"):
        write_output(tmp_path / "new" / "result.json", data)
        assert (tmp_path / "new" / "result.json").read_bytes() == data
    assert foreign(tmp_path / "new") is None


def test_a_file_that_was_changed_since_is_the_users(tmp_path):
    path = tmp_path / "suspects.csv"
    write_output(path, b"label")
    path.write_bytes(b"another label")
    with pytest.raises(OutputError, match=f"^{path} is there already, and is not as regraft wrote it.*--out"):
        write_output(path, b"label")
    assert path.read_bytes() == b"another label"


@pytest.mark.parametrize("kind", ["file", "link", "folder", "pipe"])
def test_what_somebody_else_put_there_stays(tmp_path, kind):
    path = tmp_path / "result.json"
    (tmp_path / "own").write_text("mine")
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to("own")
    elif kind == "folder":
        path.mkdir()
        (path / "a").touch()
    else:
        os.mkfifo(path)
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=str(path)):
        write_output(path, b"new")
    remove_made(path)
    assert os.path.lexists(path)
    assert listing(tmp_path) == before


def test_a_link_to_what_regraft_made_is_the_users(tmp_path):
    write_output(tmp_path / "made", b"1")
    (tmp_path / "link").symlink_to("made")
    assert foreign(tmp_path / "link") == tmp_path / "link"
    assert foreign(tmp_path / "made") is None


def test_a_kill_between_note_and_file_leaves_a_file_of_ours(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_output(path, b"old")
    monkeypatch.setattr(ownership, "write_atomic", lambda p, data: write_atomic(p, data) if p.name == MARKER else 1 / 0)
    for data in (b"new", b"newer"):
        with pytest.raises(ZeroDivisionError):
            write_output(path, data)
        assert path.read_bytes() == b"old"
        check(tmp_path, ["result.json"])
    monkeypatch.undo()
    write_output(path, b"newest")
    check(tmp_path, ["result.json"])


@pytest.mark.parametrize("change", ["a file more", "a file changed", "another folder"])
def test_a_folder_is_replaced_only_as_regraft_wrote_it(tmp_path, change):
    final = tmp_path / "bundle"
    for text in ("1", "2"):
        publish(final, a=text, b=text)
    if change == "another folder":
        final.rename(tmp_path / "moved")
        final.mkdir()
    (final / ("c" if change == "a file more" else "a")).write_text("mine")
    before = listing(final)
    with pytest.raises(OutputError, match=f"^{final}/[ac] is there already"):
        publish(final, a="3")
    assert listing(final) == before


def test_removing_leaves_what_is_not_ours(tmp_path):
    folder = tmp_path / "checkpoints"
    for number in ("000001", "000002"):
        with output_folder(folder / number, any_content=True) as partial:
            (partial / "state.json").write_text("state")
    (folder / "000001" / "state.json").write_text("damaged")
    (folder / "000002" / "notes.txt").write_text("mine")
    (folder / f"{PARTIAL}{0:032x}").touch()
    (folder / f"{PARTIAL}mine").touch()
    remove_made(folder)
    assert listing(folder).keys() - {MARKER} == {"000002/notes.txt", f"{PARTIAL}mine"}
    (folder / "000002" / "notes.txt").unlink()
    (folder / f"{PARTIAL}mine").unlink()
    remove_made(folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    "text", ["[tool]\n", "", "{}", "[]", "null", '{"made_by": "me", "files": {}}', '{"made_by": 3}', "[" * 100_000]
)
def test_a_marker_of_somebody_elses_is_refused_by_name(tmp_path, text):
    (tmp_path / MARKER).write_text(text)
    for act in (
        lambda: check(tmp_path, ["a"]),
        lambda: write_output(tmp_path / "a", b""),
        lambda: record(tmp_path, {}),
    ):
        with pytest.raises(OutputError, match=f"^{tmp_path / MARKER} is not regraft's"):
            act()
    remove_made(tmp_path)
    assert listing(tmp_path) == {MARKER: text.encode()}


def test_a_marker_names_nothing_beyond_its_folder(tmp_path):
    (tmp_path / "own").write_text("mine")
    (tmp_path / "run").mkdir()
    files = {"../own": None, str(tmp_path / "own"): None, "own": "any", "a": 3}
    (tmp_path / "run" / MARKER).write_text(json.dumps({"made_by": "regraft 0", "files": files}))
    (tmp_path / "run" / "own").write_text("mine")
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    remove_made(tmp_path / "run")
    assert (tmp_path / "own").read_text() == "mine"
    assert (tmp_path / "run" / "own").read_text() == "mine"


@pytest.mark.parametrize("suffix", [".html", ".py"])
def test_a_seal_travels_with_a_file(tmp_path, suffix):
    path = tmp_path / f"one{suffix}"
    write_output(path, seal_text("first", suffix))
    path = path.rename(tmp_path / f"moved{suffix}")
    write_output(path, seal_text("second", suffix))
    assert listing(tmp_path).keys() == {path.name}
    path.write_bytes(path.read_bytes().replace(b"second", b"mine"))
    with pytest.raises(OutputError, match=str(path)):
        write_output(path, seal_text("third", suffix))


@pytest.mark.parametrize("data", [b"", b"print(1)\n", b"# regraft-seal: " + b"0" * 64 + b"\n"])
def test_what_has_no_seal_of_its_own_content_is_not_sealed(data):
    assert not is_sealed(data)
    assert is_sealed(seal_text(data.decode(), ".py"))
    assert not is_sealed(seal_text(data.decode(), ".py") + b"more\n")


def test_a_folder_that_cannot_be_looked_into_is_not_ours(tmp_path, monkeypatch):
    (tmp_path / "bundle").mkdir()
    monkeypatch.setattr(ownership, "_content", lambda folder: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert foreign(tmp_path / "bundle") == tmp_path / "bundle"
