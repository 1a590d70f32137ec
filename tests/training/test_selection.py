"""What chooses between models, and what judges: two sets of photos without a common one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regraft.core.statistics import accuracy, wilson_interval
from regraft.data.scan import Dataset
from regraft.data.splits import Splits, folds_of
from regraft.evaluation.comparison import pair
from regraft.models.linear_head import Head, Score
from regraft.models.logistic import log_softmax
from regraft.pipeline import selection as selections
from regraft.pipeline.selection import HeldOutPredictions, is_shifted, select, unseen_answers, without_room

CLASSES = ("a", "b", "c")


def photos(contents, seed=0):
    """A data set of photos known by number."""
    hashes = tuple(f"{content:064x}" for content in contents)
    labels = np.arange(len(hashes)) % 3
    paths = tuple(f"{seed}/{i}.jpg" for i in range(len(hashes)))
    return Dataset(Path("photos"), paths, labels, CLASSES, hashes=hashes, splits=("",) * len(hashes))


def splits_of(train, val, test=None):
    return Splits(photos(train), photos(val, 1), None if test is None else photos(test, 2), given=True)


LAYOUTS = {
    "val": splits_of(range(60), range(100, 120)),
    "test": splits_of(range(60), [], range(200, 230)),
    "val and test": splits_of(range(60), range(100, 120), range(200, 230)),
    "copies everywhere": splits_of([*range(60), 100, 101, 200], [*range(100, 120), 5, 6, 200, 201], range(200, 230)),
    "copies in val": splits_of(range(60), [*range(100, 120), *range(0, 60, 4)]),
}


@pytest.mark.parametrize("splits", LAYOUTS.values(), ids=LAYOUTS)
def test_no_photo_chooses_and_judges_or_chooses_and_is_learned_from(splits):
    chosen = select(splits, folds_of(splits.train, 5, 0))
    assert len(chosen.photos) >= 5
    assert not set(chosen.photos.hashes) & set(splits.eval_photos.hashes)
    assert not set(chosen.photos.hashes) & set(chosen.learned.hashes)
    assert set(chosen.learned.hashes) <= set(splits.train.hashes)
    both = splits.test is not None and len(splits.val) > 0
    assert (chosen.name, len(chosen.learned) == len(splits.train)) == (("val", True) if both else ("set-aside", False))


def test_of_many_photos_no_more_are_set_aside_than_it_takes(monkeypatch):
    splits = splits_of(range(300), range(1000, 1010))
    assert len(select(splits, folds_of(splits.train, 5, 0)).photos) == 60
    monkeypatch.setattr(selections, "ENOUGH", 25)
    chosen = select(splits, folds_of(splits.train, 5, 0))
    assert (len(chosen.photos), len(chosen.learned)) == (25, 275)


def test_where_nothing_can_be_set_aside_nothing_chooses():
    splits = splits_of(range(3), range(10, 13))
    chosen = select(splits, np.full(3, -1))
    assert (len(chosen.photos), len(chosen.learned)) == (0, 3)
    assert chosen.count(np.zeros(0, bool)) is None


def head_of(held_out, weight):
    return Head(np.asarray(weight, np.float32), np.zeros(3, np.float32), 0.1, (), np.asarray(held_out), None)


def test_a_frozen_head_is_right_on_photos_set_aside_by_answers_that_have_not_seen_them():
    splits = LAYOUTS["val"]
    folds = folds_of(splits.train, 5, 0)
    chosen = select(splits, folds)
    held_out = np.log(np.full((60, 3), 0.1) + 0.7 * np.eye(3)[splits.train.labels])
    missing = splits.train.paths.index(chosen.photos.paths[3])
    held_out[missing] = np.nan
    known_by_heart = head_of(held_out, np.zeros((3, 2)))
    answers = unseen_answers(chosen, known_by_heart, splits.train, np.zeros((len(chosen.photos), 2), np.float32))
    assert answers.losses[3] == pytest.approx(np.log(3)), "that of a guess"
    assert answers.correct.tolist() == [i != 3 for i in range(len(chosen.photos))]


def test_a_frozen_head_answers_photos_of_val_itself():
    splits = LAYOUTS["val and test"]
    chosen = select(splits, folds_of(splits.train, 5, 0))
    x = np.eye(3, dtype=np.float32)[np.where(np.arange(20) < 5, (chosen.photos.labels + 1) % 3, chosen.photos.labels)]
    answers = unseen_answers(chosen, head_of(np.full((60, 3), np.nan), np.eye(3)), splits.train, x)
    assert answers.correct.tolist() == [i >= 5 for i in range(20)]


@pytest.mark.parametrize(
    ("right_of_100", "split", "expected"),
    [(97, "val", False), (94, "val", False), (70, "val", True), (70, "set-aside", False)],
)
def test_val_from_elsewhere_is_seen_by_what_cross_validation_promised(right_of_100, split, expected):
    assert is_shifted(accuracy(right_of_100, 100, split), Score(0.1, 0.1, 588, 600)) is expected
    assert not is_shifted(None, Score(0.1, 0.1, 588, 600))
    assert not is_shifted(accuracy(right_of_100, 100, split), None)


def test_there_is_no_room_where_no_kind_of_photos_leaves_any():
    full, some = accuracy(98, 100, "val"), accuracy(70, 100, "cross-validated")
    assert without_room(full) is full
    assert without_room(None, full) is full
    assert without_room(full, some) is None
    assert without_room(None) is None


def simulated(rng, truth, num_choosing, num_evaluated, rule):
    """Right answers on the photos that judge, of what auto takes of three models that are equally good."""
    best = None
    for name in ("frozen", "last stages", "full"):
        choosing, evaluated = rng.random(num_choosing) < truth, rng.random(num_evaluated) < truth
        seen = choosing if rule == "others choose" else evaluated
        if best is None or pair(best[0], best[1], name, seen).b_wins:
            best = (name, seen, evaluated)
    return best[2]


def reported(rule, num_runs, truth):
    """`(num_runs,)`, how many of 150 photos are reported to be right in made-up runs of auto."""
    rng = np.random.default_rng(1)
    return np.array([simulated(rng, truth, 50, 150, rule).sum() for _ in range(num_runs)])


@pytest.mark.parametrize("truth", [0.7, 0.9, 0.95])
def test_the_reported_interval_covers_the_truth_where_models_do_not_differ(truth):
    ends = [wilson_interval(int(num_right), 150) for num_right in reported("others choose", 600, truth)]
    assert np.mean([low <= truth <= high for low, high in ends]) >= 0.94


def test_what_is_reported_is_flattered_only_where_the_photos_that_judge_choose():
    """What the rule is for: three models that are equally good, and the mean of what is reported of the chosen one."""
    spread = np.sqrt(0.7 * 0.3 / 150 / 2000)  # of such a mean
    honest, flattered = (reported(rule, 2000, 0.7).mean() / 150 - 0.7 for rule in ("others choose", "they choose"))
    assert abs(honest) < 3 * spread
    assert flattered > 3 * spread


def answers_of(signal, seed=0):
    """Of a hundred photos of three classes."""
    labels = np.arange(100) % 3
    logits = np.random.default_rng(seed).normal(0, 1, (100, 3)) + signal * np.eye(3)[labels]
    return HeldOutPredictions(log_softmax(logits), labels)


def test_models_are_told_apart_by_their_loss():
    usual, alike, less = answers_of(2.0), answers_of(2.0, seed=2), answers_of(3.0)
    assert alike.clearly_less_loss(usual) is usual.clearly_less_loss(alike) is None
    assert usual.clearly_less_loss(less) is None
    before, after = less.clearly_less_loss(usual)
    assert (before, after) == (usual.losses.mean(), less.losses.mean())
    assert after < before
    nothing = HeldOutPredictions(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert nothing.clearly_less_loss(nothing) is None


def test_losses_are_compared_at_the_temperatures_that_fit_best():
    """A network that label smoothing made modest loses nothing by it."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (200, 3)) + 3 * np.eye(3)[np.arange(200) % 3]
    sure, modest = (HeldOutPredictions(log_softmax(scale * logits), np.arange(200) % 3) for scale in (1.0, 0.3))
    assert modest.losses == pytest.approx(sure.losses, abs=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_photos_from_elsewhere_are_those_of_val_that_do_not_judge(layout):
    splits = LAYOUTS[layout]
    chosen = select(splits, folds_of(splits.train, 5, 0))
    assert chosen.from_elsewhere is None
    far = replace(chosen, is_far=True)
    has_both = layout in ("val and test", "copies everywhere")
    assert far.from_elsewhere is (chosen.photos if has_both else None)
