"""Pack as a module (section 3.1 of the paper)."""

from typing import Optional, Tuple, Union

import torch.nn as nn
from torch import Tensor

from ..ops.pack import pack
from .dropout import Dropout
from .head_projection import HeadProjection, KeyPlainValue, KeyValue
from .locality import Locality


class Pack(nn.Module):
    """Y_P = Attention(P, C): packs a context of any length into l slots.

    Args:
        dim: D, of P, of the context and of Y_P.
        heads: H.
        tied: whether one projection makes keys and values.
        dropout: probability, of the weights.
        plain: whether Y_P averages C as it is, to be projected by who reads it alone, as in Linformer (Wang et al.
            2020): one random matrix upon another is slow to learn.
        sharpness: what gamma of a Gaussian bias begins with; None for no bias.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tied: bool = True,
        dropout: float = 0.0,
        plain: bool = False,
        sharpness: Optional[float] = None,
    ):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        self.key_value: Union[KeyPlainValue, KeyValue]
        self.key_value = KeyPlainValue(dim, heads) if plain else KeyValue(dim, dim, heads, tied)
        self.dropout = Dropout(dropout, module_name="LunaPack")
        self.bias = None if sharpness is None else Locality(heads, sharpness)

    def forward(
        self,
        packed: Tensor,
        context: Tensor,
        padding: Optional[Tensor] = None,
        positions: Optional[Tensor] = None,
        need_weights: bool = False,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Packs `context` with the queries of `packed`.

        Args:
            packed: P, (B, l, D).
            context: C, (B, m, D).
            padding: (B, m), True where the context is padding.
            positions: of `ops.slots.slot_positions`, (B, m), for a Gaussian bias.
            need_weights: whether somebody reads the weights.

        Returns:
            Y_P (B, l, D) and the pack weights (B, H, l, m), or None where a fused kernel ran, which makes none.
        """
        bias = None if self.bias is None else self.bias(positions)
        query, (key, value) = self.query.projection(), self.key_value.projections()
        return pack(packed, context, query, key, value, self.query.heads, padding, bias, self.dropout, need_weights)
