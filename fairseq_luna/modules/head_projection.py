"""Projections into heads, and the keys and values of a context."""

import math
from typing import Optional, Tuple

import torch.nn as nn
from torch import Tensor

from ..ops.projection import IDENTITY, Projection, split_heads
from .linear import Linear


class HeadProjection(Linear):
    """A projection into heads: (B, n, in_dim) -> (B, H, n, out_dim / H), scaled if a query."""

    def __init__(self, in_dim: int, out_dim: int, heads: int, is_query: bool = False):
        super().__init__(in_dim, out_dim)
        self.heads = heads
        self.scale = (out_dim // heads) ** -0.5 if is_query else 1.0
        nn.init.xavier_uniform_(self.weight, gain=1 / math.sqrt(2))
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return split_heads(super().forward(x), self.heads)


class KeyValue(nn.Module):
    """Keys and values of a context: one projection when tied."""

    def __init__(self, in_dim: int, out_dim: int, heads: int, tied: bool):
        super().__init__()
        self.tied = tied
        if tied:
            self.both = HeadProjection(in_dim, out_dim, heads)
        else:
            self.key = HeadProjection(in_dim, out_dim, heads)
            self.value = HeadProjection(in_dim, out_dim, heads)

    def forward(self, context: Tensor) -> Tuple[Tensor, Optional[Tensor]]:
        """(B, m, in_dim) -> keys and values, (B, H, m, d) each; values are None when tied."""
        return (self.both(context), None) if self.tied else (self.key(context), self.value(context))

    def projections(self) -> Tuple[Projection, Optional[Projection]]:
        """Of keys and of values, as operators take them; of values None when tied."""
        return (self.both.projection(), None) if self.tied else (self.key.projection(), self.value.projection())


class KeyPlainValue(nn.Module):
    """Keys of a context, and the context itself for values: what a pack averages is then not projected."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.key = HeadProjection(dim, dim, heads)

    def projections(self) -> Tuple[Projection, Projection]:
        """Of keys and of values, as operators take them."""
        return self.key.projection(), IDENTITY
