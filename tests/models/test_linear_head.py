"""The solved head is scikit-learn's, to the last label, and the same bytes every time."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from regraft.backbones.features import Features
from regraft.data.splits import fold_ids
from regraft.models import linear_head as heads
from regraft.models import logistic, standardised
from regraft.models.linear_head import PENALTIES, out_of_fold, score, solve
from regraft.models.logistic import Curvature, RowsInMemory, Task, fit_logistic, log_softmax

SHAPES = {"N<D": (60, 96), "N>D": (120, 24)}


def features_of(x, y):
    return Features(np.asarray(x, np.float32), np.asarray(y, np.int64), tuple(f"{i:064x}" for i in range(len(y))))


def draw_features(n, d, c, seed=0, separation=0.6):
    """Classes that overlap, on features of very different scales, as networks give them."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    x = rng.normal(size=(n, d)) + separation * rng.normal(size=(c, d))[y]
    return features_of(np.maximum(x, -0.5) * rng.uniform(0.01, 30, d) + rng.normal(size=d), y)


def folds_of(features):
    return fold_ids(features.y, features.hashes)


def floored_scaler(x):
    """Scikit-learn's own, which divides no feature by less than the median spread."""
    scaler = StandardScaler().fit(x.astype(np.float64))
    scaler.scale_ = np.maximum(scaler.scale_, np.median(scaler.scale_))
    return scaler


