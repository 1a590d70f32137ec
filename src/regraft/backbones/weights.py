"""Weights files to state dicts, without ever running what is in them.

safetensors and PyTorch files are read, the latter with `weights_only=True` and nothing else: a pickle that would run
code is refused unexecuted.
"""

import mmap
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from regraft.core.errors import WeightsError
from regraft.core.signals import held_back

StateDict = dict[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
PREFIXES = ("module.", "backbone.", "model.", "net.", "encoder.", "_orig_mod.")
MIN_LOADED = 0.9  # a smaller share of the backbone's tensors means another architecture
MAX_WRAPPERS = 8  # one inside the other: a checkpoint inside itself would have no end
UNPACKED_BYTES = 16 * 2**20  # more than its own size that a PyTorch file may unpack to: tensors are never packed
HEADER_BYTES = 4 * 2**20  # of a safetensors file: some 40,000 tensors, each of which is taken by itself
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}


@dataclass(frozen=True)
class Loaded:
    """What a weights file gave to a network. Lists name tensors with their shapes, as text.

    Attributes:
        num_loaded: How many of the network's tensors come from the file.
        num_tensors: How many the network has.
        missing: Those of the network that the file lacks.
        unexpected: Those of the file that the network lacks.
        mismatched: Those whose shapes differ, with both shapes.
    """

    num_loaded: int
    num_tensors: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __str__(self) -> str:
        lists = (("missing", self.missing), ("unexpected", self.unexpected), ("other shape", self.mismatched))
        parts = [f"{self.num_loaded} of {self.num_tensors} tensors loaded"]
        parts += [f"{what}: {_some(names)}" for what, names in lists if names]
        return "; ".join(parts)


