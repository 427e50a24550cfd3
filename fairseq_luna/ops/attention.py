"""Softmax attention (section 2 of the paper): pack is `attention(P, C)`, unpack is `attention(X, Y_P)`."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from .dropout import NO_DROPOUT, Dropout
from .softmax import softmax


def attention(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor] = None,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    softmax_dtype: Optional[torch.dtype] = None,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """Attention(X, C) = softmax(Q K^T) V, the query scaled already.

    Linear in the length of the sequence where the other side has l rows.

    Args:
        query: (B, H, n, d).
        key: (B, H, m, d).
        value: (B, H, m, d); None where the keys are the values (tied).
        hidden: (B, m), True where a row of the context is padding.
        dropout: applied to the weights.
        softmax_dtype: as in `softmax`.
        bias: added to the logits, (B, H, n, m), or (H, n, m) of all sentences.

    Returns:
        (B, H, n, d) and the weights (B, H, n, m) before dropout.
    """
    query, key, value = ordered(query, key, value)
    logits = query @ key.transpose(-1, -2)
    weights = softmax(logits if bias is None else logits + bias, hidden, softmax_dtype)
    return dropout(weights) @ value, weights


def ordered(query: Tensor, key: Tensor, value: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
    """Each in one block of memory, copied once: products of batches would copy it every time, and keep the copies.

    Where the value is None, the keys come back as values.
    """
    key = key.contiguous()
    return query.contiguous(), key, key if value is None else value.contiguous()