def unfold(x, y, penalty):
    """Scikit-learn's own way: scale, then fit, without a rotation. Returns `x -> logits (N, C)`."""
    scaler = floored_scaler(x)
    model = LogisticRegression(C=1 / (penalty * len(y)), solver="newton-cg", tol=1e-8, max_iter=5000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its line search ends in rounding; the usual solver ends far earlier
        model.fit(scaler.transform(x), y)

    def logits(x):
        decision = model.decision_function(scaler.transform(x.astype(np.float64)))
        return np.stack([-decision / 2, decision / 2], axis=1) if decision.ndim == 1 else decision

    return logits


def centred(logits):
    """Softmax does not see what all classes have in common."""
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_head_is_scikit_learns(shape, num_classes):
    features = draw_features(*SHAPES[shape], num_classes)
    head = solve(features, num_classes, folds_of(features))
    expected = unfold(features.x, features.y, head.penalty)
    for x in (features.x, draw_features(*SHAPES[shape], num_classes, seed=1).x):
        logits = head.logits(x)
        assert logits.shape == (len(x), num_classes)
        assert logits.dtype == np.float32
        assert np.abs(centred(logits) - centred(expected(x))).max() <= 1e-3 * max(1, np.abs(expected(x)).max())
        assert np.array_equal(logits.argmax(axis=1), expected(x).argmax(axis=1))


def test_weight_and_bias_are_float32_of_the_shape_of_a_linear_layer():
    features = draw_features(60, 96, 5)
    head = solve(features, 5, folds_of(features))
    assert (head.weight.shape, head.bias.shape) == ((5, 96), (5,))
    assert head.weight.dtype == head.bias.dtype == np.float32
    assert np.array_equal(head.logits(features.x), features.x @ head.weight.T + head.bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_features_give_the_same_bytes(shape):
    features = draw_features(*SHAPES[shape], 5)
    first = solve(features, 5, folds_of(features))
    for threads in (1, 2):
        with threadpool_limits(threads):
            again = solve(features, 5, folds_of(features))
        assert again.weight.tobytes() == first.weight.tobytes()
        assert again.bias.tobytes() == first.bias.tobytes()
        assert again.curve == first.curve


def test_the_number_of_cores_does_not_matter(monkeypatch):
    features = draw_features(60, 24, 3)
    heads_found = []
    for cores in (1, 7):
        monkeypatch.setattr(logistic, "num_cores", lambda cores=cores: cores)
        heads_found.append(solve(features, 3, folds_of(features)))
    assert heads_found[0].weight.tobytes() == heads_found[1].weight.tobytes()
    assert heads_found[0].curve == heads_found[1].curve


def test_float32_on_raw_features_gives_the_labels_of_the_float64_solution():
    """Large offsets and tiny scales are where folding the standardisation into weight and bias could lose them."""
    features = draw_features(120, 64, 5, separation=1.0)
    shifted = features_of(features.x * 1e-2 + 10, features.y)
    head = solve(shifted, 5, folds_of(shifted))
    problem = standardised.problem_of(shifted, 5, np.arange(120))
    one = problem.fit(head.penalty, None, 1e-12)
    weight, bias = one.weight[0], one.bias[0]
    assert np.array_equal(head.logits(shifted.x).argmax(axis=1), (problem.rows.z @ weight.T + bias).argmax(axis=1))


def test_rotation_changes_nothing(monkeypatch):
    features = draw_features(40, 60, 3)
    rotated = solve(features, 3, folds_of(features))
    monkeypatch.setattr(standardised, "principal_axes", lambda z: (np.eye(z.shape[1]), np.ones(z.shape[1])))
    expected = solve(features, 3, folds_of(features))
    assert expected.penalty == rotated.penalty
    assert np.allclose(rotated.logits(features.x), expected.logits(features.x), atol=1e-3)


def test_the_penalty_is_where_the_curve_is_lowest():
    features = draw_features(120, 24, 5)
    head = solve(features, 5, folds_of(features))
    losses = [point.log_loss for point in head.curve]
    assert [point.penalty for point in head.curve] == list(PENALTIES)
    assert head.penalty == PENALTIES[int(np.argmin(losses))]
    assert PENALTIES[0] < head.penalty < PENALTIES[-1], "a task where the choice matters"


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_curve_is_the_log_loss_of_photos_not_seen(num_classes):
    features = draw_features(60, 96, num_classes)
    folds = folds_of(features)
    point = solve(features, num_classes, folds).curve[4]
    logits = np.zeros((60, num_classes))
    for fold in range(5):
        seen = folds != fold
        z = floored_scaler(features.x[seen]).transform(features.x.astype(np.float64))
        model = LogisticRegression(C=1 / (point.penalty * seen.sum()), tol=1e-8, max_iter=5000)
        logits[~seen] = model.fit(z[seen], features.y[seen]).predict_log_proba(z[~seen])
    assert point.log_loss == pytest.approx(log_loss(features.y, np.exp(logits)), abs=1e-3)
    assert point.num_right == accuracy_score(features.y, logits.argmax(axis=1), normalize=False)
    assert point.n == 60
    assert np.allclose(np.exp(out_of_fold(features, num_classes, folds, point.penalty)), np.exp(logits), atol=1e-3)


def test_nothing_that_an_answer_rests_on_has_seen_its_fold(monkeypatch):
    """What is said of a fold's photos is what a head says that was solved without them: scale, fit and all."""
    monkeypatch.setattr(heads, "PENALTIES", (0.01, 0.1, 1.0))
    features, folds = draw_features(60, 12, 3), np.arange(60) % 5
    features.table[folds == 2] *= 30  # so that one fold alone moves mean and spread
    head = solve(features, 3, folds)
    for fold in range(5):
        seen = np.flatnonzero(folds != fold)
        own = Features(features.x[seen], features.y[seen], tuple(features.hashes[i] for i in seen))
        curve = {point.penalty: out_of_fold(features, 3, folds, point.penalty) for point in head.curve}
        losses = {p: -log_p[seen, features.y[seen]].sum() for p, log_p in curve.items()}
        chosen = min(losses, key=losses.__getitem__)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heads, "MIDDLING", chosen)  # where nothing chooses
            alone = solve(own, 3, np.full(len(seen), -1))
        logits = alone.logits(features.x[folds == fold]).astype(np.float64)
        assert np.allclose(np.exp(head.held_out[folds == fold]), np.exp(log_softmax(logits)), atol=2e-3)
    assert head.cross_validated == score(head.held_out, features.y, head.penalty)


def test_cross_validation_is_no_better_than_photos_not_seen():
    """Features that hardly ever move, as rectified ones do: divided by their own spread they shout of photos not seen.

    Cross-validation inside sees that too, so its loss is that of photos which had no part in anything.
    """
    rng, losses = np.random.default_rng(3), []
    centres = rng.normal(size=(4, 12))
    for _ in range(4):
        y = np.arange(400) % 4
        rare = np.where(rng.random((400, 150)) < 0.02, rng.exponential(1e-2, (400, 150)), 0)
        x = np.hstack([0.5 * centres[y] + rng.normal(size=(400, 12)), rng.normal(size=(400, 160)) * 0.5, rare])
        features = features_of(x[:100], y[:100])
        head = solve(features, 4, folds_of(features))
        log_p = log_softmax(head.logits(x[100:].astype(np.float32)).astype(np.float64))
        losses.append((head.cross_validated.log_loss, score(log_p, y[100:], 0.1).log_loss))
    promised, true = np.mean(losses, axis=0)
    assert promised > true - 0.05


def test_no_feature_is_divided_by_less_than_the_median_spread():
    mean, spread = np.zeros(5), np.array([1e-12, 0.01, 1.0, 2.0, 8.0])
    assert standardised.floored(mean, spread).tolist() == [1.5, 1.5, 1.5, 2.0, 8.0]
    assert standardised.floored(mean, 1e-30 * spread).tolist() == (1e-30 * standardised.floored(mean, spread)).tolist()
    assert standardised.floored(mean, 0 * spread).tolist() == [1] * 5


def test_the_order_of_photos_changes_no_bit():
    features = draw_features(60, 96, 3)
    folds, order = folds_of(features), np.random.default_rng(0).permutation(60)
    hashes = tuple(features.hashes[i] for i in order)
    a = solve(features, 3, folds)
    b = solve(Features(features.x[order], features.y[order], hashes), 3, folds[order])
    assert np.array_equal(a.weight, b.weight)
    assert np.array_equal(a.held_out[order], b.held_out)


def test_only_what_is_judged_counts():
    features = draw_features(60, 24, 3)
    folds = folds_of(features)
    folds[[0, 1, 2, 30]] = -1
    log_p = out_of_fold(features, 3, folds)
    assert np.array_equal(np.isnan(log_p).any(axis=1), folds == -1)
    point = score(log_p, features.y, 0.1)
    assert point.n == 56
    assert 0 <= point.num_right <= 56


def test_where_all_others_are_of_one_class_that_one_is_said():
    features = draw_features(6, 4, 2)
    folds = np.where(features.y == 0, 0, -1)
    assert (out_of_fold(features, 2, folds)[folds == 0].argmax(axis=1) == 1).all()


def test_photos_never_judged_are_always_learned_from():
    """Class 2 has a single photo: without it in every fold, its neighbours could not be mistaken for it."""
    x = np.array([[0, 0], [0, 1], [0, 2], [9, 0], [9, 1], [9, 2], [0, 1.1]])
    features = features_of(x, [0, 0, 0, 1, 1, 1, 2])
    folds = np.array([0, 1, 2, 0, 1, 2, -1])
    seen = []

    def heads_fit(task, *more, **named):
        seen.extend(set(task.y[one].tolist()) for one in task.chosen.T)
        return fit_logistic(task, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standardised, "fit_logistic", heads_fit)
        out_of_fold(features, 3, folds)
    assert seen == [{0, 1, 2}] * 3


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("dimensions", [4, 200])
def test_classes_far_apart_are_all_right(num_classes, dimensions):
    rng, y = np.random.default_rng(0), np.arange(30) % num_classes
    features = features_of(rng.normal(size=(30, dimensions)) + 50 * rng.normal(size=(num_classes, dimensions))[y], y)
    folds = folds_of(features)
    head = solve(features, num_classes, folds)
    assert np.array_equal(head.logits(features.x).argmax(axis=1), features.y)
    point = score(out_of_fold(features, num_classes, folds, head.penalty), features.y, head.penalty)
    assert (point.num_right, point.n) == (30, 30)


def test_without_folds_a_middling_penalty_is_taken():
    features = draw_features(30, 8, 3)
    head = solve(features, 3, np.full(30, -1))
    assert (head.penalty, head.curve) == (0.1, ())
    assert (head.logits(features.x).argmax(axis=1) == features.y).mean() > 0.5


@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.567, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_features_that_never_change_are_without_weight(shape, constant):
    features = draw_features(*SHAPES[shape], 3)
    more = features_of(np.hstack([features.x, np.full((len(features.x), 2), constant)]), features.y)
    head = solve(more, 3, folds_of(more))
    expected = solve(features, 3, folds_of(features))
    assert np.abs(head.weight[:, -2:]).max() <= 1e-12
    assert head.penalty == expected.penalty
    assert np.allclose(head.weight[:, :-2], expected.weight, atol=1e-3 * np.abs(expected.weight).max())


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("shape", [(30, 4), (30, 50)])
def test_features_that_say_nothing_give_the_shares_of_the_classes(shape, value):
    y = np.array([0] * 15 + [1] * 10 + [2] * 5)
    head = solve(features_of(np.full(shape, value), y), 3, np.arange(30) % 5)
    p = np.exp(head.logits(np.full((1, shape[1]), value, np.float32)))
    assert np.allclose(p / p.sum(), [15 / 30, 10 / 30, 5 / 30], atol=1e-2)


def test_duplicate_columns_share_their_weight():
    features = draw_features(60, 12, 3)
    head = solve(features_of(np.hstack([features.x, features.x]), features.y), 3, folds_of(features))
    assert np.isfinite(head.weight).all()
    assert np.allclose(head.weight[:, :12], head.weight[:, 12:], atol=1e-3 * np.abs(head.weight).max())


@pytest.mark.parametrize(
    "counts",
    [(1, 1), (2, 2), (1, 9), (1, 1, 1), (2, 2, 2), (10, 10, 1), (2, 30), (1, 2, 3, 4)],
    ids=lambda counts: "+".join(map(str, counts)),
)
@pytest.mark.parametrize("dimensions", [3, 64])
def test_a_few_photos_of_a_class_are_enough(counts, dimensions):
    y = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    features = features_of(rng.normal(size=(len(y), dimensions)) + 8 * rng.normal(size=(len(counts), dimensions))[y], y)
    folds = folds_of(features)
    head = solve(features, len(counts), folds)
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.bias).all()
    assert all(np.isfinite(point.log_loss) for point in head.curve)
    assert all(point.n == (folds >= 0).sum() for point in head.curve)
    centres = np.stack([features.x[y == c].mean(axis=0) for c in range(len(counts))])
    if dimensions == 64 and min(counts) > 1:
        assert np.array_equal(head.logits(centres).argmax(axis=1), np.arange(len(counts)))


