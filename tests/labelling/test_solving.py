"""The head, groups and the audit as functions of numbers."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heaps import NAMES, clouds, say, sitting

from regraft.core.statistics import wilson_interval
from regraft.labelling import head, leave_one_out, suggestions
from regraft.labelling.audit import expected_gain
from regraft.labelling.cards import LearningCurvePoint
from regraft.labelling.clusters import find_clusters
from regraft.labelling.heap import heap_of

TRIALS = int(os.environ.get("REGRAFT_TRIALS", "20"))
pytestmark = [pytest.mark.slow] if TRIALS > 20 else []


def test_a_warm_start_ends_where_a_cold_one_does_and_a_class_without_photos_is_never_an_answer():
    x, y = clouds(300)
    projection = head.find_projection(x, np.arange(300))
    z = projection(x)
    first = head.solve_head(z[:100], y[:100] % 2, 2, projection)
    warm = head.solve_head(z[:200], y[:200], 4, projection, first)
    cold = head.solve_head(z[:200], y[:200], 4, projection)
    a, b = warm.log_probabilities(z), cold.log_probabilities(z)
    # both losses are at most ABOVE / 200 over the minimum, and the ridge bends them: |dw|^2 <= 2 * above / ridge
    apart = 2 * np.sqrt(2 * (head.ABOVE / 200) / head.penalty_of(200))
    assert np.abs(np.exp(a) - np.exp(b)).max() <= apart * np.linalg.norm(z, axis=1).max()
    assert (a.argmax(axis=1) == b.argmax(axis=1)).mean() > 0.98
    assert np.exp(a[:, 3]).max() < 1e-6


def test_learning_is_from_a_bounded_number_of_labels_and_of_every_class():
    y = np.repeat([0, 1, 2], [9000, 500, 3])
    rows = head.bounded(y)
    counts = np.bincount(y[rows])
    assert len(rows) <= head.MOST_ROWS
    assert counts[1:].tolist() == [500, 3]
    assert counts[0] > head.MOST_ROWS - 600
    assert len(np.unique(rows)) == len(rows)


def test_what_is_said_without_a_photo_is_what_is_said_after_learning_from_the_others():
    """Taking a photo out by an update gives what learning anew without it gives, but for the temperature of all."""
    x, y = clouds(60, spread=1.5)
    z = head.find_projection(x, np.arange(60))(x)
    said, others = leave_one_out.log_probabilities_without(z[:50], y[:50], z[50:], 4)
    one, of_one = leave_one_out._clouds(z[:50], y[:50], 4), []
    for i in range(50):
        rest = np.arange(50) != i
        anew = leave_one_out._clouds(z[:50][rest], y[:50][rest], 4)
        # the covariance is drawn towards the same round one, whether or not the photo is there
        kept = np.linalg.inv(one.inverse) - leave_one_out.ROUNDNESS * _round(z[:50], y[:50])
        removed = np.linalg.inv(anew.inverse) - leave_one_out.ROUNDNESS * _round(z[:50][rest], y[:50][rest])
        assert np.linalg.matrix_rank(kept - removed, tol=1e-6 * np.abs(kept).max()) == 1
        anew = replace(anew, inverse=np.linalg.inv(removed + leave_one_out.ROUNDNESS * _round(z[:50], y[:50])))
        of_one.append(leave_one_out._scores(anew, z[i : i + 1])[0])
    scores = np.array(of_one)[:, :3]
    differences = said[:, :3] - said[:, :1]
    expected = scores - scores[:, :1]
    temperature = (differences * expected).sum() / (expected**2).sum()
    np.testing.assert_allclose(differences, temperature * expected, rtol=1e-3, atol=1e-3)
    assert np.isfinite(others).all()
    assert max(said[:, 3].max(), others[:, 3].max()) <= leave_one_out.NEVER


def _round(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The round covariance of some photos about the means of their classes, not divided by their number."""
    means = np.stack([z[y == label].mean(axis=0) for label in range(3)])
    return ((z - means[y]) ** 2).sum() / z.shape[1] * np.eye(z.shape[1])


