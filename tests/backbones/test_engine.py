"""The engine's numbers depend on graph and photo alone, and agree with torch's."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from conftest import TESTS
from regraft.backbones import engine as engines
from regraft.backbones.backbone import load_backbone
from regraft.backbones.engine import Engine, best_precision, engine_identity, has_gpu, is_bf16_native
from regraft.backbones.onnx_export import probe_images
from regraft.backbones.torch_engine import TorchEngine


@pytest.fixture(scope="module")
def backbone():
    return load_backbone()


@pytest.fixture(scope="module")
def engine(backbone):
    return Engine(backbone.graph)


@pytest.fixture(scope="module")
def images():
    return probe_images(224, 224, 6)


@pytest.fixture(scope="module")
def alone(engine, images):
    """Features of each photo as the only one of its batch."""
    return np.concatenate([engine(image[np.newaxis])["features"] for image in images])


def test_features_are_float32_and_differ_between_photos(alone):
    assert alone.shape == (6, 1280)
    assert alone.dtype == np.float32
    assert np.isfinite(alone).all()
    assert len(np.unique(alone, axis=0)) == 6


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 2, 4], [3]])
def test_features_do_not_depend_on_the_batch(engine, images, alone, order):
    assert np.array_equal(engine(images[order])["features"], alone[order])


@pytest.mark.parametrize("num_threads", [1, 4])
def test_features_do_not_depend_on_threads(engine, images, alone, num_threads):
    jobs = [np.random.default_rng(seed).permutation(6)[: 1 + seed % 6] for seed in range(12)]
    with ThreadPoolExecutor(num_threads) as pool:
        for job, features in zip(jobs, pool.map(lambda job: engine(images[job])["features"], jobs), strict=True):
            assert np.array_equal(features, alone[job])


@pytest.mark.parametrize("num_cores", [1, 3])
def test_features_do_not_depend_on_cores(backbone, images, alone, monkeypatch, num_cores):
    monkeypatch.setattr(engines, "num_cores", lambda: num_cores)
    assert np.array_equal(Engine(backbone.graph)(images)["features"], alone)


def test_a_graph_may_come_as_bytes(backbone, images, alone):
    assert np.array_equal(Engine(backbone.graph.read_bytes())(images)["features"], alone)


def test_the_engine_knows_its_input(engine):
    assert (engine.height, engine.width, engine.precision) == (224, 224, "f32")


def test_images_that_are_not_contiguous_are_read_right(engine, images, alone):
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    assert np.array_equal(engine(mirrored[:, :, ::-1])["features"], alone)


def test_results_are_not_overwritten_by_the_next_photo(engine, images, alone):
    first = engine(images[:1])["features"]
    engine(images[1:2])
    assert np.array_equal(first, alone[:1])


def test_identity_names_engine_version_and_precision():
    import openvino

    assert engine_identity("f32").startswith("openvino ")
    assert engine_identity("f32").split()[1] in openvino.__version__
    assert engine_identity("f32") != engine_identity("bf16")


def test_bf16_is_used_only_where_the_processor_has_it(backbone, images):
    if is_bf16_native():
        precision, agreement = best_precision(backbone.graph, images)
        assert precision == ("bf16" if agreement >= engines.MIN_AGREEMENT else "f32")
    else:
        assert best_precision(backbone.graph, images) == ("f32", None)


def rotated(features, cosine):
    """Vectors of the same length as `features` that meet them at an angle of this cosine."""
    across = np.roll(features, 1, axis=1) * [1, -1]
    return cosine * features + np.sqrt(1 - cosine**2) * across


@pytest.mark.parametrize(
    ("worst", "expected"), [(0.9999, "bf16"), (0.997, "f32"), (-1.0, "f32"), (float("nan"), "f32")]
)
def test_bf16_is_used_only_where_it_agrees_on_every_photo(monkeypatch, worst, expected):
    features = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])

    class Fake:
        def __init__(self, graph, precision):
            self.precision = precision

        def __call__(self, images):
            if self.precision == "f32":
                return {"features": features}
            return {"features": np.concatenate([features[:2], rotated(features[2:], worst)])}

    monkeypatch.setattr(engines, "is_bf16_native", lambda: True)
    monkeypatch.setenv("REGRAFT_PRECISION", "f32")  # of today; what is found is kept
    monkeypatch.setattr(engines, "Engine", Fake)
    precision, agreement = best_precision(Path("any"), np.zeros((3, 2, 2, 3), np.uint8))
    assert precision == expected
    assert agreement == pytest.approx(worst, abs=1e-6, nan_ok=True)


def test_importing_the_engine_imports_neither_telemetry_nor_torch():
    code = (
        "import sys; from regraft.backbones import engine; engine.has_bf16();"
        "assert sys.modules['openvino_telemetry'] is None; assert 'torch' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS / "blocked")}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, check=True)


def test_signals_are_safe_after_engines_end_in_any_order(backbone):
    """OpenVINO's plugins leave an unmapped signal stack behind when two of them end in the order they began."""
    code = (
        "import os, signal, sys; from regraft.backbones.engine import Engine; graph = open(sys.argv[1], 'rb').read();"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'));"
        "first = Engine(graph); second = Engine(graph); del first; del second; os.kill(os.getpid(), signal.SIGUSR1)"
    )
    done = subprocess.run([sys.executable, "-c", code, backbone.graph], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")


FIRST_CALLS = """
import os, sys, threading
import numpy as np
import openvino
from regraft.backbones.engine import Engine
graph = open(sys.argv[1], "rb").read()

def call_together():
    engine, images, gate = Engine(graph), np.zeros((1, 8, 8, 3), np.uint8), threading.Barrier(2)
    threads = [threading.Thread(target=lambda: (gate.wait(), engine(images))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

for _ in range(40):
    if (pid := os.fork()) == 0:
        call_together()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_two_threads_may_be_the_first_to_call(tmp_path):
    """In a fresh process: OpenVINO's binding can wait for ever where two threads touch their first array at once."""
    cast = onnx.helper.make_node("Cast", ["images"], ["features"], to=onnx.TensorProto.FLOAT)
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, [1, 8, 8, 3])
        for name, kind in (("images", onnx.TensorProto.UINT8), ("features", onnx.TensorProto.FLOAT))
    ]
    graph = onnx.helper.make_graph([cast], "cast", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), tmp_path / "cast.onnx")
    subprocess.run([sys.executable, "-c", FIRST_CALLS, tmp_path / "cast.onnx"], check=True, timeout=60)


