"""The record of a run is read back as it was written, or not at all; a default place holds no run on other photos."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from regraft.bundle.bundle import load
from regraft.bundle.format import seal_manifest
from regraft.commands.report import report
from regraft.commands.train import configure, train_run
from regraft.core.config import TrainConfig
from regraft.core.errors import DataError, OutputError
from regraft.core.files import json_bytes
from regraft.core.progress import QUIET
from regraft.run_dir import photos_of_run, read_record, read_summary, unchanged
from regraft.run_location import place
from tiny_backbone import draw_photos, tiny_backbone


class Recorder(type(QUIET)):
    """What was said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with photos and a run on them. Tests must not change it."""
    root = tmp_path_factory.mktemp("a project")
    backbone = tiny_backbone(root / "backbone")
    draw_photos(root / "photos", {"ash": 12, "birch": 11})
    (root / "photos" / "ash" / "empty.png").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regraft.commands.train.configured", lambda config, progress: backbone)
        train_run(
            root / "photos", root / "runs" / "one", configure(mode="frozen", report=False, group_by="_([0-9])"), QUIET
        )
    return root


@pytest.fixture
def moved(project, tmp_path):
    """A copy of all of it elsewhere, as if it had been moved."""
    return shutil.copytree(project, tmp_path / "moved")


def edit(run, change):
    """Change what result.json says of its record."""
    summary = json.loads((run / "result.json").read_text())
    change(summary["record"])
    (run / "result.json").write_text(json.dumps(summary))


def leave_behind(run):
    """As on another machine: the place that the record names is not there."""
    edit(run, lambda record: record.update(root="/nowhere/photos"))


def test_what_is_written_is_read(project):
    run = project / "runs" / "one"
    record = read_record(run, "")
    assert record.config == configure(mode="frozen", report=False, group_by="_([0-9])")
    assert [q.path for q in record.quarantine] == ["ash/empty.png"]
    assert {photo.group for photo in record.photos} == {f"={i}" for i in range(10)}
    assert [(step.command, step.of) for step in record.steps] == [("train", str(project / "photos"))]
    again = replace(record, run=run)
    before = {name: (run / name).read_bytes() for name in ("result.json", "photos.jsonl", "quarantine.csv")}
    summary = json.loads(before["result.json"])
    del summary["record"]
    again.write(summary)
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_run_that_moves_with_its_photos_still_knows_them(moved):
    leave_behind(moved / "runs" / "one")
    record = read_record(moved / "runs" / "one", "")
    assert record.root == moved / "photos"
    assert len(photos_of_run(record, ("train",), "")) + len(photos_of_run(record, ("val",), "")) == 23


def test_photos_of_an_old_run_are_told_to_be_gone_or_changed(moved):
    leave_behind(moved / "runs" / "one")
    record = read_record(moved / "runs" / "one", "")
    gone, changed = (record.root / record.dataset(("train",)).paths[i] for i in (0, 1))
    gone.unlink()
    changed.write_bytes(b"something else")
    left = unchanged(record.dataset())
    told = {q.path: q.reason for q in left.quarantine}
    assert len(left) == 21
    assert told[str(gone.relative_to(record.root))].startswith("was learned from, and is gone")
    assert told[str(changed.relative_to(record.root))] == "has changed since it was learned from"
    with pytest.raises(
        DataError, match=r"^2 of the \d+ photos .* has as train are no longer .*, or have changed\. Do\.$"
    ):
        photos_of_run(record, ("train",), "Do")


def _another_bundle(run):
    path = run / "bundle" / "regraft.json"
    manifest = json.loads(path.read_text())
    path.write_bytes(json_bytes(seal_manifest({**manifest, "temperature": 2 * manifest["temperature"]})))
    return "speaks of another bundle"


def _another_list(run):
    (run / "photos.jsonl").write_text((run / "photos.jsonl").read_text() + "\n")
    return "photos.jsonl is not the one"


def _older_or_newer(run):
    edit(run, lambda record: record.update(version=2))
    return "does not say which photos"


def _before_there_were_records(run):
    summary = json.loads((run / "result.json").read_text())
    del summary["record"]
    (run / "result.json").write_text(json.dumps(summary))
    return "does not say which photos"


def _settings_that_cannot_be(run):
    edit(run, lambda record: record["config"].update(mode="none"))
    return "Unknown mode 'none'"


@pytest.mark.parametrize(
    "case",
    [_another_bundle, _another_list, _older_or_newer, _before_there_were_records, _settings_that_cannot_be],
    ids=lambda case: case.__name__.strip("_"),
)
def test_a_record_of_something_else_is_refused_in_a_sentence_with_the_cure(moved, case):
    told = case(moved / "runs" / "one")
    with pytest.raises(DataError) as error:
        read_record(moved / "runs" / "one", "Train again")
    assert told in str(error.value)
    assert str(error.value).endswith("Train again.")
    if case is not _another_bundle:
        with pytest.raises(DataError, match="regraft report BUNDLE DIR"):
            report(load(moved / "runs" / "one"))


def test_settings_go_through_json_and_only_a_portable_part_leaves():
    config = configure(also=("/a/b", "c"), relabel="/x/y.csv", weights="/home/me/w.pt", seed=3, track=("mlflow",))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json())) | {"of a later version": 1}) == config
    portable = config.portable()
    assert portable["weights"] == "w.pt"
    assert not {"also", "relabel"} & portable.keys()
    assert (portable["seed"], portable["mode"]) == (3, "auto")
    assert TrainConfig().portable()["weights"] is None


def left(out, photos):
    """A run on some photos, as far as its place is concerned."""
    out.mkdir(parents=True)
    (out / "result.json").write_text(json.dumps({"photos": str(photos)}))


def test_two_folders_of_one_name_do_not_share_a_default_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / name / "photos" for name in "abc"]
    for folder in folders:
        folder.mkdir(parents=True)
    said = Recorder()
    for number, folder in enumerate(folders, start=1):
        expected = Path("runs") / ("photos" if number == 1 else f"photos-{number}")
        assert place(folder, None, progress=said) == expected
        left(expected, folder)
        assert place(folder, None) == expected
    assert said.lines[0] == f"runs/photos holds a run on {folders[0]}; this one goes to runs/photos-2"
    assert len(said.lines) == 1 + 2
    assert place(folders[1], "runs/photos") == Path("runs/photos")  # who names a place means it


def test_a_folder_is_the_same_by_whatever_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    left(tmp_path / "runs" / "photos", photos)
    for path in (photos, Path("photos"), Path("../") / tmp_path.name / "photos", tmp_path / "link" / "photos"):
        assert place(path, None) == Path("runs/photos")
    left(tmp_path / "runs" / "photos-2", tmp_path / "gone" / "photos")
    assert place(photos, None) == Path("runs/photos")
    (tmp_path / "disk").mkdir()
    photos.rename(tmp_path / "disk" / "photos")
    photos.symlink_to(tmp_path / "disk" / "photos")  # moved to another disk, a link left behind
    assert place(tmp_path / "disk" / "photos", None) == Path("runs/photos")


def test_a_folder_of_runs_that_were_compared_belongs_to_their_photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left(tmp_path / "runs" / "photos-compared" / "frozen", tmp_path / "a" / "photos")
    (tmp_path / "b" / "photos").mkdir(parents=True)
    assert place(tmp_path / "b" / "photos", None, "photos-compared") == Path("runs/photos-compared-2")


@pytest.mark.parametrize("content", ["", "[]", '{"photos": 5}', '{"photos": "\\u0000"}'])
def test_a_place_whose_result_says_nothing_is_taken(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "result.json").write_text(content)
    expected = "runs/photos-2" if "u0000" in content else "runs/photos"
    assert place(tmp_path / "photos", None) == Path(expected)
    assert read_summary(tmp_path / "none") == {}
    with pytest.raises(OutputError, match="would be taken for a class"):
        place(tmp_path / "photos", tmp_path / "photos" / "run")