def test_a_class_that_a_fold_has_not_seen_is_not_predicted_there():
    z, y = np.array([[0.0], [1.0], [0.2], [1.1]]), np.array([0, 2, 0, 2])
    one = fit_logistic(
        Task(RowsInMemory(z), y, np.ones((4, 1), bool), 4, 0.1), Curvature(None, np.ones(1)), above=1e-12
    )
    weight = one.weight[0]
    assert set((z @ weight.T + one.bias[0]).argmax(axis=1)) == {0, 2}
    assert weight.shape == (4, 1)


def test_two_classes_are_solved_as_scikit_learn_solves_them_whatever_their_names():
    z, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    one = fit_logistic(
        Task(RowsInMemory(z), y, np.ones((20, 1), bool), 2, 0.1), Curvature(None, np.ones(3)), above=1e-12
    )
    weight, bias = one.weight[0], one.bias[0]
    assert np.array_equal(weight[0], -weight[1])
    assert bias[0] == -bias[1]


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(6, 40),
    d=st.integers(1, 50),
    c=st.integers(2, 4),
    scale=st.floats(1e-6, 1e6),
    offset=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
)
def test_any_scale_and_offset_give_the_same_labels(n, d, c, scale, offset, seed):
    """Standardised features do not know in which unit they came, up to what float32 keeps of them."""
    x = np.random.default_rng(seed).normal(size=(n, d)) + np.arange(n)[:, np.newaxis] % c
    plain, moved = features_of(x, np.arange(n) % c), features_of(scale * (x + offset), np.arange(n) % c)
    folds = np.full(n, -1)
    logits, other = solve(plain, c, folds).logits(plain.x), solve(moved, c, folds).logits(moved.x)
    assert np.abs(centred(logits) - centred(other)).max() <= 0.02


