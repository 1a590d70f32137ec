"""What the environment says is believed."""

import logging
import os
import sys
from pathlib import Path

import pytest

from regraft.core import runtime
from regraft.core.runtime import (
    SPINS,
    WAITING,
    cache_folder,
    environment,
    import_torch_module,
    is_offline,
    let_threads_yield,
    missing_for_training,
    num_cores,
    version_of,
)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot confine a process to a core")
def test_only_cores_that_may_be_used_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert num_cores() == len(allowed)


def test_the_cache_is_the_users_unless_named(monkeypatch, tmp_path):
    monkeypatch.setenv("REGRAFT_CACHE", "somewhere")
    assert cache_folder() == Path("somewhere")
    monkeypatch.setenv("REGRAFT_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().name == "regraft"
    assert cache_folder().is_relative_to(tmp_path)


@pytest.mark.parametrize(("value", "offline"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_offline_is_a_switch(monkeypatch, value, offline):
    monkeypatch.delenv("REGRAFT_OFFLINE", raising=False)
    if value is not None:
        monkeypatch.setenv("REGRAFT_OFFLINE", value)
    assert is_offline() is offline


def test_versions_are_those_installed():
    import numpy as np

    assert version_of("numpy") == environment()["numpy"] == np.__version__
    assert version_of("no-such-package") is None
    assert "no-such-package" not in environment()


def test_what_training_lacks_is_found_without_importing_anything(monkeypatch):
    assert missing_for_training() == []
    monkeypatch.setitem(sys.modules, "timm", None)
    assert missing_for_training() == ["timm"]


@pytest.fixture
def without_torch(monkeypatch):
    """No torch in this process yet, and nothing that says how its threads wait."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in WAITING:
        monkeypatch.setenv(name, "for monkeypatch to take away again")
        monkeypatch.delenv(name)


def test_threads_are_told_to_yield_at_the_door_to_torch(without_torch, monkeypatch):
    """Before torch is imported, since OpenMP looks at the environment once; and processes started here inherit it."""
    seen = []
    monkeypatch.setattr("regraft.core.runtime.import_module", lambda _: seen.append(os.environ["GOMP_SPINCOUNT"]))
    import_torch_module("backbones.onnx_export")
    assert seen == [SPINS]


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_says_of_waiting_threads_is_left_alone(without_torch, monkeypatch, name):
    monkeypatch.setenv(name, "17")
    assert not let_threads_yield()
    assert [os.environ.get(one) for one in WAITING] == ["17" if one == name else None for one in WAITING]


def test_where_torch_was_loaded_before_it_is_too_late_and_said_to_who_debugs(without_torch, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch", object())
    with caplog.at_level(logging.DEBUG, logger="regraft"):
        assert not let_threads_yield()
    assert "GOMP_SPINCOUNT" not in os.environ
    assert "torch was loaded before" in caplog.text


def test_once_it_is_set_it_stays_said(without_torch, monkeypatch):
    assert let_threads_yield()
    monkeypatch.setitem(sys.modules, "torch", object())
    assert let_threads_yield()


GROUPS = {
    "none": ("", {}, None),
    "version 2, the root of a container": ("0::/", {"cpu.max": "150000 100000"}, 1.5),
    "version 2, a limit above": ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
    "version 2, the least": ("0::/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "50000 100000"}, 0.5),
    "version 2, a path of the host": ("0::/docker/0123", {"cpu.max": "300000 100000"}, 3.0),
    "version 1": ("3:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "250000", "cpu/a/cpu.cfs_period_us": "100000"}, 2.5),
    "version 1, no limit": ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "damaged": ("0::/\nno group", {"cpu.max": "many"}, None),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, kind):
    own, files, quota = GROUPS[kind]
    for name, text in {"own": own, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert runtime.cpu_quota(tmp_path, tmp_path / "own") == quota
    monkeypatch.setattr(runtime, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    assert num_cores() == {None: 8, 0.5: 1, 1.5: 2, 2.0: 2, 2.5: 3, 3.0: 3}[quota]
