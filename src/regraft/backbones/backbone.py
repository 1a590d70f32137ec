"""A backbone's name and weights to a traced graph, kept in the cache so that the next run needs no torch.

graphs/<key>/features.onnx        images (B, H, W, 3) uint8 -> features (B, D) float32, normalisation inside
graphs/<key>/trunk.safetensors    the same weights under the library's own names, head left out
graphs/<key>/backbone.json        what they are; the sha256 of both and of what it says itself; written last
graphs/requests/<hash>.json       which key a request by name, weights and library versions led to
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from safetensors.numpy import load_file

from regraft.backbones.catalog import DEFAULT, PACKAGED, RANDOM
from regraft.backbones.engine import (
    AnyEngine,
    Engine,
    Precision,
    best_precision,
    engine_identity,
    has_gpu,
    is_bf16_native,
    usable_precision,
)
from regraft.backbones.onnx_check import Graph, GraphError, check_graph
from regraft.backbones.packaged import TRUNK, is_packaged, packaged_graph, packaged_info, packaged_key
from regraft.backbones.probe import probe_images
from regraft.core.config import Fit, TrainConfig
from regraft.core.errors import WeightsError
from regraft.core.files import (
    json_bytes,
    make_folder,
    published,
    replace_any,
    sha256_bytes,
    sha256_file,
    sha256_json,
    writable_cache,
    write_atomic,
)
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import cache_folder, environment, import_torch_module, is_offline, version_of
from regraft.data.transforms import Preprocessing

FORMAT = 1  # raise it when tracing changes what a graph computes or holds


@dataclass(frozen=True)
class Backbone:
    """A traced network without its head.

    Attributes:
        folder: Where graph and weights lie.
        info: Content of backbone.json.
    """

    folder: Path
    info: dict[str, Any]

    @property
    def name(self) -> str:
        """Full name, such as `timm/resnet18.a1_in1k`."""
        return str(self.info["name"])

    @property
    def num_features(self) -> int:
        """Number D of the features."""
        return int(self.info["num_features"])

    @property
    def preprocessing(self) -> Preprocessing:
        """What a photo goes through before the graph."""
        return Preprocessing.from_json(self.info["preprocessing"])

    def with_grey_bits(self, grey_bits: int | None) -> "Backbone":
        """Return the same backbone for photos whose 16-bit greys use so many bits; None for all."""
        return self.with_preprocessing(replace(self.preprocessing, grey_bits=grey_bits))

    def with_fit(self, fit: Fit | None) -> "Backbone":
        """Return the same backbone with photos made to fit its input in another way; None for its own way."""
        return self.with_preprocessing(self.preprocessing.fitted(fit))

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Backbone":
        """Return the same backbone behind another preprocessing."""
        return replace(self, info={**self.info, "preprocessing": preprocessing.to_json()})

    @property
    def graph(self) -> Path:
        """The ONNX file that gives features."""
        return self.folder / "features.onnx"

    @property
    def trunk(self) -> Path:
        """The weights, without the head's."""
        return self.folder / "trunk.safetensors"

    @property
    def first_layer(self) -> np.ndarray | None:
        """The filters applied to the photo itself, `(K, 3, h, w)` float32; None for a network that has none."""
        return first_layer(load_file(self.trunk))

    @property
    def graph_sha256(self) -> str:
        """Hash of the ONNX file: the part of a feature's key that stands for the network."""
        return str(self.info["sha256"]["features.onnx"])

    @property
    def precision(self) -> Precision:
        """Arithmetic of the features: bf16 where it was found to agree and this processor has it, else f32."""
        return usable_precision(self.info["precision"])

    @property
    def engine_identity(self) -> str:
        """What feature values depend on besides the graph and the photo."""
        return f"torch {version_of('torch')} cuda f32" if self._is_for_torch else engine_identity(self.precision)

    def engine(self) -> AnyEngine:
        """Start what computes the features: torch on a GPU, OpenVINO on the processor.

        Features of all levels and roots are computed by OpenVINO everywhere: the graph alone knows them.
        """
        if self._is_for_torch:
            engine: AnyEngine = import_torch_module("backbones.torch_engine").TorchEngine(self.info, self.trunk, "cuda")
            return engine
        return Engine(self.graph, self.precision)

    @property
    def _is_for_torch(self) -> bool:
        return has_gpu() and not is_derived(self.info)