def weighted(features, weights):
    return replace(features, weights=np.asarray(weights, np.float64))


@pytest.mark.parametrize("shape", SHAPES)
def test_without_weights_every_bit_is_that_of_weights_of_one(shape):
    features = draw_features(*SHAPES[shape], 3)
    folds = folds_of(features)
    plain, ones = solve(features, 3, folds), solve(weighted(features, np.ones(len(folds))), 3, folds)
    for name in ("weight", "bias", "held_out"):
        assert getattr(plain, name).tobytes() == getattr(ones, name).tobytes(), name
    assert (plain.penalty, plain.curve, plain.cross_validated) == (ones.penalty, ones.curve, ones.cross_validated)


@pytest.mark.parametrize(
    ("shape", "most"), [("N<D", standardised.MAX_HELD), ("N>D", standardised.MAX_HELD), ("N>D", 0)]
)
def test_a_whole_weight_is_so_many_copies(shape, most, monkeypatch):
    monkeypatch.setattr(standardised, "MAX_HELD", most)
    features = draw_features(*SHAPES[shape], 3)
    folds, counts = folds_of(features), np.arange(len(features.y)) // 3 % 3 + 1
    copies = np.repeat(np.arange(len(counts)), counts)
    repeated = Features(features.x[copies], features.y[copies], tuple(features.hashes[i] for i in copies))
    expected, head = solve(repeated, 3, folds[copies]), solve(weighted(features, counts), 3, folds)
    exact = 2e-3 if most else 5e-2
    assert head.penalty == expected.penalty
    np.testing.assert_allclose(head.logits(features.x), expected.logits(features.x), atol=exact)
    np.testing.assert_allclose(head.held_out[copies], expected.held_out, atol=5 * exact)
    assert head.cross_validated.log_loss == pytest.approx(expected.cross_validated.log_loss, abs=exact)
    assert (head.cross_validated.num_right, head.cross_validated.n) == (
        expected.cross_validated.num_right,
        counts.sum(),
    )
    plain = solve(features, 3, folds)
    assert np.abs(plain.logits(features.x) - expected.logits(features.x)).max() > 0.1, "weights matter here"
    many = solve(weighted(features, 1000 * counts), 3, folds)
    np.testing.assert_allclose(many.logits(features.x), head.logits(features.x), atol=exact)


def test_the_penalty_is_chosen_by_the_photos_that_count():
    clear, vague = draw_features(60, 24, 3, separation=1.5), draw_features(60, 24, 3, seed=1, separation=0.0)
    features = features_of(np.vstack([clear.x, vague.x]), np.append(clear.y, vague.y))
    is_clear = np.arange(120) < 60
    folds = folds_of(features)
    for weights in (np.where(is_clear, 1.0, 0.001), np.where(is_clear, 0.001, 1.0)):
        head = solve(weighted(features, weights), 3, folds)
        assert head.penalty == min(head.curve, key=lambda point: point.log_loss).penalty
