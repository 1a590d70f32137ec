"""Random trees of a user's files, random commands: what regraft did not make is there afterwards. (Row U1.)

The commands run in this process, with what takes long and writes nothing taken out: drawing the orchard, the proof of
an export, the network behind a pull.
"""

import random
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import regraft
from conftest import draw_folder
from faults.processes import IS_LONG, record
from regraft.bundle.bundle import Bundle
from regraft.commands import compare as compare_command
from regraft.commands import demo as demo_command
from regraft.commands import export as export_command
from regraft.commands import hub
from regraft.commands import report as report_command
from regraft.commands import scan as scan_command
from regraft.core.errors import OutputError
from regraft.core.files import HOLDER, LOCK, MARKER, PARTIAL, is_partial
from regraft.core.progress import QUIET
from regraft.reporting import plots

CASES = 500 if IS_LONG else 10
pytestmark = [pytest.mark.slow] if IS_LONG else []  # so that the long form is among those
COLLIDING = [
    "bundle/model.onnx",
    "bundle/regraft.json",
    "bundle/notes.txt",
    "result.json",
    "report.html",
    "history.jsonl",
    "photos.jsonl",
    "quarantine.csv",
    "checkpoints/000001/state.json",
    "checkpoints/best.pth",
    "folds/0/history.jsonl",
    ".lock",
    ".holder",
    ".regraft",
    "stages/checkpoints/000002/state.safetensors",
    ".partial-dead/own",
    ".aside-0-bundle/own",
    ".regraft-partial-mine/own",
    ".regraft.lock",
    "compare.json",
    "compare.html",
    "frozen/result.json",
    "frozen/bundle/own",
    "scan.json",
    "suspects.csv",
    "photos.png",
    "duplicates.png",
    "pets.onnx",
    "pets.py",
    "pets.xml",
    "x.html",
    "copy/red/own.jpg",
    "copy.left-out.csv",
    "run/result.json",
    "run/checkpoints/own",
    "predictions.png",
    "model/own",
    "notes.txt",
    "src/app.py",
    "data/table.csv",
]


@dataclass(frozen=True)
class Case:
    """place: where the user's files are, and where commands write to."""

    rng: random.Random
    place: Path
    photos: Path
    bundle: Bundle

    def train(self) -> None:
        restart = self.rng.random() < 0.5
        regraft.train(self.photos, self.place, mode="frozen", report=False, quiet=True, restart=restart, num_folds=2)

    def compare(self) -> None:
        compare_command.compare(self.photos, self.place, modes=("frozen",), report=False, progress=QUIET)

    def scan(self) -> None:
        scan_command.check_places(self.photos, out=self.place)
        scan_command.write_scan(scan_command.find_issues(self.photos, with_features=False), self.place)

    def fix(self) -> None:
        scan_command.write_fixed(scan_command.find_issues(self.photos, with_features=False), self.place / "copy")

    def export(self) -> None:
        name, kind = self.rng.choice([("pets", "onnx"), ("pets.onnx", "onnx"), ("pets", "openvino")])
        export_command.export(self.bundle, self.place / name, format=kind)

    def demo(self) -> None:
        demo_command.demo(self.place, progress=QUIET)

    def pull(self) -> None:
        hub.pull("me/model", self.place / self.rng.choice(["model", "bundle"]), token="")

    def report(self) -> None:
        report_command.report(self.bundle, None, self.place / self.rng.choice(["x.html", "report.html"]))


COMMANDS = (Case.train, Case.train, Case.compare, Case.scan, Case.fix, Case.export, Case.demo, Case.pull, Case.report)


