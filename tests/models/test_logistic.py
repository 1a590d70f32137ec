"""StreamedRows from a table or held in memory, a few blocks or one, many fits or one: the same regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from regraft.backbones.features import Features
from regraft.core.pca import principal_axes
from regraft.data.splits import fold_ids
from regraft.models import linear_head as heads
from regraft.models import logistic, standardised
from regraft.models.linear_head import out_of_fold, solve
from regraft.models.logistic import (
    Curvature,
    RowsInMemory,
    StreamedRows,
    Task,
    fit_logistic,
    moments,
    sampled_curvature,
)


def draw(n, d, c, seed=0, separation=0.3):
    """Raw features of overlapping classes, correlated and of different scales, and their labels."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    mixing, centres = shared.normal(size=(d, d)) / np.arange(1, d + 1), separation * shared.normal(size=(c, d))
    y = rng.permutation(np.arange(n) % c)
    x = (rng.normal(size=(n, d)) + centres[y] * np.sqrt(d) / 4) @ mixing.T * 3 + 5
    return x.astype(np.float32), y


def features_of(x, y):
    return Features(x, y, tuple(f"{i:064x}" for i in range(len(y))))


def everyone(y):
    return np.ones((len(y), 1), bool)


def streamed(x, rows):
    mean, scale = moments(x, rows)
    return StreamedRows(x, rows, mean.astype(np.float32), scale.astype(np.float32))


def test_streamed_rows_give_what_rows_in_memory_give():
    x, y = draw(3000, 20, 4)
    rows = np.random.default_rng(1).permutation(3000)[:2500]
    stream = streamed(x, rows)
    held = RowsInMemory(StandardScaler().fit_transform(x[rows].astype(np.float64)))
    curvature = Curvature(*principal_axes(held.z))
    expected = fit_logistic(Task(held, y[rows], everyone(rows), 4, 0.01), curvature, above=1e-12)
    found = fit_logistic(Task(stream, y[rows], everyone(rows), 4, 0.01), sampled_curvature(stream), above=1e-9)
    assert np.abs(found.weight - expected.weight).max() <= 1e-3 * np.abs(expected.weight).max()
    assert len(stream.parts()) == 3, "more than one block"


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_what_each_photo_counts_is_the_choice_of_it_where_it_is_one(kind):
    x, y = draw(200, 12, 3)
    held = RowsInMemory(StandardScaler().fit_transform(x.astype(np.float64)).astype(kind))
    chosen = np.random.default_rng(0).random((200, 4)) < 0.7
    curvature = Curvature(*principal_axes(held.z))
    found = [
        fit_logistic(Task(held, y, one, 3, 0.1), curvature, above=1e-6) for one in (chosen, chosen.astype(np.float64))
    ]
    assert found[0].weight.tobytes() == found[1].weight.tobytes()
    assert found[0].bias.tobytes() == found[1].bias.tobytes()


def test_no_guess_of_the_curvature_changes_where_it_ends():
    x, y = draw(200, 12, 3)
    held = RowsInMemory(StandardScaler().fit_transform(x.astype(np.float64)))
    found = [
        fit_logistic(Task(held, y, everyone(y), 3, 0.1), curvature, above=1e-14).weight
        for curvature in (
            Curvature(None, np.ones(12)),
            Curvature(None, np.zeros(12)),
            Curvature(*principal_axes(held.z)),
            Curvature(*principal_axes(held.z[:5])),
        )
    ]
    assert all(np.abs(one - found[0]).max() <= 1e-5 for one in found)


def test_fits_in_step_end_where_they_end_alone():
    """Also one whose photos show two classes of three, and one that never saw the first photos."""
    x, y = draw(90, 8, 3)
    held = RowsInMemory(StandardScaler().fit_transform(x.astype(np.float64)))
    curvature = Curvature(*principal_axes(held.z))
    chosen = np.stack([y < 3, y != 1, np.arange(90) >= 40], axis=1)
    together = fit_logistic(Task(held, y, chosen, 3, 0.05), curvature, above=1e-13)
    for k, one in enumerate(chosen.T):
        alone = fit_logistic(Task(RowsInMemory(held.z[one]), y[one], everyone(y[one]), 3, 0.05), curvature, above=1e-13)
        assert np.abs(alone.weight[0] - together.weight[k]).max() <= 1e-5
        assert np.abs(alone.bias[0] - together.bias[k]).max() <= 1e-5


def test_the_loss_is_as_close_to_the_least_as_asked():
    x, y = draw(300, 30, 5)
    held = RowsInMemory(StandardScaler().fit_transform(x.astype(np.float64)))
    curvature = Curvature(*principal_axes(held.z))

    def loss(above):
        task = Task(held, y, everyone(y), 5, 0.001)
        one = fit_logistic(task, curvature, above=above)
        return logistic._losses_and_gradients(task, map, logistic._packed(one.weight, one.bias))[0][0]

    least = loss(1e-13)
    for above in (1e-2, 1e-4, 1e-6):
        assert -1e-12 <= loss(above) - least <= above


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (20, 20)])
def test_principal_axes(shape):
    z = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    z -= z.mean(axis=0)
    axes, variances = principal_axes(z)
    assert axes.shape == (shape[1], len(variances))
    assert np.allclose(axes.T @ axes, np.eye(len(variances)), atol=1e-8)
    assert np.allclose(z @ axes @ axes.T, z, atol=1e-6), "nothing lies beside them"
    assert np.allclose((z @ axes).var(axis=0), variances)


