"""Luna's attention of a sequence to itself (section 3.1 of the paper)."""

from typing import Optional, Tuple

import torch.nn as nn
from torch import Tensor

from .head_projection import KeyValue
from .pack import Pack
from .unpack import Unpack


class LunaAttention(nn.Module):
    """Pack, then unpack: softmax attention of a sequence to itself in linear time.

    Args:
        dim: D, of X and of P.
        heads: H, that unpack.
        pack_heads: H, that pack.
        tied: whether one projection makes keys and values.
        dropout: probability, of the weights.
        plain: as in `Pack`.
        pack_sharpness: as in `Pack`.
        unpack_sharpness: as in `Unpack`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pack_heads: int,
        tied: bool = True,
        dropout: float = 0.0,
        plain: bool = False,
        pack_sharpness: Optional[float] = None,
        unpack_sharpness: Optional[float] = None,
    ):
        super().__init__()
        self.pack = Pack(dim, pack_heads, tied, dropout, plain, pack_sharpness)
        self.key_value = KeyValue(dim, dim, heads, tied)
        self.unpack = Unpack(dim, heads, dropout, unpack_sharpness)

    def forward(
        self,
        x: Tensor,
        packed: Tensor,
        padding: Optional[Tensor] = None,
        slot_padding: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor]:
        """X (B, n, D), P (B, l, D), masks (B, n) and (B, l), positions as in `Pack` -> Y_X (B, n, D), Y_P (B, l, D)."""
        y_p, _ = self.pack(packed, x, padding, positions)
        y_x, _ = self.unpack(x, *self.key_value(y_p), slot_padding, positions)
        return y_x, y_p
