"""The temperature is found where probabilities are off, and left alone where they are not."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from regraft.learn.calibrate import temperature
from regraft.learn.logistic import log_softmax


def draw(n, c, sharpness, seed=0):
    """Log probabilities that are off by a factor of `sharpness`, and labels."""
    rng = np.random.default_rng(seed)
    honest = log_softmax(2 * rng.normal(size=(n, c)))
    y = np.array([rng.choice(c, p=p) for p in np.exp(honest)])
    return log_softmax(sharpness * honest), y


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
