"""Unpack as a module (section 3.1 of the paper)."""

from typing import Optional, Tuple

import torch.nn as nn
from torch import Tensor

from ..ops.unpack import unpack
from .dropout import Dropout
from .head_projection import HeadProjection
from .linear import linear
from .locality import Locality


class Unpack(nn.Module):
    """Y_X = Attention(X, Y_P): every position reads the slots.

    Args:
        dim: D, of X and of Y_X.
        heads: H.
        dropout: probability, of the weights.
        sharpness: what gamma of a Gaussian bias begins with; None for no bias.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, sharpness: Optional[float] = None):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        self.out = linear(dim, dim)
        self.dropout = Dropout(dropout, module_name="LunaUnpack")
        self.bias = None if sharpness is None else Locality(heads, sharpness)

    def forward(
        self,
        x: Tensor,
        key: Tensor,
        value: Optional[Tensor] = None,
        slot_padding: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        need_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Reads the slots, given as keys and values.

        Args:
            x: X, (B, n, D).
            key: of Y_P, (B, H, l, d).
            value: of Y_P, (B, H, l, d); None when the keys are the values (tied).
            slot_padding: (B, l), True where a slot is not used.
            positions: of `ops.slots.slot_positions`, (B, n), for a Gaussian bias.
            need_weights: whether somebody reads the weights.

        Returns:
            Y_X (B, n, D) and the unpack weights (B, H, n, l), or None where a fused kernel ran, which makes none.
        """
        bias = None if self.bias is None else self.bias(positions)
        query, out = self.query.projection(), self.out.projection()
        return unpack(x, key, value, query, out, slot_padding, bias, self.dropout, need_weights)
