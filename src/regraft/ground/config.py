"""What can be chosen about a training run. One dataclass, saved with the result."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["frozen"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `regraft train`."""

    mode: Mode = "frozen"
    """Which part learns: "frozen" solves the head on the backbone's features."""

    backbone: str = "tf_efficientnet_lite0"
    """Name of the pretrained network, as listed by `regraft backbones`."""

    weights: str | None = None
    """None for the backbone's pretrained weights, "random", or the path of a weights file."""

    val_fraction: float = 0.2
    """Share of each class that is kept for judging, when the folder has no val or test of its own."""

    num_folds: int = 5
    """Folds of the cross-validation that chooses the head's strength."""

    seed: int = 0
    """Decides which photos are kept for judging, the folds, and random weights."""

    offline: bool = False
    """Never download anything."""

    def to_json(self) -> dict[str, Any]:
        """As stored in manifests."""
        return asdict(self)
