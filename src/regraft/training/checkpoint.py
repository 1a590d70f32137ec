"""What a training continues from: generation folders, whole or not there.

checkpoints/000123/state.safetensors    every tensor: network, optimiser, running average, best epoch
checkpoints/000123/state.json           everything else, and the sha256 of the tensors; written last

A generation is written under another name and renamed. "Latest" is the newest that verifies; two are kept, so that
damage to one costs the work since the one before.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from regraft.core.files import json_bytes, sha256_bytes, sha256_json, sweep, write_atomic
from regraft.core.ownership import output_folder, remove_made
from regraft.core.progress import Progress

KEPT = 2
STATE, TENSORS = "state.json", "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to continue.

    Attributes:
        tensors: By name.
        state: Plain JSON values.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the next generation into `folder`, and remove those beyond the kept ones.

    Raises:
        OutputError: It cannot be written.
    """
    data = save({name: value.detach().cpu().clone().contiguous() for name, value in checkpoint.tensors.items()})
    number = max((int(path.name) for path in _generations(folder)), default=0) + 1
    with output_folder(folder / f"{number:06d}", any_content=True) as partial:
        write_atomic(partial / TENSORS, data)
        state = {"state": checkpoint.state, "sha256": sha256_bytes(data)}
        write_atomic(partial / STATE, json_bytes({**state, "seal": sha256_json(state)}))
    for old in _generations(folder)[:-KEPT]:
        remove_made(old)


def latest_checkpoint(folder: Path, progress: Progress) -> Checkpoint | None:
    """Read the newest generation that is intact; damaged ones are named and passed over.

    Args:
        folder: Of the generations.
        progress: Is told of damaged ones.

    Returns:
        None where there is none.
    """
    if not folder.is_dir():
        return None
    sweep(folder)
    for generation in reversed(_generations(folder)):
        checkpoint = _read(generation)
        if checkpoint is not None:
            return checkpoint
        progress.say(f"{generation} is damaged: the checkpoint before it is taken")
    return None


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's tensors by name: `<parameter's number>.<what>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `flatten` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _generations(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


def _read(generation: Path) -> Checkpoint | None:
    try:
        content = json.loads((generation / STATE).read_text(encoding="utf-8"))
        seal = content.pop("seal")
        data = (generation / TENSORS).read_bytes()
        if seal != sha256_json(content) or sha256_bytes(data) != content["sha256"]:
            return None
        return Checkpoint(load(data), content["state"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError):
        return None