@pytest.fixture
def quick(monkeypatch, bundle, tiny):
    """What takes long is left out."""
    monkeypatch.setattr(demo_command, "unpack_orchard", lambda root, on_photo: draw_folder(root, ("kiwi", "melon"), 6))
    drawn = (
        (plots, "dataset_grid"),
        (plots, "contact_sheet"),
        (demo_command, "dataset_grid"),
        (demo_command, "prediction_grid"),
    )
    for module, name in drawn:
        monkeypatch.setattr(module, name, lambda *_: Image.new("RGB", (4, 4)))
    monkeypatch.setattr(Bundle, "predict", lambda self, photo: None)
    monkeypatch.setattr(report_command, "evaluate_dataset", lambda *_, **__: None)
    monkeypatch.setattr(export_command, "_write", lambda b, kind, path, ranges: _written(path, kind))
    monkeypatch.setattr(export_command, "_proven", lambda *_: export_command._Agreement(1, 1))
    monkeypatch.setattr(report_command, "report_html", lambda *_: "<p>a report</p>")
    monkeypatch.setattr(compare_command, "compared_html", lambda *_: "<p>a comparison</p>")
    monkeypatch.setattr(
        hub, "_download", lambda _, folder, *__: shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
    )


def _written(path: Path, kind: str) -> None:
    for suffix in export_command.SUFFIXES[kind]:
        path.with_suffix(suffix).write_bytes(b"model" + suffix.encode())


def plant(rng: random.Random, place: Path) -> None:
    """Some of the names that regraft uses too, and some that it does not: files, links, empty and full folders."""
    for name in rng.sample(COLLIDING, rng.choice([0, 1, 1, 2, 3, 6])):
        path = place / name
        with suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            kind = rng.choice(["file", "file", "file", "link", "folder"])
            if kind == "link":
                path.symlink_to(rng.choice(["nowhere", place.parent / "own", place.parent / "elsewhere"]))
            elif kind == "folder":
                path.mkdir()
                (path / "own").write_text(name)
            elif not path.exists():
                path.write_text(f"mine: {rng.random()}")


def meddle(rng: random.Random, place: Path) -> None:
    """What a user does with what regraft has written: change a file, or add one beside it."""
    made = sorted(path for path in place.rglob("*") if path.is_file() and path.name not in (MARKER, LOCK, HOLDER))
    if made and rng.random() < 0.7:
        path = rng.choice(made)
        if rng.random() < 0.5:
            path.write_bytes(path.read_bytes() + b"\nmine")
        else:
            (path.parent / "mine.txt").write_text("mine")


def state(folder: Path) -> dict[Path, bytes | str]:
    """Every file's content and every link's target."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[path] = str(path.readlink())
        elif path.is_file():
            found[path] = path.read_bytes()
    return found


@contextmanager
def naming(place: Path):
    """An OutputError within the block names something that is there, and not just the folder that it was told of."""
    there = list(place.rglob("*"))
    try:
        yield
    except OutputError as error:
        if not any(str(path) in str(error) for path in there):
            raise AssertionError(f"names nothing that is there: {error}") from error
        raise


@pytest.mark.parametrize("seed", range(CASES))
def test_what_was_there_stays_or_is_named(quick, photos, bundle, tmp_path, seed):
    rng = random.Random(seed)
    place, own = tmp_path / "place", tmp_path / "elsewhere"
    own.mkdir()
    (own / "own").write_text("mine")
    (tmp_path / "own").write_text("mine")
    place.mkdir()
    own_photos = shutil.copytree(photos, tmp_path / "photos")  # a fixed copy is hard links, which are meddled with too
    case = Case(rng, place, own_photos, bundle)
    made: dict[Path, bytes | str] = {}
    plant(rng, place)
    for command in rng.choices(COMMANDS, k=2):
        theirs = {path: content for path, content in state(tmp_path).items() if made.get(path) != content}
        with suppress(OutputError), naming(place):
            command(case)
        after = state(tmp_path)
        assert {path: after.get(path) for path in theirs} == theirs, command.__name__
        assert not [path for path in tmp_path.rglob(f"{PARTIAL}*") if is_partial(path) and path not in theirs]
        made = {path: content for path, content in after.items() if path not in theirs}
        meddle(rng, place)


def test_the_figures_are_recorded(record_property):
    record(record_property, "U1", cases=CASES)
