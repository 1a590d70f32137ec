"""Where a network divides: its parameters by stage, from the first layers to the last, head left out."""

import re
from itertools import accumulate
from typing import Any

from timm.models import group_parameters
from torch import nn

from regraft.backbones.network import Network, unwrap


def stages(network: Network) -> list[list[str]]:
    """List the names of the parameters of each stage, from the first to the last, the head's left out.

    The stages are timm's own groups, elsewhere the blocks as they are nested.
    """
    module: Any = unwrap(network.module)
    named = dict(module.named_parameters())
    in_head = tuple(f"{head}." for head in network.heads)
    if hasattr(module, "group_matcher"):
        groups: dict[int, list[str]] = group_parameters(module, module.group_matcher(coarse=True))
        ordered = [groups[key] for key in sorted(groups)]
    else:
        blocks = list(dict.fromkeys(_block_of(name, module) for name in named))
        ordered = [[name for name in named if _block_of(name, module) == block] for block in blocks]
    kept = [[name for name in group if name in named and not name.startswith(in_head)] for group in ordered]
    return [group for group in kept if group]


def last_half(network: Network) -> int:
    """Count the last stages that hold half of the parameters, and so most of what a network knows of its classes."""
    named = dict(network.module.named_parameters())
    sizes = [sum(named[name].numel() for name in stage) for stage in stages(network)]
    held = list(accumulate(reversed(sizes)))
    return 1 + next(i for i, size in enumerate(held) if size >= held[-1] / 2)


def _block_of(name: str, module: nn.Module) -> str:
    """Return `features.3` of `features.3.conv.weight`; the child's own name where it is not a row of blocks."""
    first, _, rest = name.partition(".")
    child = getattr(module, first)
    if hasattr(child, "layers"):  # the encoder of a ViT
        return f"{first}.{_block_of(rest, child)}"
    is_row = isinstance(child, (nn.Sequential, nn.ModuleList)) and not re.fullmatch(r"layer\d+", first)  # of a ResNet
    return f"{first}.{rest.partition('.')[0]}" if is_row else first
