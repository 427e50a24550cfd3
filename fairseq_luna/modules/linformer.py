"""Linformer's self-attention as a module (Wang et al. 2020)."""

from typing import Optional

import torch
import torch.nn as nn
from torch import Tensor

from ..ops.linformer import left_aligned, linformer_attention
from ..ops.projection import merge_heads
from .dropout import Dropout
from .head_projection import HeadProjection
from .linear import linear


class LinformerAttention(nn.Module):
    """Attention of a sequence to k learned sums of itself: linear, for sequences of up to a fixed length.

    Args:
        dim: D.
        heads: H.
        longest: N, the longest sequence.
        length: k.
        per_head: whether each head has sums of its own.
        dropout: probability, of the weights.
    """

    def __init__(self, dim: int, heads: int, longest: int, length: int, per_head: bool = False, dropout: float = 0.0):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        self.key = HeadProjection(dim, dim, heads)
        self.value = HeadProjection(dim, dim, heads)
        shape = heads if per_head else 1, length, longest
        self.key_rows, self.value_rows = (nn.Parameter(torch.empty(shape)) for _ in range(2))
        for rows in self.key_rows, self.value_rows:
            # a sum of the N positions is as large as each of them
            nn.init.normal_(rows, std=longest**-0.5)
        self.out = linear(dim, dim)
        self.dropout = Dropout(dropout, module_name="LinformerAttention")

    def forward(self, x: Tensor, padding: Optional[Tensor] = None) -> Tensor:
        """X (B, n, D), its mask (B, n), True where padded -> (B, n, D). No sequence has more than N positions."""
        longest, context = self.key_rows.size(2), x
        if padding is not None:
            context = left_aligned(x, padding)
            lengths = (~padding).sum(dim=1, keepdim=True)
            padding = (torch.arange(x.size(1), device=x.device) >= lengths)[:, :longest]
        context = context[:, :longest]  # behind are only columns that no sequence of the batch reaches
        query, key, value = self.query(x), self.key(context), self.value(context)
        y = linformer_attention(query, key, value, self.key_rows, self.value_rows, padding, self.dropout)
        return self.out(merge_heads(y))
