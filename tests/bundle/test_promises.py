"""How often it may be wrong, and how often the right class is to be among those named: kept, or refused."""

import json
import os
import re
import shutil
from functools import cache

import numpy as np
import pytest

import regraft
from conftest import COLOURS, draw_folder, rewrite_manifest
from faults.processes import mostly_long
from regraft.backbones.backbone import load_backbone
from regraft.backbones.features import extract
from regraft.bundle.bundle import load, threshold
from regraft.bundle.format import seal_manifest
from regraft.bundle.predict import predict
from regraft.core.errors import BundleError
from regraft.core.files import json_bytes
from regraft.data.scan import scan
from regraft.data.splits import folds_of
from regraft.evaluation.evaluate import evaluate
from regraft.models.calibration import calibrated
from regraft.models.linear_head import solve
from regraft.models.logistic import log_softmax

ANY = {"n": 50, "max_error": [[0.3, 0.4, 1.0], [0.1, 0.6, 0.8], [0.2, 0.9, 0.5]], "coverage": [[0.8, 0.5], [0.9, 0.3]]}


def with_thresholds(bundle, tmp_path, thresholds):
    """A copy whose manifest says something else of thresholds."""
    others = shutil.ignore_patterns("regraft.json")
    copy = shutil.copytree(bundle.folder, tmp_path / "bundle", ignore=others, copy_function=os.link)
    (copy / "regraft.json").write_bytes(json_bytes(seal_manifest({**bundle.manifest, "thresholds": thresholds})))
    return copy


def blends(steps=13):
    """Photos of every colour between red and blue."""
    noise = np.random.default_rng(0).normal(0, 25, (96, 96, 3))
    red, blue = np.array(COLOURS["red"]), np.array(COLOURS["blue"])
    return [(red * (1 - s) + blue * s + noise).clip(0, 255).astype(np.uint8) for s in np.linspace(0, 1, steps)]


def refusal(manifest, kind, wanted):
    with pytest.raises(BundleError) as raised:
        threshold(manifest, kind, wanted)
    return str(raised.value)


def suggested(message):
    """Shares that a message names as possible."""
    return [float(text) / 100 for text in re.findall(r"([\d.e+-]+) %", message.partition("Expected")[2])]


def test_it_is_unsure_below_the_probability_that_keeps_the_error(bundle, photos):
    careful = load(bundle.folder, max_error=0.2)
    error, least, share = bundle.manifest["thresholds"]["max_error"][0]
    assert (error <= 0.2, share, careful.least_sure) == (True, 1, least)
    said = [careful.predict(photo) for photo in (*blends(), *sorted(photos.rglob("*.jpg")))]
    assert [one.unsure for one in said] == [one.probability < least for one in said]
    assert {one.unsure for one in said} == {True, False}


def test_an_unsure_answer_is_otherwise_the_same(bundle):
    careful, plain = load(bundle.folder, max_error=0.2), load(bundle.folder)
    for photo in blends(3):
        one, other = careful.predict(photo), plain.predict(photo)
        assert (one.label, one.probabilities, one.novelty) == (other.label, other.probabilities, other.novelty)


def test_nothing_asked_nothing_said(bundle):
    assert (bundle.least_sure, bundle.least_likely) == (0, None)
    for photo in blends():
        said = bundle.predict(photo)
        assert (said.unsure, said.labels) == (False, None)


def test_labels_are_the_classes_likely_enough_most_probable_first(bundle, tmp_path):
    careful, lengths = load(with_thresholds(bundle, tmp_path, {**ANY, "coverage": [[0.9, 0.01]]}), coverage=0.9), set()
    for photo in blends(30):
        said = careful.predict(photo)
        order = sorted(said.probabilities, key=said.probabilities.__getitem__, reverse=True)
        assert said.labels == tuple(name for name in order if said.probabilities[name] >= 0.01)
        assert said.labels[0] == said.label
        lengths.add(len(said.labels))
    assert {1, 2} <= lengths


