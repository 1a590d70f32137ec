"""The files of a bundle, each read once: what was hashed is what is used, whatever becomes of the folder."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from regraft.backbones.onnx_check import Graph, GraphError, check_graph
from regraft.bundle.format import FILES, MANIFEST, FormatError, manifest_sha256, parse_manifest
from regraft.bundle.tensors import TensorError, read_tensors
from regraft.core.errors import BundleError
from regraft.core.files import json_bytes, sha256_bytes
from regraft.data.folder_entries import is_junk

MAX_TEXT_BYTES = 64 * 2**20  # of the manifest, config.json and the card
MAX_GRAPH_BYTES = 2**31  # what protobuf allows
MOST_BYTES = dict.fromkeys((MANIFEST, *FILES), MAX_TEXT_BYTES)
MOST_BYTES |= {"model.onnx": MAX_GRAPH_BYTES, "model.safetensors": 4 * MAX_GRAPH_BYTES}
TRIES = 3  # a bundle may be replaced while it is read
RESTORE = "Train again or restore a copy."
Head = tuple[np.ndarray, np.ndarray]  # weight (C, D) and bias (C,) float32


@dataclass(frozen=True)
class Content:
    """The part of a bundle that stays in memory, as it was verified. It is pickled whole, and then verified again.

    Attributes:
        manifest: Content of regraft.json.
        graph: model.onnx, checked.
    """

    manifest: dict[str, Any]
    graph: Graph = field(repr=False)

    @property
    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """Weight `(C, D)` and bias `(C,)` float32 of the last layer."""
        assert self.graph.head is not None
        return self.graph.head

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_pickle, (json_bytes(self.manifest), self.graph.data)


def _from_pickle(manifest: bytes, graph: bytes) -> Content:
    place = Path("the pickled bundle")
    content = _manifest(place / MANIFEST, manifest)
    return _agreeing(place, Content(content, _graph(place / "model.onnx", graph, content["sha256"])), None)


def read_content(folder: Path, expected_sha256: str | None = None) -> Content:
    """Read and verify a bundle's folder.

    Args:
        folder: With regraft.json and the files that it names.
        expected_sha256: The only model that will do, None for any.

    Raises:
        BundleError: Something is missing, damaged, contradicts itself, or is another model than expected.
    """
    for number in range(TRIES):
        data = _read(folder / MANIFEST, MAX_TEXT_BYTES)
        try:
            return _verified(folder, data, expected_sha256)
        except BundleError:
            if number == TRIES - 1 or _is_unchanged(folder, data):
                raise
    raise AssertionError


def read_again(folder: Path, name: str, sha256: str) -> bytes:
    """Read one file of a bundle that was loaded before, if it is still the same.

    Raises:
        BundleError: It was replaced since, or cannot be read.
    """
    path = folder / name
    try:
        data = _read(path, MOST_BYTES[name])
    except BundleError as error:
        raise BundleError(f"{path} was removed or replaced since the model was loaded. Load it again.") from error
    if sha256_bytes(data) != sha256:
        raise BundleError(f"{path} was replaced since the model was loaded. Load it again.")
    return data


def _is_unchanged(folder: Path, data: bytes) -> bool:
    try:
        return _read(folder / MANIFEST, MAX_TEXT_BYTES) == data
    except BundleError:
        return False


def _verified(folder: Path, data: bytes, expected_sha256: str | None) -> Content:
    manifest = _manifest(folder / MANIFEST, data)
    if expected_sha256 not in (None, manifest_sha256(manifest)):
        raise BundleError(
            f"{folder} was replaced by another model: expected sha256 {str(expected_sha256)[:12]}..., got "
            f"{manifest_sha256(manifest)[:12]}.... Load it again."
        )
    hashes = manifest["sha256"]
    graph = _graph(folder / "model.onnx", _read(folder / "model.onnx", MAX_GRAPH_BYTES), hashes)
    head = _head(folder / "model.safetensors", hashes, next(iter(manifest["heads"])))
    for name in ("config.json", "README.md"):
        _same(folder / name, sha256_bytes(_read(folder / name, MAX_TEXT_BYTES)), hashes)
    content = _agreeing(folder, Content(manifest, graph), head)
    _refuse_other_files(folder)
    return content


def _agreeing(folder: Path, content: Content, head: Head | None) -> Content:
    """Return the content if manifest, graph and head say the same; else raise BundleError."""
    if problem := contradiction(content, head):
        raise BundleError(f"{folder} contradicts itself: {problem}. {RESTORE}")
    return content


def _manifest(path: Path, data: bytes) -> dict[str, Any]:
    try:
        return parse_manifest(data)
    except FormatError as error:
        raise BundleError(
            f"{path} has format {str(error.version)[:40]!r}. Expected 1 or 2. Update regraft: pip install -U regraft."
        ) from error
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}. {RESTORE}") from error


def _graph(path: Path, data: bytes, hashes: dict[str, str]) -> Graph:
    _same(path, sha256_bytes(data), hashes)
    try:
        return check_graph(data)
    except GraphError as error:
        raise BundleError(f"{path} is no graph that can be run: {error}. {RESTORE}") from error


def _head(path: Path, hashes: dict[str, str], name: str) -> Head:
    """Read weight `(C, D)` and bias `(C,)`; the whole file is hashed, and no more than these two are kept."""
    wanted, digest = (f"{name}.weight", f"{name}.bias"), hashlib.sha256()
    try:
        with _opened(path) as (file, size):
            weight, bias = read_tensors(file, size, wanted, digest)
    except TensorError as error:
        raise BundleError(f"{path} has no head {name[:80]!r}: {error}. {RESTORE}") from error
    _same(path, digest.hexdigest(), hashes)
    return weight.reshape(len(weight), -1), bias


def contradiction(content: Content, head: Head | None) -> str | None:
    """Say where manifest, graph and the head among the weights differ; None where they do not.

    Args:
        content: Manifest and graph.
        head: Weight and bias as model.safetensors has them; None to leave them out.
    """
    manifest, graph = content.manifest, content.graph
    p, num_classes, num_features = (
        manifest["preprocessing"],
        len(manifest["classes"]),
        manifest["backbone"]["num_features"],
    )
    if graph.head is None:
        return "its graph does not end in one linear layer from features to logits"
    weight, bias = graph.head
    if graph.image_size != (p["height"], p["width"]):
        return f"its graph takes images of {graph.image_size}, its preprocessing gives {(p['height'], p['width'])}"
    if len(bias) != num_classes:
        return f"{num_classes} classes and {len(bias)} logits"
    if weight.shape[1] != num_features:
        return f"its graph has {weight.shape[1]} features, its manifest says {num_features}"
    if head and not (np.array_equal(weight, head[0]) and np.array_equal(bias, head[1])):
        return "its graph and its weights have different heads"
    names = graph.metadata.get("classes")
    if names is not None and names != json.dumps(manifest["classes"]):
        return "its graph and its manifest name different classes"
    return None


def _refuse_other_files(folder: Path) -> None:
    """Refuse a folder with other files than a bundle's; what systems and hubs leave behind is never read."""
    known = {MANIFEST, *FILES}
    others = sorted(name for name in os.listdir(folder) if name not in known and not is_junk(name))
    if others:
        raise BundleError(
            f"{folder} holds {others[0]!r:.100}, which is no part of a bundle. Expected {', '.join(sorted(known))}. "
            "Move it elsewhere."
        )


def _same(path: Path, actual: str, hashes: dict[str, str]) -> None:
    expected = hashes.get(path.name)
    if actual != expected:
        raise BundleError(
            f"{path} is damaged: expected sha256 {str(expected)[:12]}..., got {actual[:12]}.... {RESTORE}"
        )


def _read(path: Path, most: int) -> bytes:
    """Read a regular file's bytes, or those that a link to one leads to; raise BundleError above `most` bytes."""
    with _opened(path) as (file, size):
        if size > most:
            raise BundleError(f"{path} has {size} bytes, expected at most {most}. {RESTORE}")
        return file.read(most + 1)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, and give its size; never wait for pipes and devices. Raises BundleError."""
    missing = f"{path} is missing, or not a plain file. The bundle is incomplete: restore a copy."
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise BundleError(missing) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise BundleError(missing)
    with os.fdopen(descriptor, "rb") as file:
        try:
            yield file, status.st_size
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}. Restore a copy.") from error
