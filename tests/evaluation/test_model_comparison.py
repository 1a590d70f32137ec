"""Two models on the same photos: the exact test, and when no model could be shown to be better."""

import json
import re
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_1samp

from regraft.evaluation import comparison
from regraft.evaluation.comparison import BETTER, DIFFERS, no_room, pair, pairs, permutation_p

quick = settings(deadline=None, database=None, max_examples=60)
answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def compared(pairs):
    right = np.array(pairs)
    return pair("frozen", right[:, 0], "full", right[:, 1])


def table(both=0, a_only=0, b_only=0, neither=0):
    """Answers of two models, by the four cells of McNemar's table."""
    return [(True, True)] * both + [(True, False)] * a_only + [(False, True)] * b_only + [(False, False)] * neither


def exact(a_only, b_only):
    """Probability that a fair coin is at least as uneven, summed in whole numbers."""
    n, fewer = a_only + b_only, min(a_only, b_only)
    return min(1.0, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)


@given(answers)
@quick
def test_the_p_value_is_the_exact_one_of_the_discordant_photos(pairs):
    a_only = sum(1 for a, b in pairs if a and not b)
    b_only = sum(1 for a, b in pairs if b and not a)
    result = compared(pairs)
    assert (result.a_only, result.b_only, result.n) == (a_only, b_only, len(pairs))
    assert result.p_value == pytest.approx(exact(a_only, b_only), rel=1e-9)
    if a_only + b_only:
        assert result.p_value == pytest.approx(binomtest(b_only, a_only + b_only, 0.5).pvalue, rel=1e-9)


@given(answers)
@quick
def test_the_order_of_the_models_does_not_matter(pairs):
    one, other = compared(pairs), compared([(b, a) for a, b in pairs])
    assert (one.p_value, one.a_only, one.b_only) == (other.p_value, other.b_only, other.a_only)


def test_photos_that_both_or_neither_has_right_say_nothing():
    few = compared(table(a_only=1, b_only=9))
    assert compared(table(both=500, a_only=1, b_only=9, neither=80)).p_value == few.p_value
    assert few.p_value == pytest.approx(22 / 1024)


@pytest.mark.parametrize(("both", "neither"), [(5, 0), (0, 5), (3, 3)])
def test_models_that_answer_alike_do_not_differ(both, neither):
    result = compared(table(both=both, neither=neither))
    assert result.p_value == 1.0
    assert result.verdict == f"frozen and full do not differ on these {both + neither} photos"


def test_the_verdict_names_the_better_model_only_where_the_difference_is_clear():
    unclear, clear = compared(table(both=20, a_only=1, b_only=7)), compared(table(both=20, a_only=1, b_only=8))
    assert unclear.p_value > DIFFERS >= clear.p_value
    assert unclear.verdict == "frozen and full do not differ on these 28 photos"
    assert clear.verdict == "full is better than frozen by 4.2 to 40.9 points: right on 7 more of 29 photos"
    turned = compared(table(both=20, a_only=8, b_only=1))
    assert turned.verdict == "frozen is better than full by 4.2 to 40.9 points: right on 7 more of 29 photos"


@given(answers)
@quick
def test_a_pair_alone_needs_no_correction(pairs_of_answers):
    result = compared(pairs_of_answers)
    assert result.corrected == result.p_value
    assert result.differs == (result.p_value <= DIFFERS)


@pytest.mark.parametrize("more", [6, 9, 40])
@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_a_lead_is_never_shown_as_nothing(more, n):
    verdict = compared(table(both=n - more, b_only=more)).verdict
    low, high = map(float, re.search(r"by ([\d.e-]+) to ([\d.e-]+) points", verdict).groups())
    assert 0 < low < 100 * more / n < high


def three(a_only, b_only):
    """Frozen and scratch answer alike, full otherwise. Pairs by their names."""
    a, b = np.array(table(both=20, a_only=a_only, b_only=b_only)).T
    return {(one.a, one.b): one for one in pairs({"frozen": a, "full": b, "scratch": a})}


def test_of_three_models_every_two_are_compared():
    found = three(1, 8)
    assert list(found) == [("frozen", "full"), ("frozen", "scratch"), ("full", "scratch")]
    assert (found["frozen", "full"].a_only, found["frozen", "full"].b_only) == (1, 8)
    assert (found["full", "scratch"].a_only, found["full", "scratch"].b_only) == (8, 1)
    assert pairs({"frozen": np.array([True])}) == ()


