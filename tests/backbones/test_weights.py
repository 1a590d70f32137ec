"""Weights files are taken whole, whatever wraps them, or refused in one sentence; what is in them never runs."""

import io
import json
import os
import pickle
import signal
import struct
import subprocess
import tarfile
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, resnet34

from regraft.backbones import weights
from regraft.backbones.weights import load_into, read_weights, renamed_by_position, unwrapped, without_prefix
from regraft.core import signals
from regraft.core.errors import WeightsError


def small() -> nn.Module:
    """A backbone of eight tensors and a head, named "2", of two."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.fixture
def save(tmp_path):
    def save(content, name="weights.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "best_acc1": 0.7, "optimizer": {"state": {}, "param_groups": []}},
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"state_dict": {f"module.{name}": value for name, value in s.items()}, "epoch": 3},
        lambda s: {"model": s},
        lambda s: {"model": {"state_dict": s}, "args": None},
        lambda s: {"model_state_dict": OrderedDict(s)},
        lambda s: {"net": {f"_orig_mod.module.{name}": value for name, value in s.items()}},
        lambda s: {f"backbone.{name}": value for name, value in s.items()},
        lambda s: {name: nn.Parameter(value) if value.is_floating_point() else value for name, value in s.items()},
    ],
    ids=["plain", "checkpoint", "module.", "both", "model", "nested", "ordered", "compiled", "backbone.", "parameters"],
)
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_state_dict_loads_whatever_wraps_it(save, wrap, options):
    trained = small()
    network = small()
    loaded = load_into(network, read_weights(save(wrap(state_of(trained)), **options)), ("2",), "file")
    assert same(network, trained.state_dict())
    assert str(loaded) == "9 of 9 tensors loaded"


def test_safetensors_load(tmp_path):
    trained, network = small(), small()
    save_file(state_of(trained), tmp_path / "model.safetensors")
    load_into(network, read_weights(tmp_path / "model.safetensors"), ("2",), "file")
    assert same(network, trained.state_dict())


def test_half_precision_loads_as_float32():
    network = small()
    load_into(network, {name: value.half() for name, value in state_of(small()).items()}, ("2",), "file")
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}


def test_old_checkpoints_without_step_counters_load():
    state = {name: value for name, value in state_of(small()).items() if "num_batches" not in name}
    assert str(load_into(small(), state, ("2",), "file")) == "8 of 9 tensors loaded"


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "backbone.", "_orig_mod."])
def test_a_resnet_trained_on_other_classes_loads_and_the_head_is_reported(save, wrapper):
    trained, network = resnet18(num_classes=7), resnet18()
    head = network.fc.weight.clone()
    state = {wrapper + name: value for name, value in trained.state_dict().items()}
    loaded = load_into(network, read_weights(save({"state_dict": state})), ("fc",), "file")
    assert torch.equal(network.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)
    assert torch.equal(network.fc.weight, head)
    assert str(loaded) == "120 of 122 tensors loaded; other shape: fc.bias 7 for 1000, fc.weight 7x512 for 1000x512"


def test_the_report_names_missing_unexpected_and_mismatched_tensors_with_shapes():
    state = state_of(resnet18())
    state["extra.weight"] = state.pop("layer1.0.bn1.weight")
    state["bn1.bias"] = torch.zeros(3)
    loaded = load_into(resnet18(), state, ("fc",), "file")
    assert loaded.missing == ("layer1.0.bn1.weight 64",)
    assert loaded.unexpected == ("extra.weight 64",)
    assert loaded.mismatched == ("bn1.bias 3 for 64",)
    assert "missing: layer1.0.bn1.weight 64" in str(loaded)


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (lambda: {f"blocks.{i}": torch.zeros(2) for i in range(9)}, "0 of 122 tensors loaded"),
        (lambda: {n: v for n, v in state_of(resnet34()).items() if n[:6] in ("conv1.", "bn1.we")}, "2 of 122"),
        (lambda: {n: v for n, v in state_of(resnet18()).items() if n.startswith("fc.")}, "2 of 122"),
    ],
    ids=["names", "shapes", "head only"],
)
def test_weights_of_another_network_are_refused_with_the_counts_and_change_nothing(other, counts):
    network = resnet18()
    before = state_of(network)
    with pytest.raises(WeightsError, match=f"^photos.pth was made for another network: {counts}.*missing: "):
        load_into(network, other(), ("fc",), "photos.pth")
    assert same(network, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_name_and_change_nothing(value):
    network, state = small(), state_of(small())
    before = state_of(network)
    state["1.running_var"][2] = value
    with pytest.raises(WeightsError, match=r"not finite, in 1\.running_var"):
        load_into(network, state, ("2",), "file")
    assert same(network, before)


def test_a_value_that_float32_cannot_hold_is_not_finite():
    state = state_of(small())
    state["0.weight"] = state["0.weight"].double() * 1e300
    with pytest.raises(WeightsError, match=r"not finite, in 0\.weight"):
        load_into(small(), state, ("2",), "file")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 7, 9, 60, 0.3, 0.9, -40, -1])
def test_a_truncated_file_is_refused(tmp_path, name, keep):
    path = tmp_path / name
    save_file(state_of(small()), path) if path.suffix == ".safetensors" else torch.save(state_of(small()), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match=f"{name} is not a.* file"):
        read_weights(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pth.tar", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", b"hello\n" * 100, bytes(4096)])
def test_a_file_of_something_else_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is not a.* file"):
        read_weights(tmp_path / name)


def test_a_page_that_was_saved_instead_of_the_file_shows(tmp_path):
    (tmp_path / "weights.pth").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(WeightsError, match="it begins with b'<!DOCTYPE html>"):
        read_weights(tmp_path / "weights.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(WeightsError, match=f"no weights file {path}"):
            read_weights(path)


@pytest.mark.parametrize("content", [{}, [torch.zeros(3)], torch.zeros(3), None, {"epoch": 3}, {"model": {"a": 1}}])
def test_a_file_without_a_state_dict_is_refused(save, content):
    with pytest.raises(WeightsError, match=r"holds no tensors.*Save model\.state_dict\(\)"):
        read_weights(save(content))


def test_a_checkpoint_inside_itself_is_refused(save):
    content: dict[str, object] = {}
    content["model"] = content
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_weights(save(content))


@pytest.mark.parametrize(
    "odd",
    [
        lambda w: w.to_sparse(),
        lambda w: w.to(torch.complex64),
        lambda w: w.to("meta"),
        lambda w: w.to(torch.float8_e4m3fn),
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    ],
    ids=["sparse", "complex", "meta", "float8", "quantized"],
)
def test_tensors_that_no_layer_can_take_are_not_taken(save, odd):
    state = state_of(small())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save({**state, "0.weight": odd(state["0.weight"])})
    with pytest.raises(WeightsError, match=r"missing: 0\.weight 4x3x3x3"):
        load_into(small(), read_weights(path), ("2",), "file")


class Runs:
    """Unpickled the usual way, it calls `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


ATTACKS = {
    "os.system": lambda canary: Runs(os.system, f"touch {canary}"),
    "eval": lambda canary: Runs(eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Runs(exec, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Runs(open, str(canary), "w"),
    "Popen": lambda canary: Runs(subprocess.Popen, ["touch", str(canary)]),
    "getattr": lambda canary: Runs(getattr, Runs(__import__, "os"), "system"),
    "inside state_dict": lambda canary: {"state_dict": {"w": Runs(os.system, f"touch {canary}")}},
    "beside tensors": lambda canary: {**state_of(small()), "epoch": Runs(os.system, f"touch {canary}")},
    "numpy objects": lambda canary: {"w": np.array([Runs(os.system, f"touch {canary}")], dtype=object)},
    "a whole module": lambda canary: small(),
}


def zipped(attack, path):
    torch.save(attack, path)


def legacy(attack, path):
    torch.save(attack, path, _use_new_zipfile_serialization=False)


def bare_pickle(attack, path):
    path.write_bytes(pickle.dumps(attack))


def legacy_tar(attack, path):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            data = pickle.dumps(attack)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("write", [zipped, legacy, bare_pickle, legacy_tar])
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_code_in_a_file_is_refused_and_never_runs(tmp_path, write, attack, name):
    canary = tmp_path / "canary"
    write(ATTACKS[attack](canary), tmp_path / name)
    expected = r"refused unexecuted.*Save model\.state_dict\(\)"
    if write is legacy_tar or name.endswith(".safetensors"):
        expected = "is not an? .*file"
    with pytest.raises(WeightsError, match=expected) as caught:
        read_weights(tmp_path / name)
    assert not canary.exists()
    assert "weights_only" not in str(caught.value), "the cure must not be to read it unsafely"


def test_the_attacks_would_run_elsewhere(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(ATTACKS["os.system"](canary)))
    assert canary.exists()


def test_a_torchscript_archive_is_refused_unexecuted(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(small()), str(tmp_path / "script.pt"))
    with pytest.raises(WeightsError, match="refused unexecuted") as caught:
        read_weights(tmp_path / "script.pt")
    assert "weights_only" not in str(caught.value)


def safetensors_bytes(header: object, body: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**31) + b"{}",
        struct.pack("<Q", 1000) + b"{}",
        safetensors_bytes(b"{"),
        safetensors_bytes(b"\xff\xfe{}"),
        safetensors_bytes(b"[" * 100_000),
        safetensors_bytes([1, 2]),
        safetensors_bytes({"a": entry(dtype="F33")}),
        safetensors_bytes({"a": entry(shape=(5,))}),
        safetensors_bytes({"a": entry(shape=(-4,))}),
        safetensors_bytes({"a": entry(shape=(2**40, 2**40))}),
        safetensors_bytes({"a": entry(offsets=(16, 0))}),
        safetensors_bytes({"a": entry(offsets=(-16, 0))}),
        safetensors_bytes({"a": entry(offsets=(0, 2**62))}),
        safetensors_bytes({"a": entry(offsets=(8, 24))}),
        safetensors_bytes({"a": entry(), "b": entry(offsets=(8, 24))}),
        safetensors_bytes({"a": entry()}, bytes(15)),
        safetensors_bytes({"a": entry()}, bytes(100)),
        safetensors_bytes({"a": 3}),
        safetensors_bytes({"__metadata__": {"a": 3}}),
        safetensors_bytes({f"t{i}": entry(offsets=(4 * i, 4 * i + 16)) for i in range(100_000)}),
    ],
    ids=range(21),
)
def test_a_lying_safetensors_header_is_refused(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="not an intact safetensors file"):
        read_weights(tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def intact_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    torch.save(state_of(small()), folder / "weights.pth")
    torch.save(state_of(small()), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state_of(small()), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["weights.pth", "legacy.pth", "model.safetensors"])
@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=5))
def test_damage_anywhere_gives_tensors_or_a_weights_error(intact_files, tmp_path, name, damage):
    data = bytearray((intact_files / name).read_bytes())
    for where, bits in damage:
        data[int(where * len(data))] ^= bits
    (tmp_path / name).write_bytes(data)
    network = small()
    before = state_of(network)
    try:
        load_into(network, read_weights(tmp_path / name), ("2",), name)
    except WeightsError:
        assert same(network, before), "a refused file must leave the network as it was"
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_prefixes_are_kept_where_the_network_has_them_itself():
    """The MobileNet of PyTorch's tutorial: its names begin with `model.`."""
    names = ["model.0.0.weight", "model.0.1.weight", "model.1.0.weight", "fc.weight"]
    state = {name: torch.zeros(1) for name in names}
    assert list(without_prefix(state, names)) == names
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert list(without_prefix(wrapped, names)) == names
    twice = {f"model.{name}": value for name, value in state.items()}
    assert list(without_prefix(twice, names)) == names


def test_prefixes_are_kept_where_taking_them_off_does_not_help():
    state = {"module.a": torch.zeros(1), "a": torch.ones(1)}
    assert without_prefix(state, ["a"]) is state
    assert without_prefix(state, ["b"]) is state
    assert without_prefix({}, ["b"]) == {}


def test_a_name_of_nothing_but_prefixes_has_an_end():
    assert len(without_prefix({"module." * 5000: torch.zeros(1)}, ["a"])) == 1


def test_unwrapped_gives_nothing_where_there_is_nothing():
    assert unwrapped(None) == unwrapped({"model": None}) == unwrapped({"model": {}}) == {}


def test_in_order_renames_by_position_and_refuses_other_shapes():
    own, other = small(), {f"x{i}": value for i, value in enumerate(state_of(small()).values())}
    assert list(renamed_by_position(other, own, "package")) == list(own.state_dict())
    with pytest.raises(WeightsError, match="package does not fit"):
        renamed_by_position(dict(list(other.items())[:-1]), own, "package")
    with pytest.raises(WeightsError, match="package does not fit"):
        renamed_by_position({**other, "x0": torch.zeros(1)}, own, "package")


@pytest.mark.parametrize("reader", ["_read_safetensors", "_read_torch"])
def test_a_signal_while_weights_are_read_is_no_damage(reader, tmp_path, monkeypatch):
    """Libraries turn what a signal raises within them into errors of their own."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x80")  # as a bare pickle begins

    def load(*_, **__):
        signals._handle(signal.SIGTERM, None)
        raise SafetensorError("could not determine the shape of a tensor")

    monkeypatch.setattr(signals, "_pending", [])
    monkeypatch.setattr(weights, "load_file", load)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(signals.Interrupted):
        getattr(weights, reader)(path)
