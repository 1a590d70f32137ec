"""What the environment says is believed."""

import os
import sys
from pathlib import Path

import pytest

from regraft.ground.runtime import cache_folder, environment, is_offline, missing_for_training, num_cores, version_of


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