@dataclass(frozen=True)
class BackboneInMemory(Backbone):
    """A backbone that needs no file: pickled with its graph, which is verified again.

    Attributes:
        checked: The graph. Those of equal content are one in a process, and in a pickle.
    """

    checked: Graph = field(repr=False)

    def engine(self) -> AnyEngine:
        """Like any backbone's; without its weights, OpenVINO everywhere."""
        return super().engine() if self._is_for_torch else Engine(self.checked, self.precision)

    @property
    def _is_for_torch(self) -> bool:
        return super()._is_for_torch and self.trunk.is_file()

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_pickle, (self.info, self.checked)


_GRAPHS: "WeakValueDictionary[str, Graph]" = WeakValueDictionary()  # by the hash of their content


def in_memory(backbone: Backbone) -> BackboneInMemory:
    """The same with its graph in memory.

    Raises:
        WeightsError: The cache has lost it since.
    """
    graph = _GRAPHS.get(backbone.graph_sha256)
    if graph is None:
        try:
            graph = _shared(check_graph(backbone.graph.read_bytes()), backbone.graph_sha256)
        except (OSError, GraphError) as error:
            raise WeightsError(f"{backbone.graph} cannot be read any more: {error}. Run it again.") from error
    return BackboneInMemory(backbone.folder, backbone.info, graph)


def _from_pickle(info: dict[str, Any], graph: Graph) -> BackboneInMemory:
    backbone = Backbone(Path("of a pickle"), info)
    return BackboneInMemory(backbone.folder, info, _shared(graph, backbone.graph_sha256))


def _shared(graph: Graph, sha256: str) -> Graph:
    """The graph itself, or one of equal content that is in use. Raises WeightsError where it is another than stated."""
    if sha256_bytes(graph.data) != sha256:
        raise WeightsError(f"The backbone's graph is damaged: expected sha256 {sha256[:12]}.... Fit it again.")
    return _GRAPHS.setdefault(sha256, graph)


