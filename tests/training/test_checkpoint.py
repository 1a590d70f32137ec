"""Whatever fails while a checkpoint is written, and whatever becomes of it afterwards, a whole one is there.
(Rows R2 and R3 of the fault tests.)
"""

import builtins
import errno
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from faults.processes import IS_LONG, TRIALS, leftovers, record
from regraft.core import files
from regraft.core.errors import OutputError
from regraft.core.files import MARKER
from regraft.core.progress import Progress
from regraft.training.checkpoint import (
    KEPT,
    STATE,
    TENSORS,
    Checkpoint,
    flatten,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)

pytestmark = [pytest.mark.slow] if IS_LONG else []


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, message):
        self.said.append(message)


def made(number: int) -> Checkpoint:
    """A checkpoint that differs from every other in each of its values."""
    torch.manual_seed(number)
    tensors = {"network/weight": torch.randn(7, 5), "network/count": torch.tensor(number), "best/bias": torch.randn(3)}
    state = {"fit": {"epoch": number, "rows": [{"loss": 0.25 + number, "name": "é"}], "stopped": ""}}
    return Checkpoint(tensors, state)


def same(a: Checkpoint | None, b: Checkpoint) -> bool:
    return (
        a is not None
        and a.state == b.state
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)
    )


@pytest.fixture
def two(tmp_path):
    """A folder with generations 1 and 2."""
    folder = tmp_path / "checkpoints"
    for number in (1, 2):
        save_checkpoint(folder, made(number))
    return folder


def test_what_was_saved_last_is_read(two):
    heard = Heard()
    assert same(latest_checkpoint(two, heard), made(2))
    assert heard.said == []


def test_a_generation_is_two_files_and_only_the_newest_are_kept(two):
    for number in (3, 4):
        save_checkpoint(two, made(number))
    assert sorted(path.name for path in two.iterdir()) == [MARKER, "000003", "000004"]
    assert KEPT == 2
    assert sorted(path.name for path in (two / "000004").iterdir()) == [STATE, TENSORS]


def test_numbers_go_on_after_999999_and_the_greatest_is_the_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, made(1))
    (folder / "000001").rename(folder / "999999")
    save_checkpoint(folder, made(2))
    assert same(latest_checkpoint(folder, Heard()), made(2))


def test_there_is_none_where_nothing_was_saved(tmp_path):
    assert latest_checkpoint(tmp_path / "checkpoints", Heard()) is None
    (tmp_path / "checkpoints").mkdir()
    assert latest_checkpoint(tmp_path / "checkpoints", Heard()) is None


@pytest.mark.parametrize("layout", ["transposed", "channels last", "a part of another", "bf16", "empty", "shared"])
def test_tensors_come_back_as_they_were_however_they_lie_in_memory(tmp_path, layout):
    whole = torch.arange(48.0).reshape(2, 2, 3, 4)
    tensor = {
        "transposed": whole.permute(3, 0, 1, 2),
        "channels last": whole.contiguous(memory_format=torch.channels_last),
        "a part of another": whole[:, 1],
        "bf16": whole.bfloat16(),
        "empty": torch.empty(0, 3),
        "shared": whole,
    }[layout]
    tensors = {"a": tensor, "b": whole} if layout == "shared" else {"a": tensor}
    save_checkpoint(tmp_path, Checkpoint(tensors, {}))
    read = latest_checkpoint(tmp_path, Heard())
    assert read is not None
    assert all(torch.equal(read.tensors[name], value) for name, value in tensors.items())
    assert read.tensors["a"].dtype == tensor.dtype