def test_moments_are_those_of_the_chosen_rows():
    table = (np.random.default_rng(0).normal(size=(5000, 3)) * [1e-3, 1, 1e3] + 1e4).astype(np.float32)
    rows = np.arange(0, 5000, 2)
    mean, scale = moments(table, rows)
    assert np.allclose(mean, table[rows].mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert np.allclose(scale, table[rows].std(axis=0, dtype=np.float64), rtol=1e-9)


@pytest.fixture
def as_many(monkeypatch):
    """Every problem as if its photos were too many for memory."""
    monkeypatch.setattr(standardised, "MAX_HELD", 0)


@pytest.mark.usefixtures("as_many")
def test_a_streamed_head_gives_scikit_learns_labels():
    x, y = draw(10_000, 24, 6)
    new, truth = draw(4_000, 24, 6, seed=5)
    head = solve(features_of(x, y), 6, np.arange(10_000) % 5)
    scaler = StandardScaler().fit(x.astype(np.float64))
    scaler.scale_ = np.maximum(scaler.scale_, np.median(scaler.scale_))
    model = LogisticRegression(C=1 / (head.penalty * len(y)), solver="newton-cholesky", tol=1e-8)
    model.fit(scaler.transform(x.astype(np.float64)), y)
    expected = model.predict(scaler.transform(new.astype(np.float64)))
    assert (head.logits(new).argmax(axis=1) == expected).mean() >= 0.999
    assert 0.5 < (expected == truth).mean() < 0.999, "a task that is neither hopeless nor trivial"


@pytest.mark.usefixtures("as_many")
@pytest.mark.parametrize("separation", [0.02, 0.3])
def test_streamed_it_chooses_the_penalty_that_trying_all_chooses(separation, monkeypatch):
    """Strong ones for classes that hardly differ, weak ones for those that do: both directions are walked."""
    x, y = draw(600, 60, 3, separation=separation)
    folds = fold_ids(y, tuple(map(str, range(600))))
    walked = solve(features_of(x, y), 3, folds)
    monkeypatch.setattr(standardised, "MAX_HELD", 2**30)
    monkeypatch.setattr(heads, "PENALTIES", heads.ALL_PENALTIES)
    full = solve(features_of(x, y), 3, folds)
    assert [point.penalty for point in full.curve] == list(heads.ALL_PENALTIES)
    assert walked.penalty == full.penalty
    assert len(walked.curve) < len(full.curve)
    assert walked.cross_validated.log_loss == pytest.approx(full.cross_validated.log_loss, abs=1e-3)


@pytest.mark.usefixtures("as_many")
def test_streamed_the_number_of_cores_and_the_order_of_photos_change_no_bit(monkeypatch):
    x, y = draw(3000, 20, 4)
    folds, order = np.arange(3000) % 5, np.random.default_rng(0).permutation(3000)
    features = features_of(x, y)
    moved = Features(x[order], y[order], tuple(features.hashes[i] for i in order))
    found = []
    for cores, some, of in ((1, features, folds), (7, features, folds), (2, moved, folds[order])):
        monkeypatch.setattr(logistic, "num_cores", lambda cores=cores: cores)
        found.append(solve(some, 4, of))
    assert len({head.weight.tobytes() for head in found}) == 1
    assert len({head.curve for head in found}) == 1


def test_of_very_many_photos_one_fold_is_judged(monkeypatch):
    x, y = draw(200, 10, 2)
    folds = np.arange(200) % 5
    monkeypatch.setattr(heads, "MAX_WORK", 0)
    head = solve(features_of(x, y), 2, folds)
    assert head.cross_validated.n == 40
    assert np.array_equal(np.isfinite(head.held_out).all(axis=1), folds == 0)


def test_nothing_judged_is_nothing_said():
    x, y = draw(20, 4, 2)
    assert np.isnan(out_of_fold(features_of(x, y), 2, np.full(20, -1))).all()


def test_of_very_many_photos_some_choose_the_penalty_and_all_are_learned_from(monkeypatch):
    x, y = draw(600, 30, 3, separation=0.05)
    features, folds = features_of(x, y), np.arange(600) % 5
    monkeypatch.setattr(heads, "ENOUGH", 200)
    few = solve(features_of(x[:200], y[:200]), 3, folds[:200])
    head = solve(features, 3, folds)
    assert head.cross_validated.n == 200
    assert np.isfinite(head.held_out[:200]).all()
    assert np.isnan(head.held_out[200:]).all()
    assert head.penalty == pytest.approx(few.penalty)
    monkeypatch.setattr(heads, "PENALTIES", (head.penalty,))
    monkeypatch.setattr(heads, "MIDDLING", head.penalty)
    monkeypatch.setattr(heads, "ENOUGH", 600)
    assert np.allclose(solve(features, 3, folds).weight, head.weight, atol=1e-4)