@pytest.mark.parametrize(
    ("device", "visible", "torch", "expected"),
    [
        (True, None, "2.14.1", True),
        (True, "0,1", "2.14.1+cu130", True),
        (False, None, "2.14.1", False),
        (True, "", "2.14.1", False),
        (True, "-1", "2.14.1", False),
        (True, None, "2.14.1+cpu", False),
        (True, None, None, False),
    ],
)
def test_a_gpu_counts_where_it_is_there_visible_and_torch_can_use_it(monkeypatch, device, visible, torch, expected):
    monkeypatch.setattr("os.path.exists", lambda path: device)
    monkeypatch.setattr(engines, "version_of", lambda package: torch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert has_gpu() is expected


def test_torch_gives_the_same_features(backbone, images, alone):
    torch_engine = TorchEngine(backbone.info, backbone.trunk, "cpu")
    features = torch_engine(images)["features"]
    assert features.dtype == np.float32
    assert np.abs(features - alone).max() <= 1e-3 * alone.std()


def test_torch_computes_features_alike_whatever_training_has_switched_on(backbone, images, monkeypatch):
    torch_engine, seen = TorchEngine(backbone.info, backbone.trunk, "cpu"), []
    graph = torch_engine._graph

    def asked(pixels):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return graph(pixels)

    monkeypatch.setattr(torch_engine, "_graph", asked)
    torch.set_float32_matmul_precision("high")
    try:
        torch_engine(images[:1])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("highest", False)]


def test_torch_takes_images_that_are_read_only(backbone, images):
    images = images[:1].copy()
    images.flags.writeable = False
    TorchEngine(backbone.info, backbone.trunk, "cpu")(images)


def test_torch_takes_turns_when_many_threads_call(backbone, images, alone):
    torch_engine = TorchEngine(backbone.info, backbone.trunk, "cpu")
    with ThreadPoolExecutor(3) as pool:
        for i, features in enumerate(pool.map(lambda i: torch_engine(images[i : i + 1])["features"], range(6))):
            assert np.abs(features - alone[i]).max() <= 1e-3 * alone.std()


def test_torch_that_runs_out_of_memory_takes_fewer_images_at_once(backbone, images, alone, monkeypatch):
    torch_engine, sizes = TorchEngine(backbone.info, backbone.trunk, "cpu"), []
    graph = torch_engine._graph

    def hungry(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise MemoryError
        return graph(pixels)

    monkeypatch.setattr(torch_engine, "_graph", hungry)
    features = torch_engine(images[:6])["features"]
    assert sizes == [6, 3, 3]
    assert np.abs(features - alone[:6]).max() <= 1e-3 * alone.std()
