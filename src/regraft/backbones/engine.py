"""Graphs to numbers: OpenVINO on the processor. Never imports torch.

One photo is one request, which no other thread uses meanwhile and which runs on one core. So a photo's features do not
depend on what else is in the batch, and decoding on the other threads overlaps with inference by itself.
"""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from regraft.backbones.graph_cost import check_cost
from regraft.backbones.onnx_check import Graph, GraphError, check_graph
from regraft.core.runtime import is_full_precision, num_cores, version_of

Precision = Literal["f32", "bf16"]
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # meant for torch; OpenVINO has no pooling for all that they leave
BEFORE_ROOTS = "features before roots"  # name of the value that `backbones.root_features` takes roots of
MIN_AGREEMENT = 0.998  # cosine of bf16 and f32 features below which bf16 is not used

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # OpenVINO then uses its own silent stub


class AnyEngine(Protocol):
    """What runs a graph.

    Attributes:
        batch_size: How many photos one call had better bring.
    """

    batch_size: int

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return outputs by name, each `(B, ...)` float32, of `images (B, H, W, 3)` uint8."""
        ...


class Engine:
    """A compiled graph, safe to call from many threads, and in a process that was forked from one that uses it."""

    batch_size = 8  # they run one by one, but while decoding has to wait, code and weights stay in the cache

    def __init__(
        self, graph: Graph | Path | bytes, precision: Precision = "f32", also: Sequence[str] = (), threads: int = 1
    ) -> None:
        """Compile a graph.

        Args:
            graph: An ONNX file that takes `images (B, H, W, 3)` uint8: checked, its bytes, or where it lies. Or
                OpenVINO's own format as regraft wrote it, by its path.
            precision: Arithmetic.
            also: Names of other values in the graph that are to be outputs too.
            threads: Cores that one photo is given; as many photos as there is room for run at once.

        Raises:
            GraphError: It is no plain network, or too large.
            RuntimeError: OpenVINO cannot compile it.
        """
        self.precision: Precision = precision
        self._source = graph if isinstance(graph, Path) and graph.suffix == ".xml" else checked_graph(graph)
        self._also, self._threads, self._lock = tuple(also), threads, threading.Lock()
        self._compiled: _Compiled | None = None
        _, self.height, self.width, _ = self._parts().image_shape
        _ENGINES.add(self)

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Return outputs by name, each `(B, ...)` float32, of `images (B, H, W, 3)` uint8."""
        compiled = self._parts()
        rows = [compiled.run(image[np.newaxis]) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _parts(self) -> "_Compiled":
        """Return what was compiled in this process, and compile it now if that has not been done yet."""
        with self._lock:
            if self._compiled is None:
                self._compiled = _Compiled(self._source, self.precision, self._also, self._threads)
            return self._compiled

    def after_fork(self) -> None:
        """Forget what the other process compiled, in one just forked.

        The threads of what was compiled do not exist here, so it is never touched again.
        """
        if self._compiled is not None:
            for native in self._compiled.natives():
                _keep_for_ever(native)
        self._compiled, self._lock = None, threading.Lock()


class _Compiled:
    """A graph compiled in one process: all of it in one precision, or what lies behind the features in another."""

    def __init__(self, source: Graph | Path, precision: Precision, also: Sequence[str], threads: int) -> None:
        model = _read(_core(), source)
        head, self._between = _cut_head(model) if precision == "bf16" else (None, "")
        if also:
            model.add_outputs(list(also))
        self.image_shape = tuple(model.inputs[0].shape)
        self._parts = [_Part(model, precision, threads)]
        if head:
            self._parts.append(_Part(head, "f32", threads))
        self._free: list[list[Any]] = []
        self._all: list[list[Any]] = []

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return outputs by name of one photo `(1, H, W, 3)` uint8, by requests that no other thread uses meanwhile."""
        requests = self._requests()
        outputs: dict[str, np.ndarray] = {}
        for part, request in zip(self._parts, requests, strict=True):
            request.infer({0: outputs[self._between] if outputs else np.ascontiguousarray(image)})
            outputs |= {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(part.outputs)}
        self._free.append(requests)
        return outputs

    def natives(self) -> list[Any]:
        """Return everything here that OpenVINO made."""
        requests = [request for requests in self._all for request in requests]
        return [*requests, *(part.compiled for part in self._parts)]

    def _requests(self) -> list[Any]:
        try:
            return self._free.pop()
        except IndexError:
            made = [part.compiled.create_infer_request() for part in self._parts]
            self._all.append(made)
            return made


class _Part:
    """A model compiled in one precision, with so many `threads` (cores) for one photo."""

    def __init__(self, model: Any, precision: Precision, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": max(1, num_cores() // threads),
            "INFERENCE_NUM_THREADS": num_cores(),
        }
        self.compiled = _core().compile_model(model, "CPU", options)
        self.outputs = [output.get_any_name() for output in model.outputs]


def _cut_head(model: Any) -> tuple[Any, str]:
    """Cut off what a model computes from its features, or takes roots of, and return that and the name of these.

    It costs next to nothing in single precision, and bf16 would leave a logit two or three digits. None where there is
    nothing to cut off.
    """
    import openvino

    outputs = {output.get_any_name(): output.node for output in model.outputs}
    name, features = "features", _before_roots(model)
    if features is None:
        features = outputs.pop("features").input_value(0)
    else:
        name = model.add_outputs(BEFORE_ROOTS)[0].get_any_name()
    if not outputs:
        return None, name
    given = openvino.opset13.parameter(features.shape, features.element_type)
    for reader in features.get_target_inputs():
        if reader.get_node().get_type_name() != "Result":
            reader.replace_source_output(given.output(0))
    for result in outputs.values():
        model.remove_result(result)
    return openvino.Model(list(outputs.values()), [given]), name


def _before_roots(model: Any) -> Any:
    """Return the value that a model takes roots of to get its features; None where it takes none."""
    values = (output for node in model.get_ordered_ops() for output in node.outputs())
    return next((value for value in values if BEFORE_ROOTS in value.get_names()), None)


def activations(graph: Graph | Path | bytes) -> list[tuple[str, tuple[int, ...]]]:
    """List what a graph takes and computes for one photo, in order; constants are left out.

    Args:
        graph: A checked graph, the bytes of an ONNX file, or where it lies.

    Returns:
        Names and shapes.

    Raises:
        GraphError: It is no plain network, or too large.
    """
    model = _read(_core(), checked_graph(graph))
    return [
        (min(output.get_names()), tuple(output.shape))
        for node in model.get_ordered_ops()
        if node.get_type_name() not in ("Constant", "Result")
        for output in node.outputs()
        if output.get_names() and output.partial_shape.is_static
    ]


@dataclass(frozen=True)
class Pooled:
    """Some of the features, in order: mean or maximum over the places of a feature map, for each of its channels.

    Attributes:
        name: Of the map in the graph.
        kind: Mean or maximum.
        shape: `(1, D, h, w)` of the map, or `(1, h, w, D)` where channels are last.
        is_last: Whether channels are last.
    """

    name: str
    kind: Literal["mean", "max"]
    shape: tuple[int, ...]
    is_last: bool

    @property
    def num_features(self) -> int:
        """Number D of these features."""
        return self.shape[-1 if self.is_last else 1]


def pooled(graph: Graph | Path | bytes) -> tuple[Pooled, ...] | None:
    """Find which feature maps the features are pooled from.

    Args:
        graph: A checked graph, the bytes of an ONNX file, or where it lies.

    Returns:
        The parts of the features in order, or of what features are roots of; None where something else lies between
        pooling and features, or in a ViT.

    Raises:
        GraphError: It is no plain network, or too large.
    """
    model = _read(_core(), checked_graph(graph))
    (result,) = (one for one in model.get_results() if "features" in one.input_value(0).get_names())
    parts = list(_parts(_before_roots(model) or result.input_value(0)))
    return None if None in parts else tuple(part for part in parts if part)


def takes_roots(graph: Graph | Path | bytes) -> bool:
    """Tell whether the features of a graph are roots of others, as `backbones.root_features` makes them."""
    return _before_roots(_read(_core(), checked_graph(graph))) is not None


def _parts(value: Any) -> Iterator[Pooled | None]:
    """Find what a value of the graph is pooled from, back through operators that only move numbers."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Concat":
        for number in range(node.get_input_size()):
            yield from _parts(node.input_value(number))
    elif kind in ("Reshape", "Squeeze", "Unsqueeze"):
        yield from _parts(node.input_value(0))
    elif kind in ("ReduceMean", "ReduceMax"):
        pooled_from = node.input_value(0)
        shape, count = tuple(pooled_from.shape), int(np.prod(value.shape))
        is_map = len(shape) == 4 and count in (shape[1], shape[3]) and pooled_from.get_names()
        name = min(pooled_from.get_names(), default="")
        how: Literal["mean", "max"] = "mean" if kind == "ReduceMean" else "max"
        yield Pooled(name, how, shape, count != shape[1]) if is_map else None
    else:
        yield None


def checked_graph(graph: Graph | Path | bytes) -> Graph:
    """Return an ONNX file as a graph that is safe to compile.

    Args:
        graph: A graph that was checked already, the bytes of an ONNX file, or where it lies.

    Raises:
        GraphError: It is no plain network.
    """
    if isinstance(graph, Graph):
        return graph
    return check_graph(graph if isinstance(graph, bytes) else graph.read_bytes())


def _read(core: Any, source: Graph | Path) -> Any:
    """Read a graph for one photo at a time. Raises GraphError where that takes too much, or ignores it."""
    model = core.read_model(source.data if isinstance(source, Graph) else source)
    if not model.inputs:  # one that nothing reads is left out
        raise GraphError("what it gives does not depend on the photo")
    _, *rest = model.inputs[0].partial_shape
    model.reshape({model.inputs[0]: [1, *rest]})
    check_cost(model)
    return model


def openvino_model(graph: bytes) -> Any:
    """Read an ONNX file that regraft itself made as OpenVINO's own model, batch size free."""
    return _core().read_model(graph)


def save(model: Any, path: Path) -> None:
    """Write a model as OpenVINO's own files: `path` with .xml, and .bin beside it."""
    import openvino

    openvino.save_model(model, str(path), compress_to_fp16=False)


@cache
def _core() -> Any:
    """Return OpenVINO's core, one until the process ends.

    Each of its CPU plugins puts a signal stack of its own in place of the thread's, and puts back the one it found:
    where two end in the order in which they began, that one is unmapped, and the next signal ends the process. And its
    first look at an array takes a lock that it waits for while it holds the interpreter: where two threads look first
    at the same time, both wait for ever.
    """
    import openvino

    openvino.Tensor(np.zeros(1, np.uint8)).data  # noqa: B018  # the first look, by one thread
    limits = {name: os.environ.pop(name) for name in LIMITS if name in os.environ}
    try:
        core = openvino.Core()
        core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # oneDNN reads its limit now, and once
    finally:
        os.environ.update(limits)
    return core


def _keep_for_ever(native: Any) -> None:
    """Never run the destructor of an object, which would wait for threads that this process does not have."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


def _after_fork() -> None:
    """Let the new process make a core, and compile when it needs to: OpenVINO's threads do not survive a fork."""
    if _core.cache_info().currsize:
        _keep_for_ever(_core())
        _core.cache_clear()
    for engine in list(_ENGINES):
        engine.after_fork()


_ENGINES: "weakref.WeakSet[Engine]" = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def engine_identity(precision: Precision) -> str:
    """Return what a feature's value depends on besides the graph and the photo."""
    return f"openvino {version_of('openvino')} {precision}"


def best_precision(graph: Path, images: np.ndarray) -> tuple[Precision, float | None]:
    """Choose bf16 where the processor has it and its features agree with those in f32.

    The choice is kept with the graph, so what `REGRAFT_PRECISION` says today has no part in it.

    Args:
        graph: The ONNX file.
        images: `(B, H, W, 3)` uint8, on which the features are compared.

    Returns:
        The precision and the worst cosine, None where the processor has no bf16.
    """
    if not is_bf16_native():
        return "f32", None
    agreement = _agreement(graph, images)
    return ("bf16" if agreement >= MIN_AGREEMENT else "f32"), agreement


def _agreement(graph: Path, images: np.ndarray) -> float:
    """Return the worst cosine between features in bf16 and in f32."""
    exact, fast = Engine(graph, "f32")(images)["features"], Engine(graph, "bf16")(images)["features"]
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(fast, axis=1)
    return float(np.min((exact * fast).sum(axis=1) / np.maximum(norms, 1e-12)))


def usable_precision(recorded: str) -> Precision:
    """Return bf16 where it was recorded as agreeing and this processor has it, else f32."""
    return "bf16" if recorded == "bf16" and has_bf16() else "f32"


def has_bf16() -> bool:
    """Tell whether to compute in bfloat16: the processor does so natively, and `REGRAFT_PRECISION` is not f32."""
    return not is_full_precision() and is_bf16_native()


@cache
def is_bf16_native() -> bool:
    """Tell whether the processor computes in bfloat16 by itself."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_gpu() -> bool:
    """Tell whether an NVIDIA GPU is visible and torch made for it, without importing torch to find out."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    built_for_it = "+cpu" not in (version_of("torch") or "+cpu")
    return visible and built_for_it and os.path.exists("/dev/nvidiactl")  # noqa: PTH110
