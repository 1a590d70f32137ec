"""The minimum is found to the asked accuracy, and rounding ends the search instead of looping on."""

import numpy as np
import pytest
from scipy.optimize import minimize as scipy_minimize

from regraft.models.lbfgs import minimize


def quadratic(condition, size=50, seed=0):
    """A convex quadratic of a given condition number, and where it is smallest."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(size, size)))
    curvature = rotation @ np.diag(np.geomspace(1.0, condition, size)) @ rotation.T
    place = rng.normal(size=size)

    def function(x):
        gradient = curvature @ (x - place)
        return 0.5 * float((x - place) @ gradient), gradient

    return function, place


def one(function):
    """A single problem as one of several."""

    def of_row(x):
        loss, gradient = function(x[0])
        return np.array([loss]), gradient[np.newaxis]

    return of_row


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_the_minimum_of_a_quadratic(condition):
    function, place = quadratic(condition)
    (found,) = minimize(one(function), np.zeros((1, 50)), enough=1e-16, max_iterations=5000)
    assert np.abs(function(found)[1]).max() <= 1e-8
    assert np.abs(found - place).max() <= 1e-7


def test_it_agrees_with_scipy_in_about_as_many_calls():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 10)), rng.choice([-1.0, 1.0], 200)
    calls = []

    def function(w):
        calls.append(1)
        margin = y * (x @ w)
        loss = float(np.logaddexp(0, -margin).mean() + 0.01 * w @ w)
        return loss, x.T @ (-y / (1 + np.exp(margin))) / 200 + 0.02 * w

    (ours,) = minimize(one(function), np.zeros((1, 10)), enough=1e-18, max_iterations=500)
    num_ours = len(calls)
    theirs = scipy_minimize(function, np.zeros(10), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 0.0})
    assert np.abs(ours - theirs.x).max() <= 1e-8
    assert num_ours <= 2 * (len(calls) - num_ours)


def test_rounding_ends_it():
    function, place = quadratic(1e6)
    (found,) = minimize(one(function), np.zeros((1, 50)), enough=0.0, max_iterations=10**9)
    assert np.abs(found - place).max() <= 1e-6


def test_no_more_iterations_than_asked_for():
    function, place = quadratic(1e6)
    assert np.abs(minimize(one(function), np.zeros((1, 50)), enough=0.0, max_iterations=3) - place).max() > 0.1


def test_a_start_at_the_minimum_stays():
    function, place = quadratic(10.0)
    assert np.array_equal(minimize(one(function), place[np.newaxis], enough=1e-18, max_iterations=10)[0], place)


def test_problems_in_step_end_where_they_end_alone():
    """Also one that is done at once, and one that rounding stops."""
    functions, places = zip(
        *(quadratic(condition, seed=i) for i, condition in enumerate((1e4, 1.0, 30.0))), strict=True
    )
    start = np.stack([np.zeros(50), places[1], np.ones(50)])

    def together(x):
        losses, gradients = zip(*(function(row) for function, row in zip(functions, x, strict=True)), strict=True)
        return np.array(losses), np.stack(gradients)

    found = minimize(together, start, enough=1e-18, max_iterations=5000)
    for row, function, begin, place in zip(found, functions, start, places, strict=True):
        alone = minimize(one(function), begin[np.newaxis], enough=1e-18, max_iterations=5000)[0]
        assert np.abs(row - alone).max() <= 1e-8
        assert np.abs(row - place).max() <= 1e-8
