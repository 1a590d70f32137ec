"""The map keeps neighbours together, as well as a reference does, and photos do not cover each other."""

import numpy as np
import pytest

from regraft.models.layout import _affinities, layout, spread


def clouds(num_clouds=6, each=20, size=40, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clouds, size))
    x = np.concatenate([centre + 0.45 * rng.normal(size=(each, size)) for centre in centres])
    return x.astype(np.float32), np.repeat(np.arange(num_clouds), each)


def test_neighbours_stay_neighbours_as_with_the_reference():
    manifold = pytest.importorskip("sklearn.manifold")
    x, y = clouds()
    made = layout(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    reference = manifold.TSNE(perplexity=20, init="pca", random_state=0, method="exact", max_iter=400).fit_transform(
        unit
    )
    kept, wanted = (manifold.trustworthiness(unit, one, n_neighbors=10) for one in (made, reference))
    assert kept > wanted - 0.01
    far = ((made[:, None] - made) ** 2).sum(axis=2)
    np.fill_diagonal(far, np.inf)
    assert np.mean(y[far.argmin(axis=1)] == y) > 0.97
    assert np.allclose([made.min(axis=0), made.max(axis=0)], [[-1, -1], [1, 1]])
    assert np.array_equal(made, layout(x))


def test_each_photo_has_as_many_neighbours_as_wanted():
    x, _ = clouds(2, 30)
    squares = ((x[:, None].astype(float) - x) ** 2).sum(axis=2)
    p = _affinities(squares, 15.0)
    assert p.sum() == pytest.approx(1.0)
    assert np.array_equal(p, p.T)
    manifold = pytest.importorskip("sklearn.manifold._t_sne")
    np.fill_diagonal(squares, 0.0)
    wanted = manifold.squareform(manifold._joint_probabilities(squares, 15.0, 0))
    assert np.abs(p - wanted).max() < 1e-4 * wanted.max()  # scikit-learn's bisection ends at 1e-5 of the entropy


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_photos_that_are_all_alike_or_few_are_laid_out_too(count):
    made = layout(np.ones((count, 5), np.float32))
    assert made.shape == (count, 2)
    assert np.isfinite(made).all()


def test_photos_are_pushed_apart_no_further_than_needed():
    rng = np.random.default_rng(0)
    y = np.clip(rng.normal(scale=0.3, size=(60, 2)), -1, 1)
    y[:3] = 0.5
    moved = spread(y, (0.1, 0.16))
    away = np.abs(moved[:, None] - moved) / (0.1, 0.16)
    np.fill_diagonal(away[:, :, 0], 9)
    assert away.max(axis=2).min() > 0.9
    assert np.abs(moved).max() <= 1
    apart = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert np.allclose(spread(apart, (0.1, 0.1)), apart, atol=1e-5)