def test_noise_is_not_believed_by_what_has_not_learned_from_it():
    """Labels are noise: whoever has not seen them is right as often as chance."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 100)).astype(np.float32), rng.integers(2, size=400)
    projection = head.find_projection(x, np.arange(400))
    z = projection(x)
    said, learned = leave_one_out.log_probabilities_without(z, y, z, 2)
    assert (said.argmax(axis=1) == y).mean() < 0.6  # chance, and four standard deviations
    assert (learned.argmax(axis=1) == y).mean() > 0.6


def test_the_only_photo_of_a_class_is_known_by_no_other_and_copies_are_no_harm():
    x, y = clouds(40)
    z = head.find_projection(x, np.arange(40))(x)
    y[y == 2] = 1
    y[0] = 2
    said, _ = leave_one_out.log_probabilities_without(z, y, z[:0], 3)
    assert said[0, 2] <= leave_one_out.NEVER
    assert np.isfinite(said).all()
    same, _ = leave_one_out.log_probabilities_without(
        np.ones((6, 4), np.float32), np.array([0, 0, 0, 1, 1, 1]), z[:0, :4], 2
    )
    assert np.isfinite(same).all()


def test_a_page_of_guesses_is_of_one_class_unless_that_leaves_half_of_it_empty():
    guess = np.repeat([0, 1, 2], [7, 6, 2])
    p = np.where(np.eye(3)[guess] == 1, 0.9, 0.05) + np.linspace(0, 0.01, 15)[:, np.newaxis] * np.eye(3)[guess]
    log_p, everyone = np.log(p), np.arange(15)
    alone = suggestions.guesses(log_p, everyone, 12)
    assert (alone.label, alone.photos.tolist()) == (0, [6, 5, 4, 3, 2, 1, 0])
    mixed = suggestions.guesses(log_p, everyone, 14)
    assert (mixed.label, mixed.left) == (-1, 15)
    assert mixed.photos.tolist() == [6, 5, 4, 3, 2, 1, 0, 12, 11, 10, 9, 8, 7, 14]  # class by class, the surest first
    assert suggestions.guesses(log_p, everyone, 14, label=1).photos.tolist() == [12, 11, 10, 9, 8, 7]
    assert suggestions.guesses(log_p, everyone[:7], 24).label == 0


def test_questions_are_unsure_and_unlike_each_other():
    rng = np.random.default_rng(0)
    z = np.concatenate([np.eye(4)[i] + 0.01 * rng.normal(size=(8, 4)) for i in range(4)]).astype(np.float32)
    sure = np.log(np.array([0.98, 0.02], np.float32))
    log_p = np.tile(np.log(np.array([0.55, 0.45], np.float32)), (32, 1))
    log_p[24:] = sure
    chosen = suggestions.questions(log_p, z, np.arange(32), 3).photos
    assert sorted(chosen // 8) == [0, 1, 2]


def test_the_label_that_is_least_believed_is_doubted_first_and_what_is_believed_not_at_all():
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.01, 0.99], [0.3, 0.7]])
    found = suggestions.doubts(np.log(p), np.array([0, 0, 0, 1]), np.array([5, 6, 7, 8]), 10)
    assert found.photos.tolist() == [7, 6]
    assert found.left == 2


def test_clusters_follow_the_photos_and_copies_of_one_photo_are_no_harm():
    x, y = clouds(90, spread=0.2)
    clusters = find_clusters(x - x.mean(axis=0), np.arange(90))
    for number in np.unique(clusters.member_of):
        assert len(np.unique(y[clusters.member_of == number])) == 1
    same = find_clusters(np.ones((30, 4), np.float32), np.arange(30))
    assert len(np.unique(same.member_of)) == 1


def test_a_curve_foretells_less_gain_the_flatter_it_is():
    def points(*accuracies):
        return [LearningCurvePoint(10 * 2**i, value, 0.0, 1.0) for i, value in enumerate(accuracies)]

    steep, flat = expected_gain(points(0.5, 0.7, 0.82), 100), expected_gain(points(0.78, 0.8, 0.82), 100)
    assert 0 < flat < steep <= 0.18
    assert expected_gain(points(0.9, 0.8, 0.7), 100) == 0.0
    assert expected_gain(points(0.5, 0.7), 100) is None


def test_the_interval_of_the_audit_covers_the_truth_also_where_one_stops_early(tmp_path):
    """Of 95 % intervals, binomially many fail; the bound is that of so many trials at a coverage of 95 %."""
    trials, (fresh_x, fresh_y), covered = min(TRIALS, 200), clouds(6000, spread=2.2, seed=10**6), 0
    for seed in range(trials):
        x, y = clouds(150, spread=2.2, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        with sitting(tmp_path / str(seed), x) as one:
            say(one, y, rng.permutation(150)[: int(rng.integers(6, 40))])
            say(one, y, [card.photo for card in one.page("guesses").cards])
            audited = [card.photo for card in one.page("audit", size=int(rng.integers(8, 16))).cards]
            say(one, y, audited, is_audit=True)
            found, solver = one.status().accuracy, one._solver
            said = solver._head.log_probabilities(solver._space.projection(fresh_x)).argmax(axis=1)
        covered += found.low <= (said == fresh_y).mean() <= found.high
    assert wilson_interval(covered, trials, 0.999)[1] >= 0.95


@pytest.mark.parametrize(
    ("paths", "classes", "given"),
    [
        (["1.jpg", "2.jpg"], (), ["", ""]),
        (["2023/1.jpg", "2024/2.jpg"], (), ["", ""]),
        (["ant/1.jpg", "2.jpg"], (), ["ant", ""]),
        (["ant/1.jpg", "unlabelled/2.jpg", "bee/x/3.jpg"], (), ["ant", "", "bee"]),
        (["ant/1.jpg", "2.jpg", "2023/ant/3.jpg", "dog/4.jpg"], ("ant", "bee"), ["ant", "", "ant", ""]),
    ],
)
def test_folders_label_photos_where_they_are_named_or_some_are_sorted_and_others_not(paths, classes, given):
    heap = heap_of(Path("h"), [Path("h") / path for path in paths], classes)
    assert list(heap.given) == given
    assert NAMES[0] in heap.classes or not any(given)
