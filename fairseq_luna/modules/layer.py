"""What the layers of all stacks have in common."""

from typing import List, Optional

import torch
import torch.nn as nn


class Layer(nn.Module):
    """A layer of a stack, which may be computed again for its gradients.

    Args:
        recompute: whether it keeps what enters it alone (activation checkpointing).
        offload: whether that waits in the memory of the CPU.
    """

    def __init__(self, recompute: bool = False, offload: bool = False):
        super().__init__()
        self.recompute, self.offload = recompute, offload


def draw_layers(layers: int, p: float) -> List[int]:
    """Which of so many layers stay in an update, where each is left out with probability p.

    LayerDrop (Fan et al. 2019, Reducing Transformer Depth on Demand).
    """
    return (torch.rand(layers) >= p).nonzero().flatten().tolist()


def at_work(layers: nn.ModuleList, drawn: Optional[List[int]]) -> List[nn.Module]:
    """The layers of these numbers, or all."""
    return list(layers) if drawn is None else [layers[i] for i in drawn]
