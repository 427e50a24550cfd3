"""The learned numbers of a Gaussian bias."""

import torch
import torch.nn as nn
from torch import Tensor

from ..ops.slots import GaussianBias


class Locality(nn.Module):
    """Each head begins local, and learns how much so, and how far aside it looks: gamma and the shift s are its own."""

    def __init__(self, heads: int, sharpness: float):
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((heads,), sharpness))
        self.shift = nn.Parameter(torch.zeros(heads))

    def forward(self, positions: Tensor) -> GaussianBias:
        """positions: of `ops.slots.slot_positions`, (B, m)."""
        return GaussianBias(positions, self.sharpness, self.shift)
