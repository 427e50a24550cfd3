"""Linformer's attention (Wang et al. 2020): keys and values projected along the length, to k rows whatever it is.

Y = softmax(Q (E K)^T) F V          E, F (k, N), of which a sequence of n positions uses the first n columns
"""

from typing import Optional

import torch
from torch import Tensor

from .attention import attention
from .dropout import NO_DROPOUT, Dropout


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_rows: Tensor,
    value_rows: Tensor,
    padding: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
) -> Tensor:
    """Attends to k rows in place of n.

    Args:
        query: Q, scaled, (B, H, n, d).
        key: K, (B, H, m, d), each sequence from its first column on: see `left_aligned`.
        value: V, (B, H, m, d).
        key_rows: E of each head, (H, k, N), or (1, k, N) for all; N at least m.
        value_rows: F, likewise.
        padding: (B, m), True where there is no key.
        dropout: applied to the weights.

    Returns:
        (B, H, n, d).
    """
    if padding is not None:
        key, value = (x.masked_fill(padding[:, None, :, None], 0) for x in (key, value))
    key, value = shortened(key, key_rows), shortened(value, value_rows)
    return attention(query, key, value, dropout=dropout)[0]


def shortened(x: Tensor, rows: Tensor) -> Tensor:
    """(B, H, m, d) by (H or 1, k, N) -> (B, H, k, d)."""
    rows = rows[:, :, : x.size(2)]
    if len(rows) == 1:
        return torch.einsum("km,bhmd->bhkd", rows[0], x)
    return torch.einsum("hkm,bhmd->bhkd", rows, x)


def left_aligned(x: Tensor, padding: Tensor) -> Tensor:
    """Every sequence moved to begin at the first column, since a column of E belongs to a position.

    Args:
        x: (B, n, D).
        padding: (B, n), True where x is padding, on either side.

    Returns:
        (B, n, D), in which padding is on the right; what stands there has no meaning.
    """
    n = x.size(1)
    first = (~padding).to(torch.uint8).argmax(dim=1, keepdim=True)
    place = (torch.arange(n, device=x.device) + first).clamp(max=n - 1)
    return x.gather(1, place.unsqueeze(-1).expand_as(x))
