"""The temperature is found where probabilities are off, and left alone where they are not; promises are kept."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from regraft.core.statistics import upper_bound
from regraft.models.calibration import SOFT, calibrated, softening, temperature, thresholds
from regraft.models.logistic import log_softmax


def draw(n, c, sharpness, seed=0):
    """Log probabilities that are off by a factor of `sharpness`, and labels."""
    rng = np.random.default_rng(seed)
    honest = log_softmax(2 * rng.normal(size=(n, c)))
    y = np.array([rng.choice(c, p=p) for p in np.exp(honest)])
    return log_softmax(sharpness * honest), y


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_a_whole_weight_is_so_many_copies(sharpness):
    log_p, y = draw(60, 3, sharpness)
    counts = np.arange(60) % 4
    copies = np.repeat(np.arange(60), counts)
    expected = temperature(log_p[copies], y[copies])
    assert expected != 1
    assert temperature(log_p, y, counts.astype(float)) == pytest.approx(expected, rel=1e-6)
    holes = np.vstack([log_p, np.full((1, 3), np.nan)])
    assert temperature(holes, np.append(y, 0), np.append(counts, 9.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.3, 3.0, 8.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_what_was_sharpened_is_calmed(sharpness, num_classes):
    log_p, y = draw(2000, num_classes, sharpness)
    found = temperature(log_p, y)
    assert found == pytest.approx(sharpness, rel=0.15)
    expected = minimize_scalar(
        lambda t: log_loss(y, np.exp(log_softmax(log_p / t)), labels=range(num_classes)), bounds=(0.05, 20)
    )
    assert found == pytest.approx(expected.x, rel=1e-2)


def test_what_is_right_stays():
    stays = [temperature(*draw(150, 4, 1.0, seed)) == 1 for seed in range(40)]
    assert 0.85 <= np.mean(stays) <= 1


def test_photos_not_judged_do_not_count():
    log_p, y = draw(400, 3, 3.0)
    more = np.concatenate([log_p, np.full((5, 3), np.nan)])
    assert temperature(more, np.append(y, [0] * 5)) == temperature(log_p, y)
    assert temperature(np.full((5, 3), np.nan), np.zeros(5, np.int64)) == 1


def test_all_right_and_all_wrong_stay_within_bounds():
    sure = log_softmax(np.eye(3)[[0, 1, 2] * 20] * 2.0)
    assert 0.04 < temperature(sure, np.array([0, 1, 2] * 20)) <= 1
    assert 1 <= temperature(sure, np.array([1, 2, 0] * 20)) < 21


@pytest.mark.parametrize("n", [100, 200, 1000])
def test_being_right_every_time_is_no_reason_to_be_certain(n):
    """By the rule of succession one in n + 2 will be wrong."""
    log_p, y = answers(np.full(n, 0.97), np.full(n, True))
    doubt = np.exp(log_softmax(log_p / temperature(log_p, y)))[0, 1]
    assert doubt > 0.1 / n


def answers(confidence, right):
    """Log probabilities of two classes and labels, from how sure the answers are, 0.5..1, and which are right."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, bool)
    return np.log(np.stack([confidence, 1 - confidence], axis=1)), np.where(right, 0, 1)