@pytest.mark.parametrize("kind", ["adamw", "sgd", "sgd with momentum"])
def test_an_optimiser_that_was_put_back_goes_on_as_if_it_had_not_been_away(kind):
    def optimiser(parameters):
        groups = [{"params": parameters[:1], "lr": 0.1, "peak_lr": 0.1}, {"params": parameters[1:], "lr": 0.01}]
        if kind == "adamw":
            return torch.optim.AdamW(groups)
        return torch.optim.SGD(groups, momentum=0.9 if "momentum" in kind else 0.0)

    def steps(parameters, optimizer, first, last):
        for number in range(first, last):
            torch.manual_seed(number)
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()

    def fresh():
        torch.manual_seed(0)
        return [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]

    whole, cut = fresh(), fresh()
    steps(whole, optimiser(whole), 0, 6)
    before = optimiser(cut)
    steps(cut, before, 0, 3)
    after = optimiser(cut)
    restore_optimizer(after, flatten(before))
    steps(cut, after, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    assert after.param_groups[0]["peak_lr"] == 0.1


class Protocol:
    """Calls `strike(step, its number)` before each step of writing: "open", "write half", "write", "fsync", ..."""

    def __init__(self, monkeypatch, strike):
        self.steps = []
        original_open, original = builtins.open, {name: getattr(os, name) for name in ("fsync", "replace")}

        def at(step):
            self.steps.append(step)
            strike(step, len(self.steps))

        def opened(path, mode="r", *args, **kwargs):
            at("open")
            file = original_open(path, mode, *args, **kwargs)
            if "w" not in mode:
                return file
            write = file.write

            def in_two(data):
                write(data[: len(data) // 2])
                file.flush()
                at("write half")
                write(data[len(data) // 2 :])
                file.flush()
                at("write")

            proxy = type("Proxy", (), {"write": staticmethod(in_two), "__getattr__": lambda _, n: getattr(file, n)})
            proxy.__enter__ = lambda self: self
            proxy.__exit__ = lambda self, *_: file.close()
            return proxy()

        def fsync(number):
            at("fsync")
            original["fsync"](number)

        def replace(source, target):
            at("rename" if Path(source).is_dir() else "replace")
            original["replace"](source, target)

        def rmtree(path, **kwargs):
            at("prune")
            for one in sorted(Path(path).rglob("*"), reverse=True):
                one.rmdir() if one.is_dir() else one.unlink()
                at("prune half")
            Path(path).rmdir()

        monkeypatch.setattr(files, "open", opened, raising=False)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(shutil, "rmtree", rmtree)


def number_of_steps(two, tmp_path) -> int:
    copy = shutil.copytree(two, tmp_path / "rehearsal")
    with pytest.MonkeyPatch.context() as patch:
        protocol = Protocol(patch, lambda step, number: None)
        save_checkpoint(copy, made(3))
    kinds = set(protocol.steps)
    assert kinds >= {"open", "write half", "write", "fsync", "replace", "rename", "prune", "prune half"}
    return len(protocol.steps)


def test_killed_at_any_step_of_writing_the_last_or_the_new_generation_is_there(two, tmp_path, record_property):
    photographs = []

    def photograph(step, number):
        """What a kill would leave on the disk here."""
        photographs.append((step, original_copytree(two, tmp_path / f"killed{number}")))

    original_copytree = shutil.copytree
    with pytest.MonkeyPatch.context() as patch:
        Protocol(patch, photograph)
        save_checkpoint(two, made(3))
    loaded = []
    for step, folder in photographs:
        heard = Heard()
        found = latest_checkpoint(folder, heard)
        loaded.append(next(number for number in (2, 3) if same(found, made(number))))
        assert leftovers(folder) == [], step
        save_checkpoint(folder, made(4))
        assert same(latest_checkpoint(folder, heard), made(4)), step
        assert len(os.listdir(folder)) == 1 + KEPT, step
        assert heard.said == [], step
    assert loaded == sorted(loaded)  # the new one from a certain step on, and for good
    assert set(loaded) == {2, 3}
    assert len(photographs) >= 9
    record(record_property, "R2-killed", steps=len(photographs), whole=len(loaded), partial=0)


def outcome(folder) -> BaseException | None:
    try:
        save_checkpoint(folder, made(3))
    except (OutputError, KeyboardInterrupt, MemoryError) as error:
        return error
    return None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_failing_at_any_step_of_writing_leaves_the_last_generation_and_no_rubbish(
    two, tmp_path, record_property, error
):
    def strike_at(wanted):
        def strike(step, number):
            if number == wanted:
                raise error

        return strike

    total, told = number_of_steps(two, tmp_path), 0
    for number in range(1, total + 1):
        folder = shutil.copytree(two, tmp_path / f"failed{number}")
        with pytest.MonkeyPatch.context() as patch:
            protocol = Protocol(patch, strike_at(number))
            raised = outcome(folder)
        if isinstance(error, OSError):
            assert raised is None or (str(folder) in str(raised) and "no space left on device" in str(raised))
        else:
            assert raised is error
        told += raised is not None
        step = protocol.steps[number - 1]
        assert leftovers(folder) == [] or "prune" in step, step
        heard = Heard()
        found = latest_checkpoint(folder, heard)
        assert same(found, made(2)) or (same(found, made(3)) and "prune" in step), step
        assert leftovers(folder) == [], step
        assert heard.said == [], step
    assert told >= 8
    record(record_property, f"R2-{type(error).__name__}", steps=total, whole=total, partial=0)


def damages(folder, older, rng):
    """`(what, do)`: every way of the matrix to damage a generation."""
    for name in (STATE, TENSORS):
        path = folder / name
        size = path.stat().st_size
        for _ in range(max(25, TRIALS // 2)):
            cut = rng.randrange(size)
            yield f"{name} cut at {cut}", lambda path=path, cut=cut: os.truncate(path, cut)
        for _ in range(max(25, TRIALS // 2)):
            bit = rng.randrange(8 * size)
            yield f"{name} bit {bit}", lambda path=path, bit=bit: flip(path, bit)
        for length in (size, size // 2, 2 * size):
            yield f"{name} of {length} zeros", lambda path=path, length=length: path.write_bytes(bytes(length))
        yield f"{name} empty", lambda path=path: path.write_bytes(b"")
        yield f"{name} missing", lambda path=path: path.unlink()
        yield f"{name} a folder", lambda path=path: (path.unlink(), path.mkdir())
        yield f"{name} of the one before", lambda path=path, name=name: shutil.copy(older / name, path)
        yield f"{name} with more behind it", lambda path=path: path.write_bytes(path.read_bytes() + b"\0")
    yield "both missing", lambda: (shutil.rmtree(folder), folder.mkdir())
    yield "a file in its place", lambda: (shutil.rmtree(folder), folder.touch())
    yield "files swapped", lambda: swap(folder / STATE, folder / TENSORS)
    for text in ("null", "[]", '"x"', "1", '{"seal": 1}', "[" * 100_000, '{"seal": "x", "sha256": "y"}', "\ufeff{}"):
        yield f"{STATE} {text[:20]}", lambda text=text: (folder / STATE).write_text(text)


def flip(path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def swap(a, b) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def test_damage_to_the_newest_generation_is_told_once_and_the_one_before_is_taken(two, tmp_path, record_property):
    rng, kept = random.Random(0), shutil.copytree(two / "000002", tmp_path / "kept")
    detected = total = 0
    for what, damage in list(damages(two / "000002", two / "000001", rng)):
        damage()
        heard = Heard()
        found = latest_checkpoint(two, heard)
        assert same(found, made(1)), what
        assert heard.said == [f"{two / '000002'} is damaged: the checkpoint before it is taken"], what
        total, detected = total + 1, detected + 1
        files.remove(two / "000002")
        shutil.copytree(kept, two / "000002")
    assert same(latest_checkpoint(two, Heard()), made(2))
    assert total >= 120
    record(record_property, "R3", damaged=total, detected=detected, silent=total - detected)


def test_a_change_of_meaning_that_json_survives_is_damage(two):
    path = two / "000002" / STATE
    path.write_text(path.read_text().replace('"epoch": 2', '"epoch": 0'))
    heard = Heard()
    assert same(latest_checkpoint(two, heard), made(1))
    assert len(heard.said) == 1


def test_the_next_generation_after_a_damaged_one_is_newer_than_it(two):
    (two / "000002" / TENSORS).unlink()
    save_checkpoint(two, made(3))
    assert same(latest_checkpoint(two, Heard()), made(3))
    assert (two / "000003").is_dir()


def test_with_every_generation_damaged_a_training_begins_anew_and_says_so(two):
    for number in ("000001", "000002"):
        (two / number / STATE).write_bytes(b"")
    heard = Heard()
    assert latest_checkpoint(two, heard) is None
    assert len(heard.said) == 2
