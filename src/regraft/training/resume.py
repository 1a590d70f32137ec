"""Whether an unfinished training may be continued by this command: what has changed, and what that means.

The same command continues. Settings that change no result are applied; those of the recipe need --force, since the
result is then that of no single recipe; photos, network, and what decides the shape of the optimiser's state must
stay. Nothing is ignored silently.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from regraft.core.errors import TrainError
from regraft.core.progress import Progress
from regraft.training.recipe import Recipe

APPLIED = frozenset({"val_batch_size", "compile"})
REFUSED = frozenset({"optimizer", "unfreeze", "views", "batch_size", "head_start", "ema", "keep"})


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of its run.

    Attributes:
        identity: Photos, split, backbone, mode and seed, in words or hashes.
        asked: The recipe as the command gave it.
        carried_out: The same with as many epochs as the time allows.
    """

    identity: dict[str, str]
    asked: Recipe
    carried_out: Recipe

    def fitted(self, **changes: Any) -> "CheckpointInfo":
        """Change settings of the recipe that is carried out, as the time allows them."""
        return replace(self, carried_out=replace(self.carried_out, **changes))

    def to_json(self) -> dict[str, Any]:
        """Return it as stored in a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CheckpointInfo":
        """Build it from what `to_json` gave."""
        return cls(values["identity"], Recipe(**values["asked"]), Recipe(**values["carried_out"]))


def continued(
    before: CheckpointInfo, identity: dict[str, str], asked: Recipe, force: bool, progress: Progress
) -> Recipe:
    """Return the recipe to go on with.

    Args:
        before: What the checkpoint says of its run.
        identity: Photos, split, backbone, mode and seed of this command, in words or hashes.
        asked: The recipe of this command.
        force: Whether settings of the recipe may change.
        progress: Is told what has changed.

    Raises:
        TrainError: Something has changed that may not, or not without --force; the text lists it.
    """
    others = [name for name in identity if identity[name] != before.identity.get(name)]
    old, new = before.asked.to_json(), asked.to_json()
    changed = [name for name in new if new[name] != old[name]]
    refused = [name for name in changed if name in REFUSED]
    forced = [name for name in changed if name not in REFUSED | APPLIED]
    if others or refused:
        changes = [_change(name, before.identity.get(name), identity[name]) for name in others]
        changes += [_change(name, old[name], new[name]) for name in refused]
        raise TrainError(
            f"There is an unfinished training with {_list(changes)}. It cannot be continued so. "
            "Give the same command to continue it, --restart to begin anew, or another --out."
        )
    if forced and not force:
        changes = [_change(name, old[name], new[name]) for name in forced]
        raise TrainError(
            f"There is an unfinished training with {_list(changes)}. Give the same settings to continue it, --force to "
            "go on with the new ones, --restart to begin anew, or another --out."
        )
    for name in changed:
        progress.say(f"changed on resume: {name} {new[name]}, was {old[name]}")
    return replace(before.carried_out, **{name: new[name] for name in changed})


def _change(name: str, old: Any, new: Any) -> str:
    return f"{name} {_short(old)} (now {_short(new)})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _list(changes: Iterable[str]) -> str:
    return ", ".join(changes)
