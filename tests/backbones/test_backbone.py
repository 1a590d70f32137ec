"""A backbone is traced once, kept whole, and found again without torch; its graph computes what the network does."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from onnxruntime import InferenceSession
from safetensors.torch import load_file, save_file

from conftest import TESTS
from regraft.backbones import backbone as graphs
from regraft.backbones import engine as engines
from regraft.backbones import onnx_export as tracing
from regraft.backbones.backbone import Backbone, intact, load_backbone, seal_info
from regraft.backbones.catalog import DEFAULT, PACKAGED
from regraft.backbones.engine import Engine
from regraft.backbones.network import FeatureGraph, build
from regraft.backbones.onnx_export import MAX_DIFFERENCE, probe_images
from regraft.backbones.torch_engine import TorchEngine
from regraft.core import files
from regraft.core.errors import BackboneError, OutputError, WeightsError
from regraft.core.progress import Progress

SMALL = "timm/test_resnet"
onnxruntime.set_default_logger_severity(3)


def in_process(code: str, forbid: str = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(TESTS / "blocked"), "REGRAFT_TEST_FORBID": forbid}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.fixture
def never_traced(monkeypatch):
    """Fails the test that traces."""

    def trace(*_, **__):
        raise AssertionError("traced again")

    monkeypatch.setattr(tracing, "trace", trace)


@pytest.fixture
def num_traced(monkeypatch):
    """A list with an entry for each export of a graph."""
    traced = []
    export = tracing.export
    monkeypatch.setattr(tracing, "export", lambda *arguments: (traced.append(1), export(*arguments))[1])
    return traced


@pytest.fixture
def small():
    return load_backbone(SMALL, "random")


def test_a_backbone_says_what_it_is(small):
    assert small.name == SMALL
    assert small.num_features == 96
    assert small.preprocessing.height == 160
    assert small.precision in ("f32", "bf16")
    assert small.info["heads"] == {"fc": []}
    assert small.info["origin"] == "random, seed 0"
    assert small.info["num_params"] == sum(p.numel() for p in timm.create_model("test_resnet").parameters())
    assert np.array_equal(small.first_layer, load_file(small.trunk)["conv1.0.weight"].numpy())
    assert intact(small.folder) == small.info


def test_a_convolutions_head_is_written_with_its_axes():
    assert load_backbone("timm/dla46x_c", "random").info["heads"] == {"fc": [1, 1]}


@pytest.mark.usefixtures("never_traced")
def test_the_same_request_is_answered_from_the_cache(small):
    assert load_backbone(SMALL, "random") == small


def test_names_of_one_network_share_its_graph():
    assert load_backbone(DEFAULT).folder == load_backbone(f"timm/{DEFAULT}").folder


def test_each_network_seed_and_weights_file_has_its_own_key(tmp_path):
    module = timm.create_model("test_resnet")
    save_file(module.state_dict(), tmp_path / "a.safetensors")
    with torch.no_grad():
        module.conv1[0].weight[0, 0, 0, 0] += 1e-3
    save_file(module.state_dict(), tmp_path / "b.safetensors")
    requests = [
        (SMALL, "random", 0),
        (SMALL, "random", 1),
        ("timm/test_efficientnet", "random", 0),
        (SMALL, str(tmp_path / "a.safetensors"), 0),
        (SMALL, str(tmp_path / "b.safetensors"), 0),
    ]
    assert len({graphs._request_hash(*request) for request in requests}) == 5
    assert len({tracing._key(build(name, weights, seed=seed)) for name, weights, seed in requests}) == 5


def test_a_file_with_other_content_under_the_same_name_is_another_request(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    before, stat = graphs._request_hash(SMALL, str(file), 0), file.stat()
    flip(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert graphs._request_hash(SMALL, str(file), 0) != before


def test_another_config_beside_the_weights_is_another_request_and_key(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    request, key = graphs._request_hash(SMALL, str(file), 0), tracing._key(build(SMALL, str(file)))
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.1, 0.1, 0.1]}}))
    assert graphs._request_hash(SMALL, str(file), 0) != request
    assert tracing._key(build(SMALL, str(file))) != key


def test_the_seed_matters_to_random_weights_only():
    assert graphs._request_hash(DEFAULT, None, 0) == graphs._request_hash(DEFAULT, None, 1)
    assert graphs._request_hash(DEFAULT, "random", 0) != graphs._request_hash(DEFAULT, "random", 1)


def test_another_version_of_the_libraries_is_another_request(monkeypatch):
    """And another graph: one that other libraries traced does not stand for theirs."""
    network, found = build(SMALL, "random"), []
    for changed in (None, "timm", "torchvision", "torch"):
        monkeypatch.setattr(graphs, "version_of", lambda package, changed=changed: f"1 {package == changed}")
        found.append((graphs._request_hash(SMALL, None, 0), tracing._key(network)))
    requests, keys = zip(*found, strict=True)
    assert len(set(requests)) == len(set(keys)) == 4


def test_after_an_update_a_graph_is_traced_anew(empty_cache, num_traced, monkeypatch):
    first = load_backbone(SMALL, "random")
    monkeypatch.setattr(graphs, "version_of", lambda package: "9.9")
    second = load_backbone(SMALL, "random")
    assert len(num_traced) == 2
    assert first.folder != second.folder


def test_what_one_run_asks_of_precision_is_not_kept_with_the_graph(empty_cache, monkeypatch):
    """A graph traced under REGRAFT_PRECISION=f32 may run in bf16 later; so may one of a processor without bf16."""
    monkeypatch.setattr(tracing, "best_precision", lambda *_: engines.best_precision(*_))
    monkeypatch.setattr(engines, "is_bf16_native", lambda: True)
    monkeypatch.setattr(engines, "_agreement", lambda *_: 1.0)
    monkeypatch.setenv("REGRAFT_PRECISION", "f32")
    backbone = load_backbone(SMALL, "random")
    assert (backbone.info["precision"], backbone.precision) == ("bf16", "f32")
    monkeypatch.delenv("REGRAFT_PRECISION")
    assert load_backbone(SMALL, "random").precision == "bf16"


def test_a_processor_with_bf16_finds_out_for_itself_whether_it_agrees(monkeypatch):
    requests = []
    for native in (False, True):
        monkeypatch.setattr(graphs, "is_bf16_native", lambda native=native: native)
        requests.append(graphs._request_hash(SMALL, "random", 0))
    assert requests[0] != requests[1]


def test_a_missing_weights_file_is_named_before_torch_is_imported(tmp_path):
    with pytest.raises(WeightsError, match=f"no weights file {tmp_path}/none.pth"):
        load_backbone(SMALL, tmp_path / "none.pth")


def flip(path, where=0.5):
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)


def forget_licence(path):
    info = json.loads(path.read_text())
    del info["licence"]
    path.write_text(json.dumps(info))


def move_mean(path):
    info = json.loads(path.read_text())
    info["preprocessing"]["mean"][0] = 0.4
    path.write_text(json.dumps(info))


DAMAGE = {
    "graph flipped": lambda folder: flip(folder / "features.onnx"),
    "graph truncated": lambda folder: (folder / "features.onnx").write_bytes(b"\x08"),
    "graph gone": lambda folder: (folder / "features.onnx").unlink(),
    "trunk flipped": lambda folder: flip(folder / "trunk.safetensors", 0.99),
    "json truncated": lambda folder: (folder / "backbone.json").write_text('{"format": 1'),
    "json empty": lambda folder: (folder / "backbone.json").write_text("{}"),
    "json a list": lambda folder: (folder / "backbone.json").write_text("[]"),
    "json not text": lambda folder: (folder / "backbone.json").write_bytes(b"\xff\xfe\x00"),
    "json without a field": lambda folder: forget_licence(folder / "backbone.json"),
    "json with another mean": lambda folder: move_mean(folder / "backbone.json"),
    "folder gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_the_cache_is_noticed(small, tmp_path, damage):
    folder = shutil.copytree(small.folder, tmp_path / "copy")
    assert intact(folder) == small.info
    DAMAGE[damage](folder)
    assert intact(folder) is None


@pytest.mark.parametrize("damage", ["graph flipped", "json truncated"])
def test_what_is_damaged_is_traced_again(small, num_traced, damage):
    DAMAGE[damage](small.folder)
    assert load_backbone(SMALL, "random") == small
    assert num_traced == [1]
    assert intact(small.folder) == small.info


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"key": 3}', '{"key": "none"}', "\x00"])
def test_a_damaged_request_is_answered_anew(small, text):
    request = f"{graphs._request_hash(SMALL, 'random', 0)}.json"
    (small.folder.parent / "requests" / request).write_text(text)
    assert load_backbone(SMALL, "random") == small


def test_a_seal_shows_any_change():
    info = {"name": "x", "mean": [0.1, 1e-17, 3], "sha256": {}}
    assert seal_info(info)["seal"] != seal_info({**info, "name": "y"})["seal"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "file" / "cache"))
    files.temporary_folder.cache_clear()
    backbone = load_backbone(SMALL, "random", progress=Progress())
    try:
        assert backbone.num_features == 96
        assert intact(backbone.folder)
        assert not backbone.folder.is_relative_to(tmp_path)
        assert "Going on without: nothing is kept for the next run" in capsys.readouterr().err
    finally:
        files.temporary_folder().cleanup()
        files.temporary_folder.cache_clear()


def test_a_cache_that_forgets_is_an_error_with_the_cure(empty_cache, monkeypatch):
    monkeypatch.setattr(graphs, "intact", lambda folder: None)
    with pytest.raises(WeightsError, match=r"does not keep what is written.*REGRAFT_CACHE"):
        load_backbone(SMALL, "random")


def test_a_failed_trace_leaves_nothing_behind(empty_cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracing, "_save_trunk", full)
    with pytest.raises(OutputError, match="no space left"):
        load_backbone(SMALL, "random")
    assert [path.name for path in (empty_cache / "graphs").iterdir() if path.is_dir()] == []


def test_a_warm_cache_needs_no_torch(small):
    code = (
        "import sys, numpy; from regraft.backbones.backbone import load_backbone;"
        f"b = load_backbone({SMALL!r}, 'random');"
        "assert b.engine()(numpy.zeros((2, 160, 160, 3), 'uint8'))['features'].shape == (2, 96);"
        "assert 'regraft.backbones.onnx_export' not in sys.modules and 'torch' not in sys.modules"
    )
    done = in_process(code, forbid="torch")
    assert done.returncode == 0, done.stderr


def test_a_cold_cache_without_torch_names_the_cure(empty_cache):
    code = f"from regraft.backbones.backbone import load_backbone; load_backbone({SMALL!r}, 'random')"
    done = in_process(code, forbid="torch")
    assert "MissingExtra: This needs the package 'torch'" in done.stderr
    assert "pip install 'regraft[train]'" in done.stderr


@pytest.mark.slow
def test_processes_that_start_together_trace_once(empty_cache):
    """Both come from one process that has imported what they need."""
    code = (
        "import os, timm, torch\n"
        "from regraft.backbones import onnx_export as trace; from regraft.backbones.backbone import load_backbone\n"
        "export = trace.export\n"
        "trace.export = lambda *a: (print('traced', flush=True), export(*a))\n"
        "def start():\n"
        "    if pid := os.fork(): return pid\n"
        f"    print(load_backbone({SMALL!r}, 'random').graph_sha256, flush=True)\n"
        "    os._exit(0)\n"
        "assert [os.waitpid(pid, 0)[1] for pid in [start(), start()]] == [0, 0]"
    )
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines.count("traced") == 1
    assert len(set(lines)) == 2


def relative_difference(a, b):
    return np.abs(a - b).max() / b.std()


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        (DEFAULT, None),
        (SMALL, "random"),
        ("timm/test_vit", "random"),
        ("timm/deit_tiny_distilled_patch16_224", "random"),
    ],
)
def test_torch_openvino_and_onnxruntime_agree_on_a_batch(name, weights):
    backbone = load_backbone(name, weights)
    p = backbone.preprocessing
    images = probe_images(p.height, p.width, 3)
    with torch.inference_mode():
        expected = FeatureGraph(build(name, weights)).eval()(torch.from_numpy(images)).numpy()
    judge = InferenceSession(backbone.graph, providers=["CPUExecutionProvider"])
    assert expected.shape == (3, backbone.num_features)
    assert relative_difference(judge.run(["features"], {"images": images})[0], expected) <= MAX_DIFFERENCE
    assert relative_difference(Engine(backbone.graph)(images)["features"], expected) <= MAX_DIFFERENCE


def test_the_batch_is_free(small):
    judge = InferenceSession(small.graph, providers=["CPUExecutionProvider"])
    images = probe_images(160, 160, 7)
    together = judge.run(["features"], {"images": images})[0]
    for count in (1, 2, 7):
        features = judge.run(["features"], {"images": images[:count]})[0]
        assert relative_difference(features, together[:count]) <= 1e-5


def test_a_graph_that_computes_something_else_is_refused(empty_cache, monkeypatch):
    export = tracing.export

    def wrong(graph, images, path):
        graph.normalise.mean += 10
        export(graph, images, path)

    monkeypatch.setattr(tracing, "export", wrong)
    with pytest.raises(BackboneError, match=r"other features in the engine than in torch"):
        load_backbone(SMALL, "random")


@pytest.mark.parametrize(("apart", "is_refused"), [(2e-7, False), (1e-4, True)])
def test_where_features_are_nearly_alike_rounding_is_no_difference(small, monkeypatch, apart, is_refused):
    alike = np.full((2, 8), 2, np.float32)
    monkeypatch.setattr(tracing, "Engine", lambda path: lambda images: {"features": alike + np.float32(apart)})
    network = build(SMALL, "random")
    with pytest.raises(BackboneError) if is_refused else nullcontext():
        tracing._check_engine(Path(small.graph), probe_images(8, 8), alike, network)


def test_the_second_exporter_gives_the_same_graph(small, empty_cache, monkeypatch):
    export = torch.onnx.export

    def without_tracing(*arguments, dynamo, **options):
        if not dynamo:
            raise torch.onnx.errors.UnsupportedOperatorError("aten::new", 18)
        return export(*arguments, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", without_tracing)
    other = load_backbone(SMALL, "random")
    images = probe_images(160, 160, 3)
    assert relative_difference(other.engine()(images)["features"], small.engine()(images)["features"]) <= 1e-3
    assert InferenceSession(other.graph).run(["features"], {"images": images})[0].shape == (3, 96)


class Fourier(torch.nn.Module):
    """What the exporter by tracing has no translation for."""

    def forward(self, images):
        return torch.fft.fft2(images.float()).real.mean((1, 2, 3))


def test_a_network_that_tracing_fails_at_is_not_printed(tmp_path, monkeypatch, capfd):
    export, failed = torch.onnx.export, []

    def first_alone(*arguments, dynamo, **options):
        if not dynamo:
            failed.append(True)
            export(*arguments, dynamo=dynamo, **options)

    monkeypatch.setattr(torch.onnx, "export", first_alone)
    for _ in range(2):  # the log stays on after the first time
        tracing.export(Fourier(), probe_images(8, 8), tmp_path / "graph.onnx")
    assert len(failed) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [SMALL, "timm/dla46x_c", "timm/deit_tiny_distilled_patch16_224", "resnet18"])
def test_the_trunk_has_every_tensor_but_the_heads(name):
    backbone = load_backbone(name, "random")
    state = build(name, "random").module.state_dict()
    saved = load_file(backbone.trunk)
    heads = tuple(f"{head}." for head in backbone.info["heads"])
    assert set(state) - set(saved) == {tensor for tensor in state if tensor.startswith(heads)}
    assert all(torch.equal(value, state[tensor]) for tensor, value in saved.items())


def test_torch_rebuilds_a_network_of_another_input_size(tmp_path):
    """The size is part of a transformer: its position embeddings."""
    p = {"input_size": [3, 96, 96], "crop_pct": 1.0}
    module = timm.create_model("test_vit", img_size=96)
    torch.nn.init.normal_(module.pos_embed)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": p}))
    backbone = load_backbone("timm/test_vit", tmp_path / "model.safetensors")
    images = probe_images(96, 96, 3)
    features = TorchEngine(backbone.info, backbone.trunk, "cpu")(images)["features"]
    assert relative_difference(features, backbone.engine()(images)["features"]) <= 1e-3


def test_the_config_builds_the_network_in_timm_and_holds_no_download():
    config = load_backbone(DEFAULT).info["config"]
    assert config["architecture"] == DEFAULT
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert not {"url", "hf_hub_id", "file"} & set(config["pretrained_cfg"])
    assert load_backbone("resnet18", "random").info["config"] == {"library": "torchvision", "architecture": "resnet18"}


def test_offline_is_said_by_the_environment_too(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_OFFLINE", "1")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="not on this machine"):
        load_backbone("resnet18")


def test_the_weights_of_the_default_are_known_by_content(monkeypatch, tmp_path):
    before = graphs._identity(DEFAULT, None)
    copy = shutil.copy(PACKAGED[DEFAULT].path(), tmp_path / "copy.pth")
    assert graphs._identity(DEFAULT, str(copy)) == before
    flip(copy)
    assert graphs._identity(DEFAULT, str(copy)) != before


def test_precision_is_bf16_only_where_it_was_found_to_agree_and_exists(monkeypatch, tmp_path):
    for found, exists, expected in (("bf16", True, "bf16"), ("bf16", False, "f32"), ("f32", True, "f32")):
        monkeypatch.setattr("regraft.backbones.engine.has_bf16", lambda exists=exists: exists)
        assert Backbone(tmp_path, {"precision": found}).precision == expected


def test_on_a_gpu_torch_computes_the_features(small, monkeypatch):
    started = []
    monkeypatch.setattr(graphs, "has_gpu", lambda: True)
    monkeypatch.setattr("regraft.backbones.torch_engine.TorchEngine", lambda *arguments: started.append(arguments))
    small.engine()
    assert started == [(small.info, small.trunk, "cuda")]
    assert small.engine_identity == f"torch {graphs.version_of('torch')} cuda f32"
