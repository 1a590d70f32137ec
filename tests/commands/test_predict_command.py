"""Answers as lines, tables and files say the same; photos are sorted by them; groups vote."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import COLOURS, draw, rewrite_manifest, serving
from regraft.bundle.bundle import load
from regraft.bundle.predict import predict
from regraft.bundle.voting import vote
from regraft.core.errors import ConfigError
from regraft.data.sorting import RECORD
from tiny_bundle import CLASSES, write_tiny


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """Nine photos, one of which cannot be read and one of which has a name that a spreadsheet would run."""
    folder = tmp_path_factory.mktemp("data") / "heap"
    for i in range(6):
        draw(folder / f"fox{i // 2}_{i}.jpg", list(COLOURS.values())[i % 3], i)
    draw(folder / "deeper" / "fox0_9.jpg", (250, 250, 250), 9)
    draw(folder / "=cmd()|x.jpg", (0, 0, 0), 10)
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of a few kilobytes. Tests must not change it."""
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "bundle"))


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_all_ways_of_answering_say_the_same(tiny, heap, tmp_path, regraft_main):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    own = [one.to_json() for one in predict(tiny, [heap])]
    assert sum("error" in one for one in own) == 1
    printed = regraft_main("predict", tiny.folder, heap, "--json")
    assert [json.loads(line) for line in printed.stdout.splitlines()] == json.loads(json.dumps(own))
    assert printed.returncode == 1
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        done = regraft_main("predict", tiny.folder, heap, "--out", tmp_path / name)
        assert (done.returncode, done.stdout) == (1, f"answers  {tmp_path / name}\n")
    assert (tmp_path / "a.jsonl").read_text() == printed.stdout
    rows = table((tmp_path / "a.csv").read_text())
    assert list(rows[0]) == ["path", "label", "probability", "unsure", "looks_new", "novelty", "error",
                             "p_blue", "p_green", "p_red"]  # fmt: skip
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    for row, one, (_, kept) in zip(rows, own, frame.iterrows(), strict=True):
        assert row["path"].removeprefix("'") == one["path"] == kept["path"]
        assert row["error"] == one.get("error", "")
        if "error" not in one:
            assert [row["label"], float(row["probability"]), json.loads(row["unsure"])] == [
                one["label"], one["probability"], one["unsure"]]  # fmt: skip
            assert {c: float(row[f"p_{c}"]) for c in CLASSES} == one["probabilities"]
            assert {c: kept[f"p_{c}"] for c in CLASSES} == one["probabilities"]
    before = sorted(tmp_path.iterdir())
    with serving(tiny.folder, "--workers", "1", cwd=tmp_path) as server:
        for one in own:
            answer = server.predict(Path(one["path"]).read_bytes()).json["predictions"][0]
            if "error" not in one:
                assert {k: answer[k] for k in ("label", "probability", "probabilities")} == {
                    k: one[k] for k in ("label", "probability", "probabilities")}  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before  # a server keeps nothing unless it is told to


def test_no_cell_is_a_formula(tiny, heap, tmp_path, regraft_main, monkeypatch):
    monkeypatch.chdir(heap)
    done = regraft_main("predict", tiny.folder, "=cmd()|x.jpg", "--columns", "path,target=id,label")
    assert done.stdout.splitlines()[0] == '"path","target","label"'
    assert done.stdout.splitlines()[1].startswith('"\'=cmd()|x.jpg","\'=cmd()|x",')


