"""Too little memory is told from damage."""

import errno

import pytest

from regraft.bundle.bundle import load
from regraft.core.errors import BundleError, ResourceError
from regraft.core.memory import is_lack_of_memory
from tiny_bundle import write_tiny

LACKING = (
    MemoryError(),
    RuntimeError("Exception from src/core: std::bad_alloc"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    RuntimeError("can't start new thread"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    ImportError("libopenvino.so: failed to map segment from shared object"),
)
OTHERS = (
    RuntimeError("bad graph"),
    OSError(errno.ENOENT, "none"),
    ImportError("No module"),
    ValueError("out of memory"),
)


def test_what_allocators_say_is_known():
    assert all(map(is_lack_of_memory, LACKING))
    assert not any(map(is_lack_of_memory, OTHERS))


@pytest.mark.parametrize("error", LACKING[:3])
def test_a_bundle_is_not_damaged_where_memory_is_short(tmp_path, monkeypatch, error):
    def short(*_):
        raise error

    monkeypatch.setattr("regraft.bundle.bundle.Engine", short)
    with pytest.raises(ResourceError, match=r"Cannot load .*model\.onnx: there is not enough memory"):
        _ = load(write_tiny(tmp_path / "tiny"), precision="f32").engine


def test_a_graph_that_does_not_run_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.bundle.bundle.Engine", lambda *_: (_ for _ in ()).throw(RuntimeError("bad graph")))
    with pytest.raises(BundleError, match="no graph that can be run"):
        _ = load(write_tiny(tmp_path / "tiny"), precision="f32").engine


def test_the_command_says_so_in_one_line(regraft_main, monkeypatch):
    monkeypatch.setattr("regraft.bundle.bundle.load", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    done = regraft_main("predict", "nowhere", "x.jpg")
    assert done.returncode == 1
    assert "there is not enough memory" in done.stderr
    assert len(done.stderr.splitlines()) == 1
