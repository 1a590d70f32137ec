"""Whatever can be had in two ways is the same both ways: figures of several commands, models made by several roads."""

import csv
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

import regraft
import regraft.run
from faults.processes import mostly_long
from regraft.backbones.features import extract
from regraft.bundle.bundle import load
from regraft.commands import update
from regraft.commands.report import eval_photos, report
from regraft.commands.train import configure, train_run
from regraft.core.errors import DataError
from regraft.core.progress import QUIET
from regraft.data.scan import list_photos
from regraft.data.splits import folds_of
from regraft.evaluation.evaluate import evaluate, evaluate_dataset
from regraft.models import feature_search as search
from regraft.models.standardised import floored
from regraft.pipeline import linear_probe
from regraft.run_dir import read_record
from regraft.serving.worker import WorkItem, answer
from tiny_backbone import SHADES, draw, draw_photos, only_tiny_backbone

MODEL = ("model.onnx", "model.safetensors", "config.json")
COUNTS = {"ash": 15, "birch": 13, "cedar": 12}


@pytest.fixture(scope="module", autouse=True)
def backbone(tmp_path_factory):
    """The only network that there is."""
    with only_tiny_backbone(tmp_path_factory.mktemp("tiny") / "backbone") as tiny:
        yield tiny


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Photos of three classes. Tests must not change them."""
    return draw_photos(tmp_path_factory.mktemp("data") / "colours", COUNTS)


def train(folder, out, **settings):
    settings = {"mode": "frozen", "report": False, "offline": True, **settings}
    return train_run(folder, out, configure(**settings), QUIET)


def rows_of(run):
    return [json.loads(line) for line in (run / "photos.jsonl").read_text().splitlines()]


def write_list(file, rows, columns=("path", "label")):
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file


def same_model(a, b):
    return all((a / "bundle" / name).read_bytes() == (b / "bundle" / name).read_bytes() for name in MODEL)


def figures(run):
    """What a run says of itself, times and places aside."""
    summary = json.loads((run / "result.json").read_text())
    return {name: summary[name] for name in ("accuracy", "cross_validated", "classes", "images", "decision")}


def sides(run):
    return {row["sha256"]: row["split"] for row in rows_of(run) if "split" in row}


# runs of every kind, and the ways to ask what they are worth


def _plain(colours, tmp, **settings):
    return train(colours, tmp / "run", **settings).out


def _given(colours, tmp, **settings):
    for s, (split, counts) in enumerate({"train": 9, "val": 4, "test": 6}.items()):
        draw_photos(tmp / "given" / split, dict.fromkeys(COUNTS, counts), 5000 + 100 * s)
    return train(tmp / "given", tmp / "run", **settings).out


def _also(colours, tmp):
    return train(colours, tmp / "run", also=str(draw_photos(tmp / "more", {"ash": 6, "elm": 9}, 20_000))).out


def _relabelled(colours, tmp):
    train(colours, tmp / "run")
    wrong = [row for row in rows_of(tmp / "run") if row["split"] == "val"][:3]
    file = write_list(tmp / "fix.csv", [{"path": row["path"], "label": "cedar"} for row in wrong])
    return update.relabel(tmp / "run", file).run.out


def _added(colours, tmp):
    train(colours, tmp / "run")
    return update.add(tmp / "run", draw_photos(tmp / "more", {"ash": 12, "elm": 9}, 21_000)).run.out


def _dropped(colours, tmp):
    return train(with_copies(colours, tmp / "copies"), tmp / "run", drop="conflicts,duplicates").out


def _in_groups(colours, tmp):
    return train(colours, tmp / "run", group_by="_([0-9])", val_fraction=0.4).out


def _listed(colours, tmp):
    folder = shutil.copytree(colours, tmp / "listed")
    rows = [{"path": str(p.relative_to(folder)), "label": p.parent.name} for p in sorted(folder.rglob("*.png"))]
    return train(write_list(folder / "list.csv", rows), tmp / "run").out


KINDS = {
    "plain": _plain,
    "given splits": _given,
    "two folders": _also,
    "relabelled": _relabelled,
    "added to": _added,
    "dropped from": _dropped,
    "in groups": _in_groups,
    "a list": _listed,
}


@pytest.fixture(scope="module", params=KINDS)
def run(request, colours, tmp_path_factory):
    """A run of each kind. Tests must not change its folder."""
    return KINDS[request.param](colours, tmp_path_factory.mktemp("run"))


def with_copies(colours, folder):
    """Photos among which some are the same: twice in a class, and in two classes."""
    shutil.copytree(colours, folder)
    for i in range(4):
        shutil.copy(folder / "ash" / f"ash_{i}.png", folder / "ash" / f"again_{i}.png")
        shutil.copy(folder / "birch" / f"birch_{i}.png", folder / "cedar" / f"other_{i}.png")
    return folder


def _by_report(run, bundle, tmp):
    return report(bundle, out=tmp / "report.html").evaluation.correct


def _by_evaluate(run, bundle, tmp):
    return evaluate_dataset(bundle, eval_photos(bundle, QUIET, ""), "again").correct


def _by_evaluate_folder(run, bundle, tmp):
    evaluated = eval_photos(bundle, QUIET, "")
    for i, path in enumerate(evaluated.paths):
        place = tmp / "judged" / evaluated.classes[evaluated.labels[i]] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(evaluated.root / path, place)
    correct = evaluate(bundle, tmp / "judged").correct
    return np.sort(correct)  # another order


def _answers(bundle, answer_of):
    evaluated = eval_photos(bundle, QUIET, "")
    names = [evaluated.classes[label] for label in evaluated.labels]
    return np.array([answer_of(evaluated.root / p) == name for p, name in zip(evaluated.paths, names, strict=True)])


def _by_predict(run, bundle, tmp):
    return _answers(bundle, lambda path: bundle.predict(path).label)


def _by_server(run, bundle, tmp):
    order = WorkItem(with_heat=False, is_alone=False)
    return _answers(bundle, lambda path: answer(bundle, path.read_bytes(), order, 10**6)["label"])


WAYS = {
    "report": _by_report,
    "evaluate": _by_evaluate,
    "evaluate a folder": _by_evaluate_folder,
    "predict": _by_predict,
    "serve": _by_server,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_command_gives_the_accuracy_that_training_gave(run, way, tmp_path):
    told = json.loads((run / "result.json").read_text())["accuracy"]
    correct = WAYS[way](run, load(run), tmp_path)
    assert (len(correct), correct.mean()) == (told["n"], pytest.approx(told["value"]))
    assert 0.4 < told["value"] < 1  # else agreeing is no art


def test_an_export_is_proven_on_the_photos_that_judged(run, tmp_path):
    proof = regraft.export(load(run), tmp_path / "model.onnx")
    told = json.loads((run / "result.json").read_text())["accuracy"]
    assert proof.num_photos == proof.num_agree == told["n"]


def test_a_record_says_what_the_run_says(run):
    record, summary = read_record(run, ""), json.loads((run / "result.json").read_text())
    assert len(record.photos) == summary["images"]["used"]
    assert len(record.photos) + len(record.quarantine) == summary["images"]["found"]
    assert list(record.dataset().classes) == summary["classes"] == list(load(run).classes)
    assert sum(photo.split == record.eval_split for photo in record.photos) == summary["accuracy"]["n"]
    assert all(photo.labelled.by in ("folder", "list", "relabel") and photo.labelled.at for photo in record.photos)
    again = [photo.to_json(record.root) for photo in record.photos]
    assert again == [row for row in rows_of(run) if "split" in row]


def test_nothing_in_a_bundle_names_a_place_on_this_machine(run):
    record = read_record(run, "")
    places = {str(run), str(record.folder), str(record.root), str(Path.home()), str(run.parent)}
    for file in (run / "bundle").iterdir():
        data = file.read_bytes()
        assert not [place for place in places if place.encode() in data or json.dumps(place).encode() in data], file


# runs that go on


def _more(tmp):
    return draw_photos(tmp / "more", {"ash": 12, "cedar": 3, "elm": 9}, 31_000)


def _first_class(tmp):
    """A class that sorts before the others."""
    for i in range(7):
        draw(tmp / "first" / "acacia" / f"{i}.png", SHADES["elm"], 32_000 + i)
    return tmp / "first"


@pytest.mark.parametrize("what", ["more photos", "a class that sorts first", "labels put right"])
def test_in_place_is_as_in_a_folder_of_its_own(colours, tmp_path, what):
    wrong = shutil.copytree(colours, tmp_path / "wrong")
    for i in range(6):  # half of two classes are the wrong way round
        for one, other in (("ash", "birch"), ("birch", "ash")):
            (wrong / one / f"{one}_{i}.png").rename(wrong / other / f"was_{one}_{i}.png")
    train(wrong, tmp_path / "run")
    correct = [
        {"path": f"{other}/was_{one}_{i}.png", "label": one}
        for i in range(6)
        for one, other in (("ash", "birch"), ("birch", "ash"))
    ]

    def grow(out):
        if what == "labels put right":
            return update.relabel(tmp_path / "run", write_list(tmp_path / "fix.csv", correct), out)
        folder = _more(tmp_path / "a") if what == "more photos" else _first_class(tmp_path / "a")
        return update.add(tmp_path / "run", folder, out)

    apart = grow(tmp_path / "apart")
    here = grow(None)
    assert here.run.out == tmp_path / "run"
    assert same_model(here.run.out, apart.run.out)
    assert figures(here.run.out) == figures(apart.run.out)
    assert (here.before, here.after, here.pair, here.added) == (apart.before, apart.after, apart.pair, apart.added)
    assert here.before != here.after or what != "labels put right"


def test_a_new_model_that_fails_leaves_the_old_one(colours, tmp_path, monkeypatch):
    train(colours, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def fails(*_):
        raise DataError("no room")

    monkeypatch.setattr(regraft.run, "evaluate_dataset", fails)
    with pytest.raises(DataError, match="no room"):
        update.add(tmp_path / "run", _more(tmp_path))
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before
    assert read_record(tmp_path / "run", "").bundle_sha256


@pytest.mark.parametrize("seed", mostly_long(range(2), 0))
def test_what_was_learned_from_never_judges(colours, tmp_path, seed):
    """Also a copy under another name, in the folder that is added."""
    train(colours, tmp_path / "run", seed=seed)
    before = sides(tmp_path / "run")
    more = draw_photos(tmp_path / "more", {"ash": 30, "birch": 5}, 40_000)
    for i in range(6):
        shutil.copy(colours / "birch" / f"birch_{i}.png", more / "ash" / f"copy_{i}.png")
    update.add(tmp_path / "run", more)
    assert before.items() <= sides(tmp_path / "run").items()
    of_content = {(row["sha256"], row["split"]) for row in rows_of(tmp_path / "run")}
    assert len(of_content) == len({content for content, _ in of_content})
    new = Counter(side for content, side in sides(tmp_path / "run").items() if content not in before)
    assert min(new["train"], new["val"]) >= 1


@pytest.mark.parametrize("first", ["of known classes", "of a new class"])
def test_adding_twice_is_adding_once(colours, tmp_path, first):
    """Where the parts share no class that is new: what is drawn for a new class depends on all of its photos."""
    counts = {"ash": 14, "birch": 4} if first == "of known classes" else {"elm": 9}
    one, other = draw_photos(tmp_path / "one", counts, 50_000), draw_photos(tmp_path / "two", {"ash": 9}, 51_000)
    train(colours, tmp_path / "run")
    for out, parts in (("ab", (one, other)), ("ba", (other, one))):
        update.add(update.add(tmp_path / "run", parts[0], tmp_path / out).run.out, parts[1])
    both = shutil.copytree(one, tmp_path / "both" / "one")
    for path in other.rglob("*.png"):
        (both / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, both / path.parent.name / f"two_{path.name}")
    update.add(tmp_path / "run", both, tmp_path / "once")
    for out in ("ab", "ba"):
        assert sides(tmp_path / out) == sides(tmp_path / "once")
        assert same_model(tmp_path / out, tmp_path / "once")
        assert figures(tmp_path / out)["accuracy"] == figures(tmp_path / "once")["accuracy"]


def test_adding_a_class_is_training_on_all(colours, tmp_path):
    elms = draw_photos(tmp_path / "elms", {"elm": 11}, 52_000)
    train(colours, tmp_path / "run")
    updated = update.add(tmp_path / "run", elms)
    whole = shutil.copytree(colours, tmp_path / "whole")
    shutil.copytree(elms / "elm", whole / "elm")
    assert same_model(updated.run.out, train(whole, tmp_path / "from the start").out)
    assert same_model(updated.run.out, train(colours, tmp_path / "also", also=str(elms)).out)


@pytest.mark.parametrize("in_two", mostly_long([False, True], True))
def test_relabelling_is_training_on_a_relabelled_list(colours, tmp_path, in_two):
    """With the sides that the photos had: a class more or less would draw others."""
    train(colours, tmp_path / "run")
    fixes = [{"path": f"ash/ash_{i}.png", "label": "elm"} for i in range(7)]
    fixes += [{"path": "birch/birch_1.png", "label": "cedar"}]
    for part in ([fixes[:3], fixes[3:]]) if in_two else [fixes]:
        update.relabel(tmp_path / "run", write_list(tmp_path / "fix.csv", part))
    relabelled = shutil.copytree(colours, tmp_path / "relabelled")
    told = {row["path"]: row["label"] for row in rows_of(tmp_path / "run")}
    assert {row["path"]: row["label"] for row in fixes}.items() <= told.items()
    rows = [row | {"label": told[row["path"]]} for row in rows_of(tmp_path / "run")]
    whole = train(write_list(relabelled / "list.csv", rows, ("path", "label", "split")), tmp_path / "whole")
    assert same_model(tmp_path / "run", whole.out)
    assert figures(tmp_path / "run")["accuracy"] == figures(whole.out)["accuracy"]
    given_by = {row["path"]: row["by"] for row in rows_of(tmp_path / "run")}
    assert {path for path, by in given_by.items() if by == "relabel"} == {row["path"] for row in fixes}


# one set of photos, in two ways


@pytest.mark.parametrize(
    "kinds", mostly_long(["duplicates", "conflicts", "conflicts,duplicates"], "conflicts,duplicates")
)
def test_dropping_is_training_on_a_folder_without(colours, tmp_path, kinds):
    folder = with_copies(colours, tmp_path / "copies")
    dropped = train(folder, tmp_path / "run", drop=kinds)
    left_out = [row["path"] for row in rows_of(dropped.out) if "quarantined" in row]
    assert len(left_out) == {"duplicates": 4, "conflicts": 8, "conflicts,duplicates": 12}[kinds]
    for path in left_out:
        (folder / path).unlink()
    without = train(folder, tmp_path / "without")
    assert same_model(dropped.out, without.out)
    same = ("accuracy", "cross_validated", "classes", "decision")
    assert [figures(dropped.out)[name] for name in same] == [figures(without.out)[name] for name in same]


def _files_renamed(folder):
    for i, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"z{i:03}.png"))


def _folder_renamed(folder):
    folder.rename(folder.with_name("an other"))
    return folder.with_name("an other")


def _as_a_list(folder):
    rows = [{"path": str(p.relative_to(folder)), "label": p.parent.name} for p in folder.rglob("*.png")]
    return write_list(folder / "list.csv", sorted(rows, key=lambda row: row["path"][::-1]))


def _as_a_flat_list(folder):
    rows = []
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        rows.append({"path": f"{i}.png", "label": path.parent.name})
        path.rename(folder / f"{i}.png")
    return write_list(folder / "list.csv", rows)


@pytest.mark.parametrize("change", [_files_renamed, _folder_renamed, _as_a_list, _as_a_flat_list])
def test_names_of_files_and_lists_in_place_of_folders_change_no_byte(colours, tmp_path, change):
    folder = shutil.copytree(colours, tmp_path / "photos")
    plain = train(colours, tmp_path / "plain")
    changed = train(change(folder) or folder, tmp_path / "changed")
    assert same_model(plain.out, changed.out)
    assert figures(plain.out) == figures(changed.out)
    assert sides(plain.out) == sides(changed.out)


def test_names_of_classes_change_nothing_but_the_names(colours, tmp_path):
    names = {"ash": "zelkova", "birch": "apple", "cedar": "Lärche 2"}  # in another order too
    folder = shutil.copytree(colours, tmp_path / "photos")
    for old, new in names.items():
        (folder / old).rename(folder / new)
    plain, renamed = train(colours, tmp_path / "plain"), train(folder, tmp_path / "renamed")
    assert sides(plain.out) == sides(renamed.out)
    assert figures(plain.out)["accuracy"] == figures(renamed.out)["accuracy"]
    assert figures(plain.out)["cross_validated"] == figures(renamed.out)["cross_validated"]
    for path in sorted(colours.rglob("*.png"))[::5]:
        said, other = plain.bundle.predict(path), renamed.bundle.predict(path)
        assert other.label == names[said.label]
        for name, probability in said.probabilities.items():
            assert other.probabilities[names[name]] == pytest.approx(probability, abs=1e-4)  # both solved to 1e-6 nats


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_photo_is_the_same_from_path_bytes_image_and_array(colours, tmp_path, suffix):
    bundle = train(colours, tmp_path / "run").bundle
    path = tmp_path / f"photo{suffix}"
    Image.open(draw(tmp_path / "drawn.png", SHADES["ash"], 77)).convert("RGB").save(path)
    with Image.open(path) as image:
        forms = SimpleNamespace(
            path=path, text=str(path), bytes=path.read_bytes(), image=image, array=np.asarray(image)
        )
        said = {name: bundle.predict(form) for name, form in vars(forms).items()}
    assert all(one == said["path"] for one in said.values())


# figures, and who takes part in them


def test_the_cross_validated_figure_is_the_score_of_refits(backbone, colours, tmp_path):
    run = train(colours, tmp_path / "run")
    told = run.summary["cross_validated"]
    penalty = run.bundle.manifest["provenance"]["head"]["penalty"]
    dataset, features = extract(backbone, list_photos(colours))
    folds = folds_of(dataset, 5, 0)
    x = features.x.astype(np.float64)
    correct = 0
    for fold in range(5):
        seen = folds != fold
        mean, spread = x[seen].mean(axis=0), x[seen].std(axis=0)
        z = (x - mean) / floored(mean, spread)
        model = LogisticRegression(C=1 / (penalty * seen.sum()), tol=1e-8, max_iter=5000)
        correct += (model.fit(z[seen], dataset.labels[seen]).predict(z[~seen]) == dataset.labels[~seen]).sum()
    assert (told["n"], told["value"]) == (len(dataset), pytest.approx(correct / len(dataset)))
    assert 0.4 < told["value"] < 1


@pytest.mark.parametrize(
    ("is_given", "searched"),
    mostly_long(itertools.product([False, True], repeat=2), (False, True), (True, False)),
)
def test_no_photo_both_chooses_and_judges(colours, tmp_path, monkeypatch, is_given, searched):
    """Penalty, features, temperature and thresholds come from other photos than the figure that is reported."""
    chose, calibrated_on = set(), []
    solve, calibrate = search.cached_head, linear_probe.calibrated
    monkeypatch.setattr(search, "cached_head", lambda f, *more: chose.update(f.hashes) or solve(f, *more))
    monkeypatch.setattr(linear_probe, "calibrated", lambda p, y: calibrated_on.append(len(y)) or calibrate(p, y))
    run = _given(colours, tmp_path, search=searched) if is_given else _plain(colours, tmp_path, search=searched)
    evaluated = eval_photos(load(run), QUIET, "")
    learned = [content for content, side in sides(run).items() if side == "train"]
    assert chose
    assert not chose & set(evaluated.hashes)
    assert set(calibrated_on) == {len(learned)}