@pytest.mark.parametrize(("least", "count"), [(1.0, 1), (0.0, 3)])
def test_labels_always_hold_the_best_and_may_be_all(bundle, tmp_path, least, count):
    careful = load(with_thresholds(bundle, tmp_path, {**ANY, "coverage": [[0.9, least]]}), coverage=0.9)
    for photo in blends(5):
        said = careful.predict(photo)
        assert (said.labels[0], len(said.labels)) == (said.label, count)
        shares = [said.probabilities[name] for name in said.labels]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("kind", "wanted", "least"),
    [
        ("max_error", 0.35, 0.4),
        ("max_error", 0.3, 0.4),
        ("max_error", 0.25, 0.6),  # of those that do, the one that answers most
        ("max_error", 0.1, 0.6),
        ("coverage", 0.7, 0.5),
        ("coverage", 0.8, 0.5),
        ("coverage", 0.85, 0.3),
        ("coverage", 0.9, 0.3),
    ],
)
def test_the_threshold_is_the_one_that_answers_most_or_names_fewest(kind, wanted, least):
    assert threshold({"thresholds": ANY}, kind, wanted) == least


def test_load_refuses_what_it_cannot_promise(bundle):
    count = bundle.manifest["thresholds"]["n"]
    for name, wanted in (("max_error", 0.01), ("coverage", 0.99)):
        flag = name.replace("_", "-")
        said = rf"cannot promise --{flag} {100 * wanted:g}%: the {count} photos that could tell .* Expected \d"
        with pytest.raises(BundleError, match=said):
            load(bundle.folder, **{name: wanted})


@pytest.mark.parametrize("least", [0.2, 0.17459581473198157, 0.1234, 0.0999, 0.00413, 0.5049])
def test_the_error_named_as_possible_is_possible_and_near_the_least(least):
    manifest = {"thresholds": {**ANY, "max_error": [[1.0, 0.4, 1.0], [least, 0.8, 0.5]]}}
    (error,) = suggested(refusal(manifest, "max_error", least / 2))
    assert least <= error <= 1.1 * least
    assert threshold(manifest, "max_error", error) == 0.8


def test_the_error_that_load_names_as_possible_is_possible(bundle):
    (error,) = suggested(refusal(bundle.manifest, "max_error", 0.01))
    assert load(bundle.folder, max_error=error).least_sure > 0


@pytest.mark.parametrize("coverages", [[0.8], [0.8, 0.9, 0.95], [0.8, 0.9, 0.95, 0.99]])
def test_every_coverage_that_is_named_as_possible_is_possible(coverages):
    manifest = {"thresholds": {**ANY, "coverage": [[share, 1 - share] for share in coverages]}}
    named = suggested(refusal(manifest, "coverage", 0.995))
    assert named == pytest.approx(coverages)
    assert [threshold(manifest, "coverage", share) for share in named] == [1 - share for share in coverages]


def test_a_model_without_thresholds_says_how_to_get_them(bundle, tmp_path):
    folder = with_thresholds(bundle, tmp_path, {})
    assert load(folder).predict(blends(1)[0]).unsure is False
    for wanted in ({"max_error": 0.5}, {"coverage": 0.8}):
        with pytest.raises(BundleError, match=r"no photos were set apart .* Train with --mode frozen, or with val and"):
            load(folder, **wanted)


@pytest.mark.parametrize("least", [0.994, 0.996, 0.9999])
def test_no_error_is_named_that_is_no_share(least):
    manifest = {"thresholds": {**ANY, "max_error": [[least, 0.5, 1.0]]}}
    assert all(least <= error < 1 for error in suggested(refusal(manifest, "max_error", 0.5)))


def test_where_nothing_at_all_can_be_promised_a_cure_is_named():
    manifest = {"thresholds": {"n": 2, "max_error": [[1.0, 0.5, 1.0]], "coverage": []}}
    for kind in ("max_error", "coverage"):
        assert "the 2 photos that could tell" in refusal(manifest, kind, 0.8)
        assert "Train with --mode frozen" in refusal(manifest, kind, 0.8)


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        "none",
        0,
        {"n": 50},
        {**ANY, "n": None},
        {**ANY, "n": "50"},
        {**ANY, "n": 50.5},
        {"n": 50, "max_error": ANY["max_error"]},
        {"n": 50, "coverage": ANY["coverage"]},
        {**ANY, "max_error": {"0.3": 0.4}},
        {**ANY, "max_error": [[0.3, 0.4]]},
        {**ANY, "max_error": [[0.3, 0.4, 1.0, 1.0]]},
        {**ANY, "max_error": [[0.3, "0.4", 1.0]]},
        {**ANY, "max_error": [[0.3, None, 1.0]]},
        {**ANY, "max_error": [0.3, 0.4, 1.0]},
        {**ANY, "coverage": [[0.9]]},
        {**ANY, "coverage": [[0.9, 0.5, 0.1]]},
        {**ANY, "coverage": [["0.9", 0.5]]},
        {**ANY, "coverage": None},
    ],
    ids=str,
)
def test_damaged_thresholds_are_refused(bundle, tmp_path, damaged):
    with pytest.raises(BundleError, match=r"regraft\.json is damaged: its thresholds"):
        load(with_thresholds(bundle, tmp_path, damaged))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-0.1", "1.5", "1" + 400 * "0"], ids=lambda text: text[:8])
