"""A backbone of a few hundred numbers and photos of a few hundred pixels: a training takes a tenth of a second."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from regraft.backbones.backbone import Backbone
from regraft.core.config import TrainConfig
from regraft.core.errors import BackboneError
from regraft.core.files import sha256_file
from regraft.core.progress import QUIET, Progress
from regraft.data.transforms import Preprocessing

SIZE, NUM_FILTERS = 16, 12
SHADES = {"ash": (118, 128, 138), "birch": (138, 128, 118), "cedar": (128, 138, 120), "elm": (120, 118, 134)}


def tiny_backbone(folder: Path, seed: int = 0) -> Backbone:
    """One convolution with random weights, rectified and averaged over the photo."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (NUM_FILTERS, 3, 3, 3)).astype(np.float32)
    constants = {"weight": weight, "half": np.array(127.5, np.float32), "axes": np.array([2, 3], np.int64)}
    steps = (
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "half"], ["centred"]),
        helper.make_node("Div", ["centred", "half"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight"], ["maps"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("ReduceMean", ["positive", "axes"], ["features"], keepdims=0),
    )
    graph = helper.make_graph(
        steps,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["B", NUM_FILTERS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "features.onnx"))
    save_file({"conv.weight": weight}, folder / "trunk.safetensors", metadata={"format": "pt"})
    preprocessing = Preprocessing(SIZE, SIZE, (SIZE, SIZE), "bilinear", "center", (0.5,) * 3, (0.5,) * 3)
    info = {
        "name": "tiny",
        "library": "none",
        "architecture": "tiny",
        "num_features": NUM_FILTERS,
        "num_params": weight.size,
        "heads": {"fc": []},
        "preprocessing": preprocessing.to_json(),
        "licence": "mit",
        "origin": f"random, seed {seed}",
        "loaded": None,
        "precision": "f32",
        "bf16_agreement": None,
        "config": {"architecture": "tiny"},
        "sha256": {name: sha256_file(folder / name) for name in ("features.onnx", "trunk.safetensors")},
    }
    return Backbone(folder, info)


@contextmanager
def only_tiny_backbone(folder: Path) -> Iterator[Backbone]:
    """Within the block it is the only network that there is, whatever is asked for; it has one size."""
    tiny = tiny_backbone(folder)

    def only(config: TrainConfig, progress: Progress = QUIET, *, size: tuple[int, int] | None = None) -> Backbone:
        if size is not None:
            raise BackboneError("tiny has one size.")
        return tiny

    with pytest.MonkeyPatch.context() as patch:
        for module in ("commands.train", "commands.scan", "commands.label", "models.feature_search"):
            patch.setattr(f"regraft.{module}.configured", only)
        yield tiny


def draw(path: Path, shade: tuple[int, int, int], seed: int) -> Path:
    """A noisy photo of one shade; shades overlap, so that no model is always right."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(shade) + rng.normal(0, 30, (20, 24, 3)) + rng.normal(0, 11, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def draw_photos(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """`root/<class>/<class>_<i>.png`."""
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            draw(root / name / f"{name}_{i}.png", SHADES[name], seed + 1000 * c + i)
    return root
