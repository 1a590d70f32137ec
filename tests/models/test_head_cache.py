"""Heads that were solved before: looked up when nothing has changed, solved when the least thing has."""

from dataclasses import replace

import numpy as np
import pytest

from regraft.backbones.features import Features
from regraft.core.progress import QUIET, Progress
from regraft.models import head_cache
from regraft.models.head_cache import cached_head
from regraft.models.linear_head import solve


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "heads"


@pytest.fixture
def count(monkeypatch):
    """How often a head has been solved."""
    calls = []
    monkeypatch.setattr(head_cache, "solve", lambda *arguments: calls.append(1) or solve(*arguments))
    return calls


def problem(seed=0, n=40):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = (rng.normal(size=(n, 6)) + y[:, np.newaxis]).astype(np.float32)
    folds = np.where(np.arange(n) < 5, -1, np.arange(n) // 3 % 4)
    return Features(x, y, tuple(f"{i:064x}" for i in range(n))), 3, folds


def same(one, other):
    return all(np.array_equal(vars(one)[name], vars(other)[name], equal_nan=name == "held_out") for name in vars(one))


def test_the_second_time_the_same_head_is_looked_up(cache, count):
    expected = solve(*problem())
    for _ in range(2):
        found = cached_head(*problem(), QUIET)
        assert same(found, expected)
        assert found.curve == expected.curve
        assert [vars(found)[name].dtype for name in ("weight", "bias", "held_out")] == ["f4", "f4", "f8"]
    assert len(count) == len(list(cache.iterdir())) == 1


def changed(features, num_classes, folds, what):
    x, y = features.table.copy(), features.y.copy()
    if what == "a bit of a feature":
        x.view(np.uint32)[7, 3] ^= 1
    if what == "a label":
        y[7] = (y[7] + 1) % 3
    if what == "a class":
        num_classes += 1
    if what == "a fold":
        folds = np.where(np.arange(len(folds)) == 7, (folds + 1) % 4, folds)
    if what == "a photo's content":
        features = replace(features, hashes=("f" * 64, *features.hashes[1:]))
    if what == "which rows":
        return replace(features, table=np.roll(x, 1, axis=0), rows=np.roll(np.arange(len(y)), 2)), num_classes, folds
    return replace(features, table=x, y=y), num_classes, folds


@pytest.mark.parametrize(
    "what", ["a bit of a feature", "a label", "a class", "a fold", "a photo's content", "which rows", "the code"]
)
def test_whatever_changes_it_is_solved_again(what, cache, count, tmp_path, monkeypatch):
    cached_head(*problem(), QUIET)
    if what == "the code":
        (tmp_path / "other.py").write_text("")
        monkeypatch.setattr(head_cache, "CODE", (*head_cache.CODE[1:], tmp_path / "other.py"))
    arguments = changed(*problem(), what)
    assert same(cached_head(*arguments, QUIET), solve(*arguments))
    assert len(count) == 2


def test_the_same_rows_of_another_table_are_the_same_features(cache, count):
    features, num_classes, folds = problem()
    cached_head(features, num_classes, folds, QUIET)
    n = len(folds)
    turned = replace(features, table=features.table[::-1].copy(), rows=np.arange(n)[::-1].copy())
    cached_head(turned, num_classes, folds, QUIET)
    assert len(count) == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:90] + bytes([b[90] ^ 1]) + b[91:]])
def test_a_damaged_one_is_solved_again_and_mended(damage, cache, count):
    expected = cached_head(*problem(), QUIET)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert same(cached_head(*problem(), QUIET), expected)
    assert (len(count), path.read_bytes()) == (2, whole)


def test_where_nothing_can_be_kept_it_is_solved_and_said(cache, monkeypatch, capsys):
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert same(cached_head(*problem(), Progress()), solve(*problem()))
    assert capsys.readouterr().err.count("Going on without") == 1


def test_of_very_many_photos_only_what_was_judged_is_kept(cache, count, monkeypatch):
    arguments = problem()
    before = cached_head(*arguments, QUIET)
    (path,) = cache.iterdir()
    assert np.isnan(before.held_out[:5]).all()
    cached_head(arguments[0], 3, np.where(arguments[2] == 0, 0, -1), QUIET)
    assert min(p.stat().st_size for p in cache.iterdir()) < path.stat().st_size
