"""Weights between the first and the learned ones of a training.

On photos from elsewhere they answer better: M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
"""

import numpy as np
import torch
from torch import Tensor, nn

from regraft.core.progress import Progress
from regraft.models.calibration import calibrated_losses
from regraft.training.batches import Loader
from regraft.training.loop import network_logits
from regraft.training.train_state import TrainState


def copied(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's weights and statistics."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def put_between(
    module: nn.Module,
    first: dict[str, Tensor],
    train_state: TrainState,
    val: Loader,
    val_chooses: bool,
    progress: Progress,
) -> np.ndarray:
    """Put weights at the recipe's share of the way from the first to the learned ones into the module that learned.

    Where val chooses, the learned weights stay if they lose less on val, each at the temperature that fits best. What
    was chosen is noted in the recipe that is carried out.

    Args:
        module: With the learned weights; what is delivered.
        first: The weights that it began with; not looked at where the share is 1.
        train_state: Of the training.
        val: N photos.
        val_chooses: Whether they choose.
        progress: Is told the losses of both.

    Returns:
        `(N, C)` float64, the logits of val by what is delivered.
    """
    share = train_state.recipe.interpolation
    if share == 1:
        return network_logits(train_state, val, progress)
    learned = copied(module)
    of_learned = network_logits(train_state, val, progress) if val_chooses else None
    module.load_state_dict(_between(first, learned, share))
    logits = network_logits(train_state, val, progress)
    if of_learned is None:
        return logits
    labels = val.photos.dataset.labels
    between_loss, learned_loss = (float(calibrated_losses(one, labels).mean()) for one in (logits, of_learned))
    progress.say(f"weights at {share:g} of the way: val loss {between_loss:.4f}; those learned: {learned_loss:.4f}")
    if between_loss <= learned_loss:
        return logits
    module.load_state_dict(learned)
    train_state.about = train_state.about.fitted(interpolation=1.0)
    return of_learned


def _between(first: dict[str, Tensor], learned: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return weights at a share of the way; whole numbers are the learned ones.

    Those that have not moved stay as they are, to the last bit.
    """
    return {
        name: torch.lerp(first[name].to(value.device), value, share) if value.is_floating_point() else value
        for name, value in learned.items()
    }