@pytest.mark.parametrize("kind", ["max_error", "coverage"])
def test_thresholds_that_are_no_shares_are_refused(bundle, tmp_path, kind, number):
    """A probability that nothing is below would keep no promise, and say nothing of it."""
    rows = [[row[0], json.loads(number), *row[2:]] for row in ANY[kind]]
    with pytest.raises(BundleError, match=r"regraft\.json is damaged: its thresholds"):
        load(with_thresholds(bundle, tmp_path, {**ANY, kind: rows}))


def test_a_manifest_without_thresholds_is_damaged(bundle, tmp_path):
    copy = with_thresholds(bundle, tmp_path, {})
    rewrite_manifest(copy, thresholds=None)
    with pytest.raises(BundleError, match="its thresholds"):
        load(copy)


def mislabelled(root):
    """Photos of three colours, some under a wrong name."""
    folder = draw_folder(root / "new", ("red", "green", "blue"), 6, seed=300)
    for i in range(2):
        shutil.move(folder / "red" / f"red_{i}.jpg", folder / "green" / f"wrong_{i}.jpg")
    return folder


def test_evaluate_counts_answers_and_the_wrong_ones_among_them(bundle, tmp_path):
    folder = mislabelled(tmp_path)
    thought = [(answer.path, answer.prediction) for answer in predict(bundle, [folder])]
    least = float(np.median([said.probability for _, said in thought]))
    careful = load(with_thresholds(bundle, tmp_path, {**ANY, "max_error": [[0.2, least, 1.0]]}), max_error=0.2)
    sure = [f"/{said.label}/" in path for path, said in thought if said.probability >= least]
    found = evaluate(careful, folder).to_json()["selective"]
    assert found.keys() == {"least_probability", "answered", "wrong", "error"}
    assert found["least_probability"] == least
    assert (found["answered"], found["wrong"]) == (len(sure), len(sure) - sum(sure))
    assert 9 <= found["answered"] < 18
    assert found["error"]["value"] == found["wrong"] / found["answered"]
    assert found["error"]["low"] <= found["error"]["value"] < found["error"]["high"]


def test_evaluate_without_a_promise_answers_everything(bundle, photos):
    result = evaluate(bundle, photos)
    assert result.selective is None
    assert "selective" not in result.to_json()
    assert result.answered.all()


def test_where_nothing_is_sure_enough_there_is_no_error(bundle, photos, tmp_path):
    careful = load(with_thresholds(bundle, tmp_path, {**ANY, "max_error": [[0.2, 1.0, 0.1]]}), max_error=0.2)
    assert evaluate(careful, photos).selective == {
        "least_probability": 1.0,
        "answered": 0,
        "wrong": 0,
        "error": None,
    }


@pytest.fixture
def doubtful(bundle, photos, tmp_path):
    """A bundle that is unsure of some of the photos, as a folder; and how its answers are to begin."""
    said = [answer.prediction.probability for answer in predict(bundle, [photos])]
    thresholds = {**ANY, "max_error": [[0.2, float(np.median(said)), 1.0]], "coverage": [[0.9, 1e-9]]}
    return with_thresholds(bundle, tmp_path, thresholds)


def test_predict_says_unsure_and_names_classes(doubtful, photos, regraft_main):
    done = regraft_main("predict", doubtful, photos, "--max-error", "20%", "--coverage", "90%")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    unsure = [line for line in lines if re.search(r"jpg  unsure \((red|green|blue)  [\d.]+ %\)", line)]
    assert 1 <= len(unsure) < len(lines) == 30
    assert all(re.search(r"  one of: (red|green|blue)", line) for line in lines)
    assert not re.search("unsure|one of", regraft_main("predict", doubtful, photos).stdout)


