"""A cache that others may write to is neither read nor written: what is cached is believed. (Row S5.)"""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

import regraft
from faults.processes import record
from regraft.commands import doctor
from regraft.core.files import writable_cache
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import cache_folder, chosen_cache, foreign_hands, temporary_folder
from regraft.data import feature_cache

OTHER = 65_534  # somebody's number, not this user's
pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users have no numbers here")


@pytest.fixture(autouse=True)
def no_folder_left():
    """The temporary folder of this process goes with each test."""
    yield
    if temporary_folder.cache_info().currsize:
        temporary_folder().cleanup()
        temporary_folder.cache_clear()


def planted(cache: Path) -> int:
    """Change every cached feature, its checksum right: what somebody does who may write there."""
    shards = sorted((cache / "features").glob("*/*.safetensors"))
    for path in shards:
        tensors = load(path.read_bytes())
        rows = tensors["rows"] * np.float32(1.0001)
        checks = feature_cache._checks(tensors["hashes"], rows)
        path.write_bytes(save({**tensors, "rows": rows, "checks": checks}))
    return len(shards)


def weights(photos: Path, out: Path) -> bytes:
    return regraft.train(photos, out, mode="frozen", report=False, quiet=True).read("model.safetensors")


def test_planted_features_are_believed_only_where_nobody_else_could_plant_them(empty_cache, photos, tmp_path, tiny):
    whole = weights(photos, tmp_path / "whole")
    assert planted(empty_cache) >= 1
    own = weights(photos, tmp_path / "own")
    assert own != whole, "they are read: the attack works where the cache is trusted"
    empty_cache.chmod(0o777)
    assert weights(photos, tmp_path / "refused") == whole


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o707, 0o702])
def test_a_cache_that_everybody_may_write_to_is_not_used(empty_cache, capsys, mode):
    empty_cache.mkdir()
    empty_cache.chmod(mode)
    progress = Progress()
    folder = writable_cache("graphs", progress)
    writable_cache("features", progress)
    assert empty_cache not in folder.parents
    assert folder.parent == cache_folder() != chosen_cache()
    assert list(empty_cache.iterdir()) == []
    said = capsys.readouterr().err
    assert said.count("is not used: everybody on this machine may write to it") == 1
    assert "REGRAFT_CACHE" in said


def test_doctor_says_so(empty_cache):
    empty_cache.mkdir()
    assert "not used" not in next(doctor._cache()).problem
    empty_cache.chmod(0o777)
    assert "everybody on this machine may write to it, so it is not used" in next(doctor._cache()).problem


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o770, 0o2775])
def test_a_cache_of_ones_own_or_of_a_group_is_used(empty_cache, mode):
    empty_cache.mkdir()
    empty_cache.chmod(mode)
    assert writable_cache("graphs", QUIET) == empty_cache / "graphs"


@pytest.mark.parametrize(
    ("me", "owner", "around", "is_used"),
    [
        (OTHER, OTHER, 0o755, True),
        (OTHER, 0, 0o755, True),
        (OTHER, OTHER, 0o1777, True),
        (1, OTHER, 0o755, False),
        (1, OTHER, 0o1777, False),
        (0, OTHER, 0o755, True),  # a user's cache that is mounted into a container
        (0, OTHER, 0o1777, False),
    ],
)
def test_whose_cache_it_is_counts(tmp_path, monkeypatch, me, owner, around, is_used):
    place = tmp_path / "tmp" / "regraft"
    place.mkdir(parents=True)
    stated, real = os.stat_result, Path.stat

    def as_if(self: Path, **options) -> os.stat_result:
        found = list(real(self, **options))
        found[stat.ST_UID] = owner if self.name == "regraft" else 0
        found[stat.ST_MODE] = stat.S_IFDIR | (0o755 if self.name == "regraft" else around)
        return stated(found)

    monkeypatch.setattr(Path, "stat", as_if)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    assert (foreign_hands(place) is None) == is_used


def test_a_new_cache_is_its_owners_alone_whatever_the_mask(empty_cache, monkeypatch):
    before = os.umask(0)
    try:
        writable_cache("graphs", QUIET)
    finally:
        os.umask(before)
    assert stat.S_IMODE(empty_cache.stat().st_mode) == 0o700


def test_the_figures_are_recorded(record_property):
    record(record_property, "S5", planted=1, believed=0)