def test_a_submission_is_one_line(tiny, heap, tmp_path, regraft_main):
    done = regraft_main(
        "predict", tiny.folder, heap / "fox0_0.jpg", "--columns", "id,label", "--out", tmp_path / "s.csv"
    )
    assert done.returncode == 0
    said = next(predict(tiny, [heap / "fox0_0.jpg"])).prediction
    assert (tmp_path / "s.csv").read_text() == f'"id","label"\n"fox0_0","{said.label}"\n'
    shares = regraft_main("predict", tiny.folder, heap / "fox0_0.jpg", "--columns", "image=name,probabilities")
    assert table(shares.stdout) == [{"image": "fox0_0.jpg", **{c: repr(p) for c, p in said.probabilities.items()}}]
    one = regraft_main("predict", tiny.folder, heap / "fox0_0.jpg", "--columns", "id,label=p_red", "--format", "jsonl")
    assert json.loads(one.stdout) == {"id": "fox0_0", "label": said.probabilities["red"]}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--columns", "idd"], "no field. Did you mean 'id'?"),
        (["--columns", "id,id"], "names 'id' twice"),
        (["--columns", "p_blu"], "Did you mean 'p_blue'?"),
        (["--columns", "id", "--format", "text"], "--columns is for tables"),
        (["--format", "parquet"], "--out answers.parquet"),
        (["--vote-by", "("], "no regular expression"),
        (["--vote-by", "cow"], "finds nothing in any path"),
        (["--columns", "id", "--vote-by", "fox"], "no field"),
    ],
)
def test_what_cannot_be_is_said(tiny, heap, regraft_main, flags, said):
    done = regraft_main("predict", tiny.folder, heap, *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


def test_a_file_of_somebody_else_is_not_written_over(tiny, heap, tmp_path, regraft_main, monkeypatch):
    monkeypatch.setattr("regraft.commands.predict.predict", lambda *_, **__: pytest.fail("it is known before"))
    (tmp_path / "a.csv").write_text("mine")
    done = regraft_main("predict", tiny.folder, heap, "--out", tmp_path / "a.csv")
    assert "is there already" in done.stderr
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_photos_of_a_group_vote(tiny, heap, regraft_main):
    done = regraft_main("predict", tiny.folder, heap, "--vote-by", r"(fox\d)_", "--json")
    assert done.returncode == 1
    found = {one["group"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert {name: (one["photos"], one["failed"]) for name, one in found.items() if name.startswith("fox")} == {
        "fox0": (3, 0), "fox1": (2, 0), "fox2": (2, 0)}  # fmt: skip
    assert found[str(heap / "broken.jpg")]["error"]
    members = [heap / "deeper" / "fox0_9.jpg", heap / "fox0_0.jpg", heap / "fox0_1.jpg"]
    alone = [one.prediction.probabilities for one in predict(tiny, members)]
    product = np.prod([[p[c] for c in CLASSES] for p in alone], axis=0) ** (1 / 3)
    # logarithms, means and exponentials of three float64, each off by some units in the last place
    assert list(found["fox0"]["probabilities"].values()) == pytest.approx(product / product.sum(), rel=1e-13)
    single = next(one for one in predict(tiny, [heap / "=cmd()|x.jpg"]))
    assert found[str(heap / "=cmd()|x.jpg")]["probabilities"] == single.prediction.probabilities


def test_a_class_that_cannot_be_is_outvoted_but_no_group_is_without_answer(tiny, heap):
    sure = [next(predict(tiny, [heap / "fox0_0.jpg"]))] * 2
    sure[1] = replace(sure[1], path="fox0_x", prediction=tiny.to_prediction(np.array([1e5, 0.0, 0.0])))
    sure[0] = replace(sure[0], path="fox0_y", prediction=tiny.to_prediction(np.array([0.0, 1e5, 0.0])))
    (group,) = vote(tiny, sure, "fox0")
    assert group.prediction.probabilities["blue"] == pytest.approx(0.5, abs=1e-12)
    with pytest.raises(ConfigError, match="finds nothing"):
        vote(tiny, sure, "cow")


@pytest.fixture
def doubting(tmp_path):
    """A model that has a class "unsure", and can promise 30 % errors."""
    return write_tiny(tmp_path / "doubting", ("unsure", "green", "red"))


def test_photos_are_sorted_by_what_is_said_of_them(doubting, heap, tmp_path, regraft_main):
    model = load(doubting, max_error=0.3)
    answers = [one for one in predict(model, [heap]) if one.prediction]
    least = sorted(one.prediction.probability for one in answers)[4]
    rewrite_manifest(doubting, thresholds={"n": 6, "max_error": [[0.3, least, 0.5]], "coverage": []})
    out = tmp_path / "sorted"
    done = regraft_main("predict", doubting, heap, "--sort", out)
    assert done.returncode == 1, done.stderr
    assert "for at most 30 % of the others to be wrong" in done.stderr
    wanted = {one.path: one.prediction.label if one.prediction.probability >= least else "unsure-2" for one in answers}
    found = {path.name: path.parent.name for path in out.rglob("*.jpg")}
    assert found == {path.rsplit("/", 1)[1]: folder for path, folder in wanted.items()}
    assert "unsure-2" in found.values()
    assert f"regraft predict --undo {out}" in done.stdout
    undone = regraft_main("predict", "--undo", out, "--json")
    assert json.loads(undone.stdout) == {"removed": 8, "kept": []}
    assert not out.exists()
    assert len(list(heap.rglob("*.jpg"))) == 9


def test_what_looks_new_and_groups_go_together(tiny, heap, tmp_path, regraft_main, monkeypatch):
    monkeypatch.setattr(
        "regraft.bundle.bundle.Prediction.looks_new", property(lambda one: one.probabilities["red"] > 0.2)
    )
    done = regraft_main(
        "predict", tiny.folder, heap, "--sort", tmp_path / "out", "--vote-by", r"fox\d", "--format", "csv"
    )
    rows = {row["group"]: row for row in table(done.stdout)}
    for name in ("fox0", "fox1", "fox2"):
        (folder,) = {path.parent.name for path in (tmp_path / "out").rglob(f"{name}_*")}
        assert folder == rows[name]["sorted_into"] == ("new" if float(rows[name]["p_red"]) > 0.2 else folder)
    assert "new" in {row["sorted_into"] for row in rows.values()}


def test_photos_are_not_sorted_among_themselves(tiny, heap, regraft_main):
    done = regraft_main("predict", tiny.folder, heap, "--sort", heap / "sorted")
    assert "among the photos to be sorted" in done.stderr
    assert not list(heap.rglob(RECORD))
    assert not (heap / "sorted").exists()


def test_without_a_model_or_what_to_undo_it_says_what_is_missing(regraft_main, tmp_path):
    assert regraft_main("predict").returncode == 2
    assert "Nothing was sorted" in regraft_main("predict", "--undo", tmp_path).stderr
