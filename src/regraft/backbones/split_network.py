"""A network in two: the first stages, which stay as they are, and those behind, which learn from what these give."""

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from regraft.backbones.engine import Engine, Precision, has_bf16
from regraft.backbones.network import Network, Normalise
from regraft.backbones.onnx_export import export
from regraft.backbones.probe import probe_images

SAME = 1e-4  # of the largest logit, by which both halves together may differ from the whole
ENGINE_SAME: dict[Precision, float] = {"f32": 1e-3, "bf16": 0.1}  # the same of the engine beside torch, of a map


@dataclass(frozen=True)
class SplitNetwork:
    """A network in two: the first stages, which stay as they are, and those behind, which learn.

    Attributes:
        whole: The network.
        first: Name of the first part that learns.
        rest: The network with all that runs before that part taken out. It takes what `before` gives, and its tensors
            have the names that they have in the whole.
    """

    whole: Network
    first: str
    rest: Network

    def before(self, images: Tensor) -> Tensor:
        """Compute what the first part that learns receives.

        Args:
            images: `(B, 3, H, W)`, what the network takes.

        Returns:
            `(B, C, h, w)`.

        Raises:
            RuntimeError: The network does not run that part.
        """

        def leave(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            raise _Reached(inputs[0])

        hook = self.whole.module.get_submodule(self.first).register_forward_pre_hook(leave)
        try:
            self.whole.module(images)
        except _Reached as reached:
            return reached.activations
        finally:
            hook.remove()
        raise RuntimeError(f"{self.first} has not been reached")


class FrontGraph(nn.Module):
    """A module from photos `(B, H, W, 3)` uint8 to what the first part that learns receives, `(B, h, w, C)` float32."""

    def __init__(self, division: SplitNetwork) -> None:
        super().__init__()
        self.normalise = Normalise(division.whole.preprocessing)
        self.whole = division.whole.module
        self._division = division

    def forward(self, images: Tensor) -> Tensor:
        """Compute the maps of a batch, channels last as they are kept."""
        normalised = cast(Tensor, self.normalise(images.permute(0, 3, 1, 2)))
        return self._division.before(normalised).permute(0, 2, 3, 1)


def front_engine(division: SplitNetwork) -> Engine | None:
    """Start the stages that stay as they are in the engine that extracts features: several times as fast as torch.

    They are exported like any backbone, and proven on two photos.

    Args:
        division: The network in two.

    Returns:
        What gives `{"features": (B, h, w, C) float32}` of photos; None for stages that cannot be exported, or whose
        maps are others in the engine.
    """
    p = division.whole.preprocessing
    images, graph = probe_images(p.height, p.width), FrontGraph(division).eval()
    with torch.inference_mode():
        expected = graph(torch.from_numpy(images)).numpy()
    try:
        with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
            export(graph, images, Path(folder) / "front.onnx")
            engine = Engine((Path(folder) / "front.onnx").read_bytes(), "bf16" if has_bf16() else "f32")
        features = engine(images)["features"]
    except Exception:  # exporters and engines raise errors of every kind
        return None
    allowed = ENGINE_SAME[engine.precision] * float(np.abs(expected).max())
    is_same = features.shape == expected.shape and bool((np.abs(features - expected) <= allowed).all())
    return engine if is_same else None


class _Reached(Exception):
    """Raised at the end of the stages that stay as they are."""

    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.activations = activations


def divide(network: Network, learning: Iterable[str]) -> SplitNetwork | None:
    """Divide a network before the first of the parameters that learn, and prove it on two photos.

    Args:
        network: The whole.
        learning: Names of the parameters that learn, in their order.

    Returns:
        None where the network is not a row of parts of which each takes a map from the one before and nothing else.
    """
    names = list(learning)
    first = _outermost(network.module, names)
    images = _probe(network)
    try:
        rest = copy.deepcopy(network.module)
        for name in _done_before(network.module, first, images):
            rest.set_submodule(name, nn.Identity())
        division = SplitNetwork(network, first, replace(network, module=rest))
        is_proven = _is_whole(division, names, images)
    except Exception:  # parts that want more than one map fail in ways of their own
        return None
    return division if is_proven else None


def _outermost(module: nn.Module, learning: list[str]) -> str:
    """Return the name of the largest part that the first parameter lies in and that learns as a whole."""
    still = [name for name, _ in module.named_parameters() if name not in set(learning)]
    parts = learning[0].split(".")[:-1]
    prefixes = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return next(prefix for prefix in prefixes if not any(name.startswith(f"{prefix}.") for name in still))


def _done_before(module: nn.Module, first: str, images: Tensor) -> list[str]:
    """List the parts that have run when `first` begins, each without the parts that it consists of."""
    done: list[str] = []
    names = {part: name for name, part in module.named_modules()}

    def note(part: nn.Module, *_: Any) -> None:
        done.append(names[part])

    def leave(*_: Any) -> None:
        raise _Reached(images)

    hooks = [part.register_forward_hook(note) for part in module.modules()]
    hooks.append(module.get_submodule(first).register_forward_pre_hook(leave))
    try:
        with torch.inference_mode():
            module(images)
    except _Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in dict.fromkeys(done) if name.rpartition(".")[0] not in done]


def _is_whole(division: SplitNetwork, learning: list[str], images: Tensor) -> bool:
    """Tell whether one half after the other gives what the network gives, and nothing that learns was taken out."""
    with torch.inference_mode():
        expected = cast(Tensor, division.whole.module(images))
        activations = division.before(images)
        answer = cast(Tensor, division.rest.module(activations))
    has_all = set(learning) <= {name for name, _ in division.rest.module.named_parameters()}
    close = torch.allclose(answer, expected, rtol=0, atol=SAME * float(expected.abs().max()))
    return has_all and close and activations.ndim == 4


def _probe(network: Network) -> Tensor:
    p = network.preprocessing
    return torch.from_numpy(probe_images(p.height, p.width)).permute(0, 3, 1, 2).float() / 128 - 1