def test_predict_says_so_in_json(doubtful, photos, regraft_main):
    promised = regraft_main("predict", doubtful, photos, "--max-error", "0.2", "--coverage", "0.9", "--json")
    careful = load(doubtful, max_error=0.2, coverage=0.9)
    rows = [json.loads(line) for line in promised.stdout.splitlines()]
    assert len(rows) == 30
    for row in rows:
        assert row["unsure"] is (row["probability"] < careful.least_sure)
        assert row["labels"] == [*careful.predict(row["path"]).labels]
        assert row["labels"][0] == row["label"]


def test_evaluate_prints_how_many_it_answered(doubtful, photos, regraft_main):
    found = evaluate(load(doubtful, max_error=0.2), photos).selective
    text = regraft_main("evaluate", doubtful, photos, "--max-error", "20%").stdout
    assert f"answered {found['answered']} of 30, {found['wrong']} of those wrong (" in text


@pytest.mark.parametrize("share", ["abc", "", "%", "0", "100%", "1", "-5%", "150%", "nan", "2 percent"])
@pytest.mark.parametrize("flag", ["--max-error", "--coverage"])
def test_a_share_that_is_none_is_wrong_usage(flag, share):
    from click.testing import CliRunner

    from regraft.cli import cli

    done = CliRunner().invoke(cli, ["predict", "bundle", "photo.jpg", f"{flag}={share}"])
    assert done.exit_code == 2
    assert f"{share!r} is no share between 0 and 1. Expected one like 2% or 0.02." in done.output


def test_wrong_usage_ends_with_2_and_a_promise_that_cannot_be_kept_with_1(bundle, photos, regraft_main):
    assert regraft_main("predict", bundle.folder, photos, "--max-error", "abc").returncode == 2
    refused = regraft_main("predict", bundle.folder, photos, "--max-error", "1%")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: This model cannot promise --max-error 1%")


@cache
def held_out(folder, num_folds=5):
    """Of each fold's photos, judged by a head and thresholds from the others: log probabilities, labels, thresholds."""
    dataset, features = extract(load_backbone(), scan(folder))
    folds, evaluated = folds_of(dataset, num_folds, 0), []
    for number in range(num_folds):
        learned, fold = (dataset.subset(np.flatnonzero(inside)) for inside in (folds != number, folds == number))
        head = solve(features.of(learned), len(dataset.classes), folds_of(learned, 5, 0))
        temperature, thresholds = calibrated(head.held_out, learned.labels)
        logits = head.logits(features.of(fold).x).astype(np.float64)
        evaluated.append((log_softmax(logits / temperature), fold.labels, {"thresholds": thresholds}))
    return evaluated


@pytest.mark.slow
def test_errors_on_white_blood_cells_are_no_more_than_was_promised(real_photos):
    answered, wrong = 0, 0
    for log_p, y, manifest in held_out(real_photos / "wbc4"):
        sure = np.exp(log_p).max(axis=1) >= threshold(manifest, "max_error", 0.3)
        answered += int(sure.sum())
        wrong += int((log_p.argmax(axis=1) != y)[sure].sum())
    assert wrong <= 0.3 * answered
    assert answered >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_long(["wbc4", "signdigits10s"], "wbc4"))
def test_real_photos_are_covered_as_often_as_was_said(real_photos, name):
    covered = np.concatenate(
        [
            np.exp(log_p[np.arange(len(y)), y]) >= threshold(manifest, "coverage", 0.9)
            for log_p, y, manifest in held_out(real_photos / name)
        ]
    )
    assert 0.87 <= covered.mean() <= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_long(["hymenoptera", "wbc4", "signdigits10s", "grocery_fruit5"], "hymenoptera", "wbc4")
)
def test_the_temperature_spoils_neither_calibration_nor_log_loss(real_photos, tmp_path, name, record_property):
    bundle = regraft.train(real_photos / name, tmp_path, quiet=True, mode="frozen", report=False)
    metrics = bundle.manifest["metrics"]
    record_property("temperature", bundle.manifest["temperature"])
    record_property("ece", [metrics["uncalibrated"]["ece"], metrics["ece"]])
    record_property("log loss", [metrics["uncalibrated"]["log_loss"], metrics["log_loss"]])
    assert metrics["ece"] <= metrics["uncalibrated"]["ece"]
    assert metrics["log_loss"] <= metrics["uncalibrated"]["log_loss"]
