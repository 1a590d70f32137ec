"""Intervals agree with scipy's, and hold the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import f1_score

from regraft.core.statistics import (
    LARGE,
    accuracy,
    difference_interval,
    holm,
    macro_f1,
    macro_f1_interval,
    mean_interval,
    upper_bound,
    wilson_interval,
)

quick = settings(deadline=None, database=None)
counts_of_n = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
p_values = st.lists(st.floats(0, 1), max_size=12)
matrices = st.integers(2, 5).flatmap(
    lambda c: st.lists(st.lists(st.integers(0, 6), min_size=c, max_size=c), min_size=c, max_size=c)
)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [1, 2, 13, 153, 10_000])
def test_wilson_interval_is_that_of_scipy(n, confidence):
    for num_right in {0, 1, n // 3, n - 1, n}:
        expected = binomtest(num_right, n).proportion_ci(confidence, method="wilson")
        assert wilson_interval(num_right, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(counts_of_n)
@quick
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


@pytest.mark.parametrize("spread", [0.0, 0.05])
@pytest.mark.parametrize("p", [0.5, 0.9])
@pytest.mark.parametrize("n", [20, 153, 1000])
def test_the_interval_holds_the_true_share_in_95_of_100_cases(n, p, spread):
    """At 0.5 and 0.9 themselves, and at shares drawn around them: of few photos a single share can be a lucky one."""
    rng = np.random.default_rng(n)
    true = rng.uniform(p - spread, p + spread, 10_000)
    ends = np.array([wilson_interval(k, n) for k in range(n + 1)])[rng.binomial(n, true)]
    covered = np.mean((ends[:, 0] <= true) & (true <= ends[:, 1]))
    assert 0.935 <= covered <= 0.965


def test_accuracy_says_how_far_it_can_be_trusted():
    found = accuracy(145, 153, "val")
    assert str(found) == "94.8 % of 153 val photos (95 % interval 90.0 to 97.3 %)"
    assert found.to_json() == {"value": 145 / 153, "low": found.low, "high": found.high, "n": 153, "split": "val"}


@pytest.mark.parametrize("certainty", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [1, 2, 13, 153, 10_000])
def test_the_upper_bound_is_the_exact_one_sided_one_of_scipy(n, certainty):
    for num_wrong in {0, 1, n // 3, n - 1, n}:
        exact = binomtest(num_wrong, n, alternative="less").proportion_ci(certainty, method="exact")
        assert upper_bound(num_wrong, n, certainty) == pytest.approx(exact.high, abs=1e-12)


@pytest.mark.parametrize("n", [1, 20, 1000])
def test_the_upper_bound_at_its_ends(n):
    assert upper_bound(n, n, 0.9) == 1
    assert upper_bound(0, n, 0.9) == pytest.approx(1 - 0.1 ** (1 / n))
    assert upper_bound(0, 0, 0.9) == 1


@given(counts_of_n, st.floats(0.5, 0.999))
@quick
def test_the_upper_bound_lies_above_the_share_and_grows_with_errors(counts, certainty):
    num_wrong, n = counts
    bound = upper_bound(num_wrong, n, certainty)
    assert num_wrong / n <= bound <= 1
    assert upper_bound(max(0, num_wrong - 1), n, certainty) <= bound
    assert bound <= upper_bound(num_wrong, n, 0.9999)


@pytest.mark.parametrize("shares", [(0.04, 0.1), (0.2, 0.1), (0.15, 0.15)])
@pytest.mark.parametrize("n", [40, 153, 1000])
def test_the_interval_of_a_difference_holds_the_true_one_in_95_of_100_cases(n, shares):
    a, b = shares
    drawn = np.random.default_rng(n).multinomial(n, [a, b, 1 - a - b], 10_000)
    ends = np.array([difference_interval(a_only, b_only, n) for a_only, b_only, _ in drawn])
    covered = np.mean((ends[:, 0] <= b - a) & (b - a <= ends[:, 1]))
    assert 0.935 <= covered <= 0.97


tables = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 3000)).filter(sum)


@given(tables)
@quick
def test_the_interval_of_a_difference_holds_what_was_seen_and_turns_with_the_models(table):
    a_only, b_only, n = *table[:2], sum(table)
    low, high = difference_interval(a_only, b_only, n)
    assert -1 <= low <= (b_only - a_only) / n <= high <= 1
    assert low < high
    assert difference_interval(b_only, a_only, n) == pytest.approx((-high, -low), abs=1e-15)


@given(tables)
@quick
def test_a_difference_that_chance_would_hardly_make_has_an_interval_on_its_side(table):
    a_only, b_only, n = *table[:2], sum(table)
    low, high = difference_interval(a_only, b_only, n)
    if a_only + b_only and binomtest(a_only, a_only + b_only).pvalue <= 0.05:
        assert (low > 0) == (b_only > a_only)
        assert (high < 0) == (a_only > b_only)


def stepped_down(values):
    """Holm by its definition: each p-value with the largest of those before it, each times how many are left."""
    ordered = sorted(values)
    stepped = [min(1.0, max((len(values) - j) * ordered[j] for j in range(i + 1))) for i in range(len(values))]
    return [stepped[ordered.index(value)] for value in values]


@given(p_values)
@quick
def test_holm_is_its_definition(values):
    assert holm(values) == stepped_down(values)


def test_holm_of_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(p_values)
@quick
def test_holm_never_helps_keeps_the_order_and_never_exceeds_1(values):
    corrected = holm(values)
    assert all(before <= after <= 1 for before, after in zip(values, corrected, strict=True))
    in_order = [corrected[i] for i in sorted(range(len(values)), key=values.__getitem__)]
    assert in_order == sorted(in_order)


@given(st.floats(0, 1))
@quick
def test_a_single_p_value_is_left_as_it_is(value):
    assert holm([value]) == [value]


def photos_of(confusion):
    """True labels and answers of the photos behind a confusion matrix."""
    cells = np.argwhere(confusion >= 0)
    return np.repeat(cells, confusion.ravel(), axis=0).T


def f1_of(y, said):
    """Mean over the classes that occur, one after the other."""
    rows = [(2 * np.sum((y == c) & (said == c)), np.sum(y == c) + np.sum(said == c)) for c in set(y)]
    return np.mean([right / both for right, both in rows])


@given(matrices)
@quick
def test_macro_f1_is_that_of_scikit_learn_over_the_classes_that_occur(rows):
    y, said = photos_of(confusion := np.array(rows))
    occurring = np.unique(y)
    expected = f1_score(y, said, labels=occurring, average="macro", zero_division=0) if len(y) else 0
    assert macro_f1(confusion) == pytest.approx(expected)


def test_macro_f1_takes_many_matrices_at_once():
    confusion = np.random.default_rng(0).integers(0, 5, (2, 3, 4, 4))
    assert macro_f1(confusion).shape == (2, 3)
    assert macro_f1(confusion)[1, 2] == macro_f1(confusion[1, 2])


@pytest.mark.parametrize(
    "confusion",
    [
        np.array([[70, 10], [5, 68]]),
        np.array([[30, 4, 2, 0], [3, 12, 0, 1], [6, 0, 40, 5], [0, 0, 1, 2]]),
        np.array([[20, 3, 1], [0, 0, 0], [2, 1, 14]]),
    ],
)
def test_the_interval_of_macro_f1_is_scipys_bootstrap(confusion):
    expected = bootstrap(
        photos_of(confusion), f1_of, paired=True, vectorized=False, method="percentile", n_resamples=3000, rng=1
    ).confidence_interval
    assert macro_f1_interval(confusion) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert macro_f1_interval(confusion) == macro_f1_interval(confusion.copy())


def test_the_interval_of_macro_f1_is_a_point_where_nothing_is_wrong():
    assert macro_f1_interval(np.diag([5, 9, 0, 2])) == (1, 1)


@pytest.mark.parametrize("n", [10, 153, 2000])
def test_the_interval_of_a_mean_is_scipys_bootstrap(n):
    values = np.random.default_rng(n).exponential(size=n)
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    tolerance = 0.1 * (expected.high - expected.low)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high), abs=tolerance)
    assert mean_interval(values) == mean_interval(values.copy())


def test_the_interval_of_a_mean_of_many_is_the_normal_one():
    values = np.random.default_rng(0).exponential(size=LARGE)
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=500, batch=50, rng=1).confidence_interval
    low, high = mean_interval(values)
    assert low + high == pytest.approx(2 * values.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.15 * (expected.high - expected.low))


def test_the_interval_of_a_mean_hardly_changes_where_the_bootstrap_ends():
    values = np.random.default_rng(0).exponential(size=LARGE)
    below, above = mean_interval(values[:-1]), mean_interval(values)
    assert below == pytest.approx(above, abs=0.1 * (above[1] - above[0]))


def test_the_interval_of_macro_f1_makes_no_matrix_for_each_draw(monkeypatch):
    """Of a thousand classes, those would be sixteen gigabytes, and most of the seconds of a training."""
    largest = []
    zeros = np.zeros
    monkeypatch.setattr(np, "zeros", lambda *args, **named: largest.append(zeros(*args, **named)) or largest[-1])
    confusion = np.diag(np.full(300, 2)) + np.diag(np.full(299, 1), 1)
    low, high = macro_f1_interval(confusion)
    assert 0 < low < high < 1
    assert max(one.size for one in largest) <= 3 * 2000 * 300