def simulated(n, chance_of_right, seed):
    """Answers of every confidence, right as often as `chance_of_right` says for it."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 0.999, n)
    return answers(confidence, rng.random(n) < chance_of_right(confidence))


def true_error(least, chance_of_right):
    """Of answers at least so sure, by the law they are drawn from."""
    above = np.linspace(least, 0.999, 2001)
    return 1 - chance_of_right(above).mean()


LAWS = {
    "honest": lambda confidence: confidence,
    "boastful": lambda confidence: confidence**2,
    "no idea": lambda confidence: np.full_like(confidence, 0.8),
}


def test_thresholds_are_plain_lists_from_all_answers_to_the_surest():
    log_p, y = draw(500, 4, 1.0)
    found = thresholds(log_p, y)
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"n", "max_error", "coverage"}
    assert found["n"] == 500
    errors, probabilities, shares = zip(*found["max_error"], strict=True)
    assert shares == pytest.approx(np.arange(10, 0, -1) / 10)
    assert probabilities[0] == pytest.approx(np.exp(log_p).max(axis=1).min())
    assert list(probabilities) == sorted(probabilities)
    assert all(0 < error <= 1 for error in errors)
    assert [coverage for coverage, _ in found["coverage"]] == [0.8, 0.9, 0.95, 0.99]
    assert [probability for _, probability in found["coverage"]] == sorted(
        (probability for _, probability in found["coverage"]), reverse=True
    )


some_answers = st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.7, 0.9, 0.99]), st.booleans()), min_size=1, max_size=80)


@given(some_answers)
@settings(deadline=None, database=None)
def test_answers_equally_sure_are_given_together(drawn):
    log_p, y = answers(*zip(*drawn, strict=True))
    confidence, wrong = np.exp(log_p).max(axis=1), np.exp(log_p).argmax(axis=1) != y
    steps = thresholds(log_p, y)["max_error"]
    assert steps[0][1:] == [confidence.min(), 1]
    for error, least, share in steps:
        given_ = confidence >= least
        assert share == given_.mean()
        assert error == upper_bound(int(wrong[given_].sum()), int(given_.sum()), 0.99)


@pytest.mark.parametrize(("n", "coverages"), [(3, []), (4, [0.8]), (8, [0.8]), (9, [0.8, 0.9]), (18, [0.8, 0.9])])
def test_a_coverage_needs_so_many_photos(n, coverages):
    assert [row[0] for row in thresholds(*draw(n, 3, 1.0))["coverage"]] == coverages


@pytest.mark.parametrize(("n", "count"), [(19, 3), (98, 3), (99, 4)])
def test_high_coverages_need_many(n, count):
    assert len(thresholds(*draw(n, 3, 1.0))["coverage"]) == count


def test_the_coverage_threshold_is_the_probability_of_a_known_photo():
    own = np.array([0.95, 0.9, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.3])
    log_p = np.log(np.stack([own, 1 - own], axis=1))
    assert thresholds(log_p, np.zeros(9, np.int64))["coverage"] == [
        [0.8, pytest.approx(0.55)],  # the 8th of 10 * 0.8
        [0.9, pytest.approx(0.3)],
    ]


def coverage(log_p, y, least):
    return np.mean(np.exp(log_p[np.arange(len(y)), y]) >= least)


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_fresh_photos_are_covered_as_often_as_was_said(num_classes, sharpness):
    """Also where probabilities are off."""
    found = dict(thresholds(*draw(1000, num_classes, sharpness, 0))["coverage"])
    fresh = draw(5000, num_classes, sharpness, 1)
    assert 0.87 <= coverage(*fresh, found[0.9]) <= 0.93


def test_few_photos_cover_as_often_as_was_said_on_average():
    fresh = draw(5000, 4, 1.0, 1000)
    covered = [coverage(*fresh, dict(thresholds(*draw(60, 4, 1.0, seed))["coverage"])[0.9]) for seed in range(100)]
    assert 0.89 <= np.mean(covered) <= 0.92


@cache
def promised(n, law):
    """Steps from all answers to the surest, in 200 simulations."""
    return [thresholds(*simulated(n, LAWS[law], seed))["max_error"] for seed in range(200)]


@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("law", LAWS)
def test_what_is_said_of_errors_holds_for_all_shares_at_once(n, law):
    broken = [any(true_error(least, LAWS[law]) > error for error, least, _ in steps) for steps in promised(n, law)]
    assert np.mean(broken) <= 0.1


@pytest.mark.parametrize("wanted", [0.1, 0.199, 0.25, 0.35])
@pytest.mark.parametrize("law", LAWS)
def test_a_wanted_error_is_exceeded_in_at_most_one_case_of_ten(wanted, law):
    chosen = [next((least for error, least, _ in steps if error <= wanted), None) for steps in promised(200, law)]
    exceeded = [least is not None and true_error(least, LAWS[law]) > wanted for least in chosen]
    assert np.mean(exceeded) <= 0.1


def test_many_photos_promise_nearly_what_is_true():
    steps = thresholds(*simulated(5000, LAWS["honest"], 0))["max_error"]
    for error, least, _ in steps:
        true = true_error(least, LAWS["honest"])
        assert true <= error <= true + 0.03


def test_photos_not_judged_set_no_threshold():
    log_p, y = draw(100, 3, 1.0)
    more, labels = np.concatenate([log_p[:50], np.full((5, 3), np.nan), log_p[50:]]), np.insert(y, 50, [0] * 5)
    assert thresholds(more, labels) == thresholds(log_p, y)
    partly = np.concatenate([log_p, [[0.0, np.nan, np.nan]]])
    assert thresholds(partly, np.append(y, 1)) == thresholds(log_p, y)


def test_of_no_photos_nothing_is_promised():
    assert thresholds(np.empty((0, 3)), np.empty(0, np.int64)) == {}
    assert thresholds(np.full((4, 3), np.nan), np.zeros(4, np.int64)) == {}
    assert calibrated(np.empty((0, 3), np.float32), np.empty(0, np.int64)) == (1.0, {})


def test_thresholds_are_of_probabilities_with_the_temperature_applied():
    log_p, y = draw(1000, 4, 5.0)
    logits = (log_p + 3).astype(np.float32)
    calibrated_log_p, promises = calibrated(logits, y)
    assert calibrated_log_p == pytest.approx(5, rel=0.15)
    assert calibrated_log_p == temperature(logits.astype(np.float64), y)
    assert promises == thresholds(log_softmax(logits.astype(np.float64) / calibrated_log_p), y)
    honest = thresholds(log_softmax(log_p / 5), y)
    for kind in ("max_error", "coverage"):
        assert np.array(promises[kind]) == pytest.approx(np.array(honest[kind]), abs=0.05)


@pytest.mark.parametrize("num_classes", [2, 22])
def test_a_softened_head_has_its_share_of_the_loss_of_guessing(num_classes):
    rng = np.random.default_rng(0)
    y = rng.integers(0, num_classes, 60)
    logits = 20 * np.eye(num_classes)[y] + rng.normal(size=(60, num_classes))
    factor = softening(logits, y)
    assert 0 < factor < 1
    softened = log_loss(y, np.exp(log_softmax(factor * logits)), labels=range(num_classes))
    assert softened == pytest.approx(SOFT * np.log(num_classes), rel=1e-6)
    assert softening(np.zeros((60, num_classes)), y) == 1.0, "who guesses is not sure"
