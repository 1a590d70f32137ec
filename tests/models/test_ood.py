"""What looks new: told apart from what was learned from, on photos left out, whatever their order."""

import numpy as np
import pytest

from regraft.backbones.features import Features
from regraft.models.ood import NUM_AXES, fit_ood_detector


def features_of(x):
    return Features(x.astype(np.float32), np.zeros(len(x), np.int64), tuple(f"{i:064x}" for i in range(len(x))))


def draw(n, seed, d=60, rank=8):
    """Positive features in a few directions, and some noise."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99)
    return np.abs(rng.normal(size=(n, rank))) @ np.abs(shared.normal(size=(rank, d))) + 0.1 * rng.normal(size=(n, d))


@pytest.mark.parametrize("shape", [(200, 60), (50, 300)])
def test_one_in_a_hundred_familiar_photos_looks_new_and_strange_ones_do(shape):
    n, d = shape
    known = fit_ood_detector(features_of(draw(n, 0, d)))
    assert (known.novelty(draw(2000, 1, d).astype(np.float32)) > 1).mean() <= 0.03
    strange = np.abs(np.random.default_rng(2).normal(size=(200, d))).astype(np.float32)
    assert (known.novelty(strange) > 1).mean() == 1


def test_axes_are_orthonormal_and_few():
    known = fit_ood_detector(features_of(draw(200, 0)))
    assert known.axes.shape == (NUM_AXES, 60)
    assert np.allclose(known.axes @ known.axes.T, np.eye(NUM_AXES), atol=1e-5)
    assert fit_ood_detector(features_of(draw(24, 0))).axes.shape == (6, 60)


def test_the_scale_of_features_does_not_matter():
    x = draw(100, 0)
    a, b = fit_ood_detector(features_of(x)), fit_ood_detector(features_of(1000 * x))
    assert np.allclose(a.novelty(draw(9, 1)), b.novelty(1000 * draw(9, 1)), rtol=1e-3)


def test_the_order_of_photos_changes_no_bit():
    f, order = features_of(draw(100, 0)), np.random.default_rng(0).permutation(100)
    moved = Features(f.table[order], f.y, tuple(f.hashes[i] for i in order))
    rows = Features(f.table, f.y, moved.hashes, order)
    found = [fit_ood_detector(one) for one in (f, moved, rows)]
    assert len({(one.mean.tobytes(), one.axes.tobytes(), one.limit) for one in found}) == 1


def test_photos_a_network_has_not_learned_from_set_the_limit():
    x = draw(200, 0)
    far = x + 0.5 * np.random.default_rng(3).normal(size=x.shape)
    own, others = fit_ood_detector(features_of(x)), fit_ood_detector(features_of(x), features_of(far[:50]))
    assert others.limit > 1.5 * own.limit
    assert (others.novelty(far[50:].astype(np.float32)) > 1).mean() <= 0.1


@pytest.mark.parametrize("x", [np.ones((30, 8)), np.zeros((30, 8)), draw(19, 0)], ids=["alike", "dark", "few"])
def test_photos_that_span_nothing_give_nothing(x):
    assert fit_ood_detector(features_of(x)) is None


def test_a_photo_without_any_feature_is_not_a_number_that_is_none():
    known = fit_ood_detector(features_of(draw(100, 0)))
    assert np.isfinite(known.novelty(np.zeros((1, 60), np.float32))).all()