def first_layer(tensors: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the filters that are applied to the photo itself.

    Args:
        tensors: Weights of a network, by name.

    Returns:
        `(K, 3, h, w)` float32; None where there are none.
    """
    seeing = [tensor for _, tensor in sorted(tensors.items()) if tensor.ndim == 4 and tensor.shape[1] == 3]
    return np.asarray(seeing[0], np.float32) if seeing else None


def load_backbone(
    name: str = DEFAULT,
    weights: str | Path | None = None,
    *,
    offline: bool = False,
    seed: int = 0,
    size: int | None = None,
    progress: Progress = QUIET,
) -> Backbone:
    """Load a backbone from the cache; the default one is put there out of the package, any other is traced once.

    Args:
        name: As `regraft backbones` lists it.
        weights: None for the library's pretrained weights, "random" (drawn from `seed`), or a file.
        offline: Whether no weights may be fetched.
        seed: Of random weights.
        size: Height of the input in pixels, None for the network's own.
        progress: Is told what is done.

    Returns:
        The backbone, whose files are intact.

    Raises:
        BackboneError: The network is unknown, or takes no such size.
        WeightsError: The weights are not on this machine, or damaged.
        MissingExtra: The backbone has to be traced, and torch is not installed.
    """
    weights = None if weights is None else str(weights)
    if is_packaged(name, weights):
        return _unpacked(size, progress)
    request = Path("requests") / f"{_request_hash(name, weights, seed, size)}.json"
    if backbone := _cached(cache_folder() / "graphs", request):
        return backbone
    trace = import_torch_module("backbones.onnx_export").trace
    graphs = writable_cache("graphs", progress)
    with progress.step("trace backbone"):
        offline = offline or is_offline()
        key = trace(graphs, name, weights, offline=offline, seed=seed, size=size, progress=progress)
        make_folder(graphs / "requests", kind="cache")
        write_atomic(graphs / request, json_bytes({"key": key}))
    return _kept(graphs, key)


def _unpacked(size: int | None, progress: Progress) -> Backbone:
    """Put the backbone that comes with regraft into the cache, as one that was traced."""
    key = sha256_json([packaged_key(size), tracing_identity()[-1]])[:32]
    if kept := intact(cache_folder() / "graphs" / key):
        return Backbone(cache_folder() / "graphs" / key, kept)
    graphs = writable_cache("graphs", progress)
    with progress.step("unpack backbone"), published(graphs / key, replace_any) as folder:
        write_atomic(folder / "features.onnx", packaged_graph(size))
        shutil.copyfile(TRUNK, folder / "trunk.safetensors")
        info = packaged_info(size)
        height, width = (info["preprocessing"][side] for side in ("height", "width"))
        precision, agreement = best_precision(folder / "features.onnx", probe_images(height, width))
        digests = {name: sha256_file(folder / name) for name in ("features.onnx", "trunk.safetensors")}
        info |= {"precision": precision, "bf16_agreement": agreement, "versions": environment(), "sha256": digests}
        write_atomic(folder / "backbone.json", json_bytes(seal_info(info)))
    if size is None:
        progress.say(f"backbone {info['name']}: {info['loaded']}; from {info['origin']}")
        progress.say(f"  {Preprocessing.from_json(info['preprocessing'])}")
    return _kept(graphs, key)


def _kept(graphs: Path, key: str) -> Backbone:
    """Read back what has just been put into the cache. Raises WeightsError where it is not there."""
    info = intact(graphs / key)
    if info is None:
        raise WeightsError(
            f"The cache {graphs} does not keep what is written to it. Choose another with REGRAFT_CACHE."
        )
    return Backbone(graphs / key, info)


def configured(config: TrainConfig, progress: Progress = QUIET, *, size: int | None = None) -> Backbone:
    """Load the backbone of a run.

    Args:
        config: Of the run.
        progress: Is told what is done.
        size: Height of its input in pixels, None for the network's own.

    Raises:
        BackboneError: The network is unknown, or takes no such size.
        WeightsError: The weights are not on this machine, or damaged.
        MissingExtra: The backbone has to be traced, and torch is not installed.
    """
    c = config
    backbone = load_backbone(c.backbone, c.weights, offline=c.offline, seed=c.seed, size=size, progress=progress)
    return backbone.with_fit(c.fit)


def cached_backbones() -> Iterator[Backbone]:
    """Yield the networks in the cache whose weights are not random, each once, at the size it was first traced at."""
    seen: set[tuple[str, str]] = set()
    for place in sorted((cache_folder() / "graphs").glob("*/backbone.json"), key=lambda path: path.stat().st_mtime):
        info = intact(place.parent)
        if info is None or is_derived(info) or info["loaded"] is None or (info["name"], info["origin"]) in seen:
            continue
        seen.add((info["name"], info["origin"]))
        yield Backbone(place.parent, info)


def from_network(folder: Path, network: Any) -> Backbone:
    """Trace a trained network into an empty folder; its head is left out.

    Args:
        folder: The empty folder.
        network: A `backbones.network.Network`.

    Raises:
        WeightsError: The folder does not keep what is written to it.
    """
    import_torch_module("backbones.onnx_export").trace_into(folder, network)
    info = intact(folder)
    if info is None:
        raise WeightsError(f"{folder} does not keep what is written to it. Choose another place with --out.")
    return Backbone(folder, info)


def _request_hash(name: str, weights: str | None, seed: int, size: int | None = None) -> str:
    """Hash everything that the traced graph depends on, known without importing torch."""
    return sha256_json(
        {
            "name": name,
            "weights": _identity(name, weights),
            "seed": seed if weights == RANDOM else 0,
            "size": size,
            "made by": tracing_identity(),
            "format": FORMAT,
        }
    )


def tracing_identity() -> list[str | None]:
    """Return what a traced graph depends on besides the network and its weights.

    These are the versions of the libraries that build and export it, and whether the processor has bf16: only there can
    it be found out whether bf16 agrees with single precision.
    """
    return [*map(version_of, ("timm", "torchvision", "torch")), "bf16" if is_bf16_native() else "f32"]


def _identity(name: str, weights: str | None) -> str:
    if weights == RANDOM:
        return RANDOM
    packaged = PACKAGED.get(name.removeprefix("timm/"))
    path = Path(weights) if weights else packaged.path() if packaged else None
    if path is None:
        return "pretrained"
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}. Expected a .safetensors, .pth or .pth.tar file.")
    beside = path.parent / "config.json"
    try:
        return sha256_file(path) + (sha256_file(beside) if beside.is_file() else "")
    except OSError as error:
        raise WeightsError(f"Cannot read {path}: {error.strerror}. Check its permissions.") from error


def _cached(graphs: Path, request: Path) -> Backbone | None:
    """Return what a request led to, if all of it is intact; a damaged entry counts as absent and is traced again."""
    try:
        folder = graphs / json.loads((graphs / request).read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    info = intact(folder)
    return Backbone(folder, info) if info else None


def intact(folder: Path) -> dict[str, Any] | None:
    """Return backbone.json of a folder whose files all have the content that it states, else None."""
    try:
        info = json.loads((folder / "backbone.json").read_text())
        good = info.pop("seal") == sha256_json(info)
        good = good and all(sha256_file(folder / name) == digest for name, digest in info["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return info if good else None


def is_derived(info: dict[str, Any]) -> bool:
    """Tell whether features are more than a network's own, so that its graph alone knows them."""
    return "levels" in info or "roots" in info


def seal_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return content for backbone.json, with the hash that shows damage to it."""
    return {**info, "seal": sha256_json(info)}