def test_the_verdict_on_one_of_several_pairs_is_that_of_the_corrected_p_value():
    found = three(1, 8)
    assert [one.p_value for one in found.values()] == pytest.approx([20 / 512, 1, 20 / 512])
    assert [one.corrected for one in found.values()] == pytest.approx([60 / 512, 1, 60 / 512])
    assert [one.differs for one in found.values()] == [False, False, False]
    assert found["frozen", "full"].verdict == "frozen and full do not differ on these 29 photos"
    assert found["frozen", "full"].to_json()["corrected"] == pytest.approx(60 / 512)


def test_a_difference_clear_enough_stands_among_several():
    found = three(0, 8)
    assert found["frozen", "full"].corrected == pytest.approx(3 * 2 / 2**8)
    assert found["frozen", "full"].verdict.startswith("full is better than frozen by ")
    assert found["full", "scratch"].verdict.startswith("full is better than scratch by ")
    assert found["frozen", "scratch"].verdict == "frozen and scratch do not differ on these 28 photos"


def test_what_auto_prefers_is_not_corrected():
    assert three(1, 7)["frozen", "full"].corrected > BETTER
    assert three(1, 7)["frozen", "full"].b_wins


def test_what_is_stored_is_plain_json():
    stored = json.loads(json.dumps(compared(table(both=2, a_only=1)).to_json()))
    assert stored == {
        "a": "frozen",
        "b": "full",
        "a_only": 1,
        "b_only": 0,
        "n": 3,
        "p_value": 1.0,
        "corrected": 1.0,
        "verdict": "frozen and full do not differ on these 3 photos",
    }


@pytest.mark.parametrize("num_wrong", range(13))
def test_there_is_no_room_exactly_where_a_model_without_errors_could_not_be_shown_to_be_better(num_wrong):
    n = 40
    perfect = compared(table(both=n - num_wrong, b_only=num_wrong))
    assert no_room(n - num_wrong, n) == (perfect.p_value > BETTER)
    assert no_room(n - num_wrong, n) == (num_wrong < 5)


@given(answers)
@quick
def test_the_costlier_model_wins_only_by_a_clear_lead_and_a_tie_goes_to_the_simpler(pairs):
    result = compared(pairs)
    is_ahead = result.b_only > result.a_only
    assert result.b_wins == (is_ahead and exact(result.a_only, result.b_only) <= BETTER)
    assert result.is_open == (is_ahead and not result.b_wins)


def test_the_decision_is_one_sentence_with_its_figures():
    won, open_, lost = (compared(table(both=20, a_only=1, b_only=b)) for b in (9, 3, 1))
    assert won.decision("val") == "full: of 30 val photos full alone is right on 9, frozen alone on 1 (p = 0.021)"
    assert open_.decision("test") == (
        "frozen: of 24 test photos full alone is right on 3, frozen alone on 1 (p = 0.62)"
        "; without a clear gain the simpler one stays"
    )
    assert [result.is_open for result in (won, open_, lost)] == [False, True, False]
    assert lost.decision("val").startswith("frozen: ")
    far_behind = compared(table(both=20, a_only=9, b_only=1))
    assert (far_behind.b_wins, far_behind.is_open) == (False, False)
    assert far_behind.decision("val").startswith("frozen: ")


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.5])
def test_paired_losses_differ_by_chance_as_often_as_a_t_test_says(shift):
    """The two agree where differences are normal."""
    differences = np.random.default_rng(3).normal(shift, 0.4, 60)
    expected = ttest_1samp(differences, 0.0).pvalue
    assert permutation_p(differences) == pytest.approx(expected, abs=4 * np.sqrt(0.25 / 9999) + 0.01)
    assert permutation_p(-differences) == permutation_p(differences)


def test_signs_drawn_a_few_at_a_time_are_the_same(monkeypatch):
    """Of thousands of photos all signs at once would take a gigabyte."""
    differences = np.random.default_rng(4).normal(0.02, 0.4, 101)
    whole = permutation_p(differences)
    for block in (1, 1000, 10**9):
        monkeypatch.setattr(comparison, "BLOCK", block)
        assert permutation_p(differences) == whole


def test_few_pairs_have_few_signs():
    """Of three differences alike two of eight choices of signs are as far from 0."""
    assert permutation_p(np.array([0.1, 0.1, 0.1])) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 9999))
    assert permutation_p(np.zeros(5)) == 1.0


def test_less_loss_decides_where_right_answers_do_not():
    a = np.arange(40) < 20
    alike = pair("frozen", a, "full", a)
    assert alike.decision("val").startswith("frozen: ")
    chosen = alike.decision("val", losses=(0.5, 0.4))
    assert chosen.startswith("full: of 40 val photos full alone is right on 0, frozen alone on 0 ")
    assert chosen.endswith("; its log loss is clearly less, 0.400 instead of 0.500")
    worse = pair("frozen", a, "full", np.arange(40) < 19)
    assert worse.decision("val", losses=(0.5, 0.4)).startswith("frozen: ")
