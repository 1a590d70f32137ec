"""Names that want to be more than names, in what `embed`, `similar`, `label` and `data` write. (Row S7.)"""

import csv
import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from conftest import COLOURS, draw, tree_of
from faults.processes import record
from regraft.commands.data import write_data
from regraft.commands.embed import Embeddings, Neighbour, write_embeddings, write_similar
from regraft.core.csv_cells import from_cell
from regraft.core.errors import RegraftError
from regraft.labelling.outputs import LabelRow, write_csv
from reporting.test_injection import FORMULA, NOT_UTF_8, OUR_TAGS, PAYLOADS

NAMES = (*PAYLOADS.values(), f"{NOT_UTF_8}.jpg")
OUT = (
    "..",
    "../../evil",
    "/evil",
    "a/../../evil",
    ".",
    "~/evil",
    "C:\\evil",
    "..\\evil",
    "a\0b",
    "con",
    ".regraft",
    "",
)


def cells(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))


def are_harmless(rows: list[list[str]]) -> bool:
    return not [cell for row in rows for cell in row if cell.startswith(FORMULA)]


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_lists_of_embeddings_are_no_programs_and_say_every_name(tmp_path, suffix):
    x = np.eye(len(NAMES), 3, dtype=np.float32)
    *_, place = write_embeddings(Embeddings(NAMES, ("0" * 64,) * len(NAMES), x, "net"), tmp_path / f"all{suffix}")
    rows = cells(place)
    assert are_harmless([[row[0]] for row in rows])
    assert [from_cell(row[0]) for row in rows[1:]] == list(NAMES)


def test_pages_of_similar_photos_have_no_elements_but_their_own(tmp_path):
    photo = draw(tmp_path / "a.jpg", COLOURS["red"], 1)
    for number, name in enumerate(NAMES):
        asked = Embeddings((name,), ("0" * 64,), np.eye(1, dtype=np.float32), name)
        page = write_similar(asked, [Neighbour(name, 0.5), Neighbour(str(photo), 0.4)], tmp_path / f"{number}.html")
        root = tree_of(page.read_text(encoding="utf-8"))
        assert {one.tag for one in root.iter()} <= OUR_TAGS
        assert not [key for one in root.iter() for key in one.attrib if key.startswith("on")]
        assert {one.get("src").partition(";")[0] for one in root.iter("img")} <= {"data:image/jpeg"}


def test_lists_of_labels_are_no_programs_and_say_every_name(tmp_path):
    common = {"sha256": "0" * 64, "is_set_aside": False, "is_audit": False, "at": "", "guess": "", "is_new": False}
    rows = [LabelRow(file=Path("x"), path=name, label=name, by=name, **common) for name in NAMES]
    write_csv(rows, tmp_path / "labels.csv")
    found = cells(tmp_path / "labels.csv")
    assert are_harmless(found)
    assert [[from_cell(cell) for cell in row[:2]] for row in found[1:]] == [[name, name] for name in NAMES]


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("kind", ["folder", "zip", "webdataset"])
def test_a_class_that_leads_out_of_what_is_written_leads_nowhere(tmp_path, kind, name):
    """A list names the classes, so that they may be anything."""
    root = tmp_path / "photos"
    rows = []
    for number, label in enumerate((name, name, "other", "other")):
        draw(root / f"{number}.jpg", COLOURS["red"], number, (24, 24))
        rows.append({"path": f"{number}.jpg", "label": label})
    (root / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    place = tmp_path / "deep" / "written" / {"folder": "set", "zip": "set.zip", "webdataset": "set"}[kind]
    with suppress(RegraftError):
        write_data(root / "list.jsonl", place, kind=kind)
    outside = {path.name for path in tmp_path.rglob("*") if place not in (path, *path.parents)}
    assert outside == {"photos", "list.jsonl", *(f"{i}.jpg" for i in range(4))} | outside & {"deep", "written"}
    if kind == "webdataset" and place.exists():
        assert {path.suffix for path in place.iterdir()} == {".tar"}


def test_the_figures_are_recorded(record_property):
    record(record_property, "S7", names=len(NAMES), classes=len(OUT), escaped=0)
