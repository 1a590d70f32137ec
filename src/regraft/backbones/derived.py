"""Backbones whose features are made of another's: of all its levels, or of their square roots.

Only the graph computes such features, so torch has no part in them: neither on a GPU, nor in timm's layout.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from regraft.backbones.backbone import FORMAT, Backbone, intact, seal_info
from regraft.core.files import (
    json_bytes,
    published,
    replace_any,
    sha256_file,
    sha256_json,
    writable_cache,
    write_atomic,
)
from regraft.core.progress import QUIET, Progress
from regraft.core.runtime import cache_folder


def with_all_levels(backbone: Backbone, progress: Progress = QUIET) -> Backbone:
    """Load the backbone whose features are those of all levels of another, that one's own at the end.

    See `backbones.multilevel_features`.

    Args:
        backbone: The network with its own features.
        progress: Is told what is done.

    Raises:
        BackboneError: The network has no levels.
    """

    def build(graph: Path) -> tuple[bytes, int]:
        from regraft.backbones.multilevel_features import with_levels  # takes onnx along

        return with_levels(graph)

    return _derived(backbone, "levels", build, progress)


def with_roots(backbone: Backbone, progress: Progress = QUIET) -> Backbone:
    """Load the backbone whose features are signed square roots of another's, of unit length.

    See `backbones.root_features`.

    Args:
        backbone: The network with its own features, or with those of all levels.
        progress: Is told what is done.
    """

    def build(graph: Path) -> tuple[bytes, int]:
        from regraft.backbones.root_features import with_root_layer  # takes onnx along

        return with_root_layer(graph)

    return _derived(backbone, "roots", build, progress)


def _derived(backbone: Backbone, kind: str, build: Callable[[Path], tuple[bytes, int]], progress: Progress) -> Backbone:
    """Return a backbone with another graph, from the cache where it is there; photos go into it as they did before."""
    key = sha256_json({f"{kind} of": backbone.graph_sha256, "format": FORMAT})[:32]
    place = cache_folder() / "graphs" / key
    if kept := intact(place):
        return Backbone(place, kept).with_preprocessing(backbone.preprocessing)
    graphs = writable_cache("graphs", progress)
    data, num_features = build(backbone.graph)
    plain = backbone.with_grey_bits(None)  # the cache knows no photos
    with published(graphs / key, replace_any) as folder:
        write_atomic(folder / "features.onnx", data)
        shutil.copy2(backbone.trunk, folder / "trunk.safetensors")
        info = {**plain.info, "num_features": num_features, kind: True, "heads": {"head": []}, "config": {}}
        info["sha256"] = {name: sha256_file(folder / name) for name in ("features.onnx", "trunk.safetensors")}
        write_atomic(folder / "backbone.json", json_bytes(seal_info(info)))
    return Backbone(graphs / key, info).with_preprocessing(backbone.preprocessing)