def read_weights(path: Path) -> StateDict:
    """Read the state dict in a `.safetensors`, `.pth`, `.pt` or `.pth.tar` file, taken out of a checkpoint's wrapper.

    Args:
        path: The file.

    Raises:
        WeightsError: The file is missing, damaged, unsafe, or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}. Expected a .safetensors, .pth or .pth.tar file.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state = unwrapped(content)
    if not state:
        kinds = ", ".join(sorted(map(str, content)))[:200] if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path} holds no tensors. Expected a state dict; found {kinds}. Save model.state_dict().")
    return state


def unwrapped(content: Any) -> StateDict:
    """Return the state dict inside a checkpoint such as `{"state_dict": ..., "epoch": ...}`; empty if there is none."""
    for _ in range(MAX_WRAPPERS):
        content = content if isinstance(content, Mapping) else {}
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    return {str(name): value for name, value in content.items() if _is_plain(value)}


def without_prefix(state: StateDict, names: Iterable[str]) -> StateDict:
    """Free names of the prefixes that wrappers put before them (`module.` of DataParallel), where that helps.

    Args:
        state: Tensors by name.
        names: The network's own names.
    """
    known = set(names)
    for _ in range(MAX_WRAPPERS):
        for prefix in PREFIXES:
            shorter = {name.removeprefix(prefix): value for name, value in state.items()}
            helps = len(known & shorter.keys()) > len(known & state.keys())
            wraps_all = not known & state.keys() and all(name.startswith(prefix) for name in state)
            if len(shorter) == len(state) and (helps or wraps_all):
                state = shorter
                break
    return state


def load_into(network: nn.Module, state: StateDict, heads: Iterable[str], source: str) -> Loaded:
    """Copy a state dict into a network by name and shape, whatever the size of its head.

    Args:
        network: Is changed.
        state: Tensors by name.
        heads: Names of the network's last linear layers, which may differ.
        source: Where the tensors come from, for messages.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: Less than MIN_LOADED of the backbone's tensors fit, or a value is not finite.
    """
    expected = network.state_dict()
    state = without_prefix(state, expected)
    in_head = tuple(f"{head}." for head in heads)
    same = [name for name, value in state.items() if name in expected and expected[name].shape == value.shape]
    fits = {name: state[name].to(expected[name].dtype) for name in same}
    report = Loaded(
        num_loaded=len(fits),
        num_tensors=len(expected),
        missing=tuple(f"{name} {_shape(expected[name])}" for name in expected.keys() - state.keys() if _counts(name)),
        unexpected=tuple(f"{name} {_shape(state[name])}" for name in state.keys() - expected.keys()),
        mismatched=tuple(
            f"{name} {_shape(state[name])} for {_shape(expected[name])}"
            for name in expected.keys() & state.keys()
            if expected[name].shape != state[name].shape
        ),
    )
    backbone = [name for name in expected if not name.startswith(in_head) and _counts(name)]
    if sum(name in fits for name in backbone) < MIN_LOADED * len(backbone):
        raise WeightsError(
            f"{source} was made for another network: {report}. "
            "Expected the names and shapes of the backbone; name the right one with --backbone."
        )
    if bad := [name for name, value in fits.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise WeightsError(f"{source} holds values that are not finite, in {_some(bad)}. Use an intact file.")
    network.load_state_dict(fits, strict=False)
    return report


def renamed_by_position(state: StateDict, network: nn.Module, source: str) -> StateDict:
    """Rename tensors to the network's names by position.

    Args:
        state: Tensors in order.
        network: Whose names are taken.
        source: Where the tensors come from, for messages.

    Raises:
        WeightsError: The number of tensors or a shape differs.
    """
    expected = network.state_dict()
    if [value.shape for value in state.values()] != [value.shape for value in expected.values()]:
        raise WeightsError(f"{source} does not fit: its tensors differ in number or shape from the network's.")
    return dict(zip(expected, state.values(), strict=True))


def _read_safetensors(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > HEADER_BYTES:
            raise ValueError(f"its header would have {length} bytes, expected at most {HEADER_BYTES}")
        with held_back():  # a signal in the midst of it would look like damage
            return load_file(path)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise WeightsError(f"{path} is not an intact safetensors file: {error}. Fetch or save it again.") from error


def _read_torch(path: Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(16)
    if not start.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or the bare pickle of old versions
        raise WeightsError(f"{path} is not a PyTorch file: it begins with {start!r}. Fetch or save it again.")
    try:
        if reason := _excess(path, is_zip=start.startswith(b"PK")):
            raise WeightsError(f"{path} was refused: {reason}. Expected a state dict. Save model.state_dict().")
        with held_back(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a damaged archive makes torch.load raise nearly anything
        if isinstance(error, pickle.UnpicklingError) or "TorchScript" in str(error):
            raise WeightsError(
                f"{path} was refused unexecuted: it holds more than tensors, and reading it would run code. Expected "
                "a state dict. Save model.state_dict(), best as safetensors."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is not an intact PyTorch file: {reason}. Fetch or save it again.") from error


def _excess(path: Path, is_zip: bool) -> str | None:
    """Say what a PyTorch file asks memory for besides its own bytes, before it is read; None where it does not.

    `weights_only=True` still unpacks what is packed, and makes a bytearray of any size that the pickle names.
    """
    with open(path, "rb") as file:
        if not is_zip:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return "it asks for a bytearray" if data.find(b"bytearray\n") >= 0 else None
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            size, unpacked = path.stat().st_size, sum(member.file_size for member in members)
            if unpacked > size + UNPACKED_BYTES:
                return f"its {size} bytes would unpack to {unpacked}"
            pickles = (archive.read(member) for member in members if member.filename.endswith("data.pkl"))
            return "it asks for a bytearray" if any(b"bytearray\n" in data for data in pickles) else None


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a dense tensor of real numbers, which any layer can take."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
    return is_dense and value.dtype in DTYPES


def _counts(name: str) -> bool:
    """Tell whether a tensor counts: old checkpoints lack BatchNorm's step counters, which inference does not use."""
    return not name.endswith("num_batches_tracked")


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = sorted(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
