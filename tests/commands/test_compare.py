"""Modes side by side: one split, one table of numbers, and a test of every two on the same photos."""

import json
import re
import shutil
from html import escape
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

import regraft
from commands.test_train import read_lines, save_toy, visible
from conftest import all_of, draw_folder, text_of, tree_of
from regraft.commands.compare import compare
from regraft.commands.train import configure
from regraft.core.errors import ConfigError, DataError, OutputError
from regraft.core.progress import Progress

STANDING = {"epochs": 1, "learning_rate": 0.0, "head_learning_rate": 0.0, "head_start": "random"}
QUIET = {"progress": Progress(quiet=True)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy") / "weights")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Three colours, four photos of each to learn from and six to judge on."""
    root = tmp_path_factory.mktemp("data") / "split"
    draw_folder(root / "train", ("red", "green", "blue"), 4)
    return draw_folder(root / "val", ("red", "green", "blue"), 6, seed=5000).parent


@pytest.fixture(scope="module")
def compared(colours, toy, tmp_path_factory):
    """Frozen, which solves the colours, beside full and scratch, which stand still. With the folder of the runs."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare(colours, out, config=configure(seed=2, **STANDING, **toy), **QUIET), out


def test_the_object_of_the_contract(compared):
    comparison, out = compared
    result = comparison.to_json()
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(result)) == result
    assert result.keys() == {"modes", "pairs"}
    assert list(result["modes"]) == ["frozen", "full", "scratch"]
    for mode, row in result["modes"].items():
        assert row["accuracy"].keys() == {"value", "low", "high", "n", "split"}
        assert (row["accuracy"]["n"], row["accuracy"]["split"]) == (18, "val")
        assert row["seconds"] > 0
        assert len(row["history"]) == (0 if mode == "frozen" else 1)
        assert row["bundle"] == str(out / mode / "bundle")
    assert [(one["a"], one["b"]) for one in result["pairs"]] == list(combinations(result["modes"], 2))
    assert all({"a", "b", "p_value", "verdict"} <= one.keys() for one in result["pairs"])


def test_every_mode_is_a_whole_run_on_the_same_split(compared):
    _, out = compared
    assert visible(out) == ["compare.html", "compare.json", "frozen", "full", "scratch"]
    rows = [read_lines(out / mode / "photos.jsonl") for mode in ("frozen", "full", "scratch")]
    splits = [[{name: value for name, value in row.items() if name != "at"} for row in own] for own in rows]
    assert splits[0] == splits[1] == splits[2]
    for mode in ("frozen", "full", "scratch"):
        assert regraft.load(out / mode).manifest["provenance"]["mode"] == mode
        assert json.loads((out / mode / "result.json").read_text())["mode"] == mode


def test_the_test_is_on_what_the_bundles_say_of_the_judged_photos(compared, colours):
    comparison, out = compared
    judged = [row for row in read_lines(out / "frozen" / "photos.jsonl") if row.get("split") == "val"]
    paths, labels = [colours / row["path"] for row in judged], [row["label"] for row in judged]
    right = {
        mode: np.array([a.prediction.label for a in regraft.predict(regraft.load(out / mode), paths)]) == labels
        for mode in comparison.runs
    }
    for one in comparison.to_json()["pairs"]:
        a_only = int((right[one["a"]] & ~right[one["b"]]).sum())
        b_only = int((right[one["b"]] & ~right[one["a"]]).sum())
        assert (one["a_only"], one["b_only"], one["n"]) == (a_only, b_only, 18)
        expected = binomtest(a_only, a_only + b_only).pvalue if a_only + b_only else 1.0
        assert one["p_value"] == pytest.approx(expected)
        assert one["p_value"] <= one["corrected"] <= min(1, 3 * one["p_value"])
    for mode, run in comparison.runs.items():
        assert run.summary["accuracy"]["value"] == pytest.approx(right[mode].mean())


def test_verdicts_say_which_is_better_and_by_how_much(compared):
    comparison, _ = compared
    num_right = {mode: round(18 * run.summary["accuracy"]["value"]) for mode, run in comparison.runs.items()}
    assert num_right["frozen"] == 18
    assert max(num_right["full"], num_right["scratch"]) <= 9  # chance is 6
    verdicts = {(one.a, one.b): one.verdict for one in comparison.pairs}
    for other in ("full", "scratch"):
        more = num_right["frozen"] - num_right[other]
        said = rf"frozen is better than {other} by [\d.]+ to [\d.]+ points: right on {more} more of 18 photos"
        assert re.fullmatch(said, verdicts["frozen", other])
    assert verdicts["full", "scratch"] == "full and scratch do not differ on these 18 photos"


def test_modes_come_in_the_order_asked_for_and_once(colours, toy, tmp_path, capsys):
    modes = ("full", "frozen", "full")
    comparison = compare(colours, tmp_path / "out", modes=modes, config=configure(report=False, **STANDING, **toy))
    assert list(comparison.runs) == ["full", "frozen"]
    assert [(one.a, one.b) for one in comparison.pairs] == [("full", "frozen")]
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("--")] == ["-- full", "-- frozen"]


def test_one_mode_has_nothing_to_be_compared_with(photos, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    comparison = regraft.compare(photos, modes=("frozen",), **toy, **QUIET)
    assert comparison.pairs == ()
    assert comparison.to_json()["pairs"] == []
    assert (tmp_path / "runs" / "colours-compared" / "frozen" / "bundle").is_dir()


@pytest.mark.parametrize("modes", [("frozen", "auto"), ("",), ("frozen", "ful")])
def test_an_unknown_mode_is_refused_before_anything_begins(photos, tmp_path, modes):
    with pytest.raises(ConfigError, match=rf"Unknown mode '{modes[-1]}'. Expected some of: frozen, full, scratch"):
        compare(photos, tmp_path / "out", modes=modes, **QUIET)
    assert not (tmp_path / "out").exists()


def test_a_place_among_the_photos_or_none_at_all_is_refused(photos, tmp_path):
    with pytest.raises(OutputError, match="inside the photos' folder"):
        compare(photos, photos / "out", **QUIET)
    with pytest.raises(DataError, match="There is no folder"):
        compare(tmp_path / "none", tmp_path / "out", **QUIET)


def test_models_stand_side_by_side_as_compared(compared, colours):
    comparison, out = compared
    models = {mode: regraft.load(out / mode) for mode in comparison.runs}
    found = regraft.side_by_side(models, colours)
    assert found.pairs == comparison.pairs
    table = tree_of(found._repr_html_().partition("<ul>")[0])
    cells = [[text_of(cell) for cell in row] for row in all_of(table, "tr")]
    assert cells[0] == ["", "mode", "epochs", "seconds", "accuracy", "95 % interval", "log loss"]
    for mode, row in zip(models, cells[1:], strict=True):
        a = comparison.runs[mode].summary["accuracy"]
        assert row[:3] == [mode, mode, "none: solved" if mode == "frozen" else "1"]
        assert row[3] == f"{comparison.runs[mode].summary['seconds']['total']:.0f}"
        assert row[4:6] == [f"{100 * a['value']:.1f} %", f"{100 * a['low']:.1f} to {100 * a['high']:.1f}"]
    assert all(escape(one.verdict) in found._repr_html_() for one in comparison.pairs)
    hostile = regraft.side_by_side({"<script>": models["frozen"]}, colours)
    assert "<script>" not in hostile._repr_html_()
    with pytest.raises(ConfigError, match="no models"):
        regraft.side_by_side({}, colours)


def test_a_run_that_was_not_kept_has_no_seconds(compared, colours, tmp_path):
    _, out = compared
    shutil.copytree(out / "frozen" / "bundle", tmp_path / "alone")
    page = regraft.side_by_side({"a": regraft.load(tmp_path / "alone")}, colours)._repr_html_()
    assert "<td>not recorded</td>" in page


def test_learning_curves_are_drawn_of_what_has_epochs(compared):
    comparison, out = compared
    models = {mode: regraft.load(out / mode) for mode in comparison.runs}
    together = regraft.learning_curve(models)._repr_svg_()
    assert all(f">{mode}</text>" in together for mode in models)
    alone = regraft.learning_curve(models["full"], "loss")._repr_svg_()
    assert ">train</text>" in alone
    assert ">val</text>" in alone
    assert 'aria-label="loss over epochs"' in alone
    with pytest.raises(DataError, match="no learning curve"):
        regraft.learning_curve(models["frozen"])
