"""Unpack (section 3.1 of the paper): Y_X = Attention(X, Y_P), every position reads the slots."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from . import dispatch, fused
from .attention import attention
from .dropout import NO_DROPOUT, Dropout
from .precision import UNPACK_DTYPE
from .projection import HeadWeights, Projection, logits_moved, merge_heads, split_heads
from .slots import GaussianBias
from .softmax import softmax

Result = Tuple[Tensor, Optional[Tensor]]


def unpack(
    x: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    query: Projection,
    out: Projection,
    hidden: Optional[Tensor] = None,
    bias: Optional[GaussianBias] = None,
    dropout: Dropout = NO_DROPOUT,
    need_weights: bool = False,
) -> Result:
    """Reads the slots, by the form that `dispatch` chooses.

    Args:
        x: X, (B, n, D).
        key: of Y_P, (B, H, l, d).
        value: of Y_P, (B, H, l, d); None where the keys are the values (tied).
        query: W_Q, with its scale.
        out: W_O.
        hidden: (B, l), True where a slot is not used.
        bias: of the logits, transposed.
        dropout: applied to the weights.
        need_weights: whether somebody reads the weights.

    Returns:
        Y_X (B, n, D) and the weights (B, H, n, l) before dropout, or None of a form that makes none.
    """
    heads, slots = key.shape[1:3]
    work = dispatch.Work(
        x,
        heads,
        slots,
        dropout.rate(),
        movable=0 if query.prepared else 2,
        unfusable="its weights are read" if need_weights else None,
        width=heads * key.size(3),
    )
    return dispatch.run("unpack", work, FORMS, x, key, value, query, out, hidden, bias, dropout)


def direct_unpack(
    x: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    query: Projection,
    out: Projection,
    hidden: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: Dropout,
) -> Result:
    """Projections first, then `attention`: the equation."""
    heads, slots = key.shape[1:3]
    added = None if bias is None else bias.logits(slots).transpose(-1, -2)
    y_x, weights = attention(split_heads(query(x), heads), key, value, hidden, dropout, UNPACK_DTYPE, added)
    return out(merge_heads(y_x)), weights


def moved_unpack(
    x: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    query: Projection,
    out: Projection,
    hidden: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: Dropout,
) -> Result:
    """Both projections moved to the slots, of which there are fewer than positions.

        softmax(X W_Q K^T) V W_O = softmax(X (W_Q K^T)) (V W_O)

    Costs O(l D^2) a sentence and 2 H l D a position, in place of 2 D^2 and more.
    """
    heads, slots = key.shape[1:3]
    assert out.weight is not None and out.bias is not None
    return unpack_unprojected(
        x,
        query.by_head(heads),
        key,
        key if value is None else value,
        (out.weight.t().unflatten(0, (heads, -1)), out.bias),
        hidden,
        dropout,
        UNPACK_DTYPE,
        None if bias is None else bias.logits(slots).transpose(-1, -2),
    )


def unpack_unprojected(
    x: Tensor,
    query: HeadWeights,
    key: Tensor,
    value: Tensor,
    out: HeadWeights,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    softmax_dtype: Optional[torch.dtype] = None,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """The products of `moved_unpack`.

    Args:
        x: X, (B, n, D).
        query: W_Q (H, d, D) and b_Q (H, d), scaled.
        key: of Y_P, (B, H, l, d).
        value: of Y_P, (B, H, l, d).
        out: W_O (H, d, D'), and the bias (D') of the result.
        hidden: (B, l), True where a slot is not used.
        dropout: applied to the weights.
        softmax_dtype: as in `softmax`.
        bias: added to the logits, (B, H, n, l).

    Returns:
        Y_X (B, n, D') and the weights (B, H, n, l) before dropout.
    """
    heads, slots = key.shape[1:3]
    # (B, n, H, l): a softmax over the slots of each head
    logits = logits_moved(x, query, key).unflatten(2, (heads, slots))
    weights = softmax(logits if bias is None else logits + bias.transpose(1, 2), hidden, softmax_dtype)
    out_weight, out_bias = out
    read = torch.einsum("bhld,hdk->bhlk", value, out_weight).flatten(1, 2)
    y = torch.baddbmm(out_bias, dropout(weights).flatten(2, 3), read)
    return y, weights.transpose(1, 2)


def fused_unpack(
    x: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    query: Projection,
    out: Projection,
    hidden: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: Dropout,
) -> Optional[Result]:
    """One kernel between the projections, which makes no weights; None where it does not compile."""
    queries, scale = query.apart(x)
    y_x = fused.unpack(queries, key, value, hidden, bias, dropout.rate(), scale)
    return None if y_x is None else (out(y_x), None)


FORMS = {"direct": direct_unpack, "moved": moved_unpack, "fused": fused_unpack}
