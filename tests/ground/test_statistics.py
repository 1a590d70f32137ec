"""Intervals agree with scipy's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from regraft.ground.statistics import accuracy, wilson_interval


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 13, 153, 10_000])
def test_wilson_interval_is_that_of_scipy(n, confidence):
    for num_right in {0, 1, n // 3, n - 1, n}:
        expected = binomtest(num_right, n).proportion_ci(confidence, method="wilson")
        assert wilson_interval(num_right, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(deadline=None, database=None)
def test_the_interval_holds_the_share_and_stays_within_0_and_1(counts):
    num_right, n = counts
    low, high = wilson_interval(num_right, n)
    assert 0 <= low <= num_right / n <= high <= 1
    assert low < high


@pytest.mark.parametrize("n", [10, 13])
def test_none_and_all_right_touch_the_ends(n):
    assert wilson_interval(0, n)[0] == 0
    assert wilson_interval(n, n)[1] == 1


@pytest.mark.parametrize(("num_right", "n"), [(0, 0), (-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused_with_their_values(num_right, n):
    with pytest.raises(ValueError, match=f"num_right={num_right}, n={n}"):
        wilson_interval(num_right, n)


def test_accuracy_says_how_far_it_can_be_trusted():
    found = accuracy(145, 153, "val")
    assert str(found) == "94.8 % of 153 val photos (95 % interval 90.0 to 97.3 %)"
    assert found.to_json() == {"value": 145 / 153, "low": found.low, "high": found.high, "n": 153, "split": "val"}
