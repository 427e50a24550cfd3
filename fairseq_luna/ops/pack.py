"""Pack (section 3.1 of the paper): Y_P = Attention(P, C), a context of any length in l slots."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from . import dispatch, fused
from .attention import attention
from .dropout import NO_DROPOUT, Dropout
from .projection import IDENTITY, HeadWeights, Projection, merge_heads, moved_to, split_heads
from .slots import GaussianBias
from .softmax import softmax

Result = Tuple[Tensor, Optional[Tensor]]


def pack(
    packed: Tensor,
    context: Tensor,
    query: Projection,
    key: Projection,
    value: Optional[Projection],
    heads: int,
    padding: Optional[Tensor] = None,
    bias: Optional[GaussianBias] = None,
    dropout: Dropout = NO_DROPOUT,
    need_weights: bool = False,
) -> Result:
    """Packs a context with the queries of P, by the form that `dispatch` chooses.

    Args:
        packed: P, (B, l, D).
        context: C, (B, m, D).
        query: W_Q, with its scale.
        key: W_K.
        value: W_V; `IDENTITY` where slots average the context itself, D / H channels a head; None where the keys are
            the values (tied).
        heads: H.
        padding: (B, m), True where the context is padding.
        bias: of the logits.
        dropout: applied to the weights.
        need_weights: whether somebody reads the weights.

    Returns:
        Y_P (B, l, D) and the weights (B, H, l, m) before dropout, or None of a form that makes none.
    """
    work = dispatch.Work(
        context,
        heads,
        packed.size(1),
        dropout.rate(),
        # unprojected values: one projection and one product can move, half of two and both (the other product stays)
        movable=0 if query.prepared else 1 if value is None else 2,
        unfusable="its weights are read" if need_weights else None,
    )
    return dispatch.run("pack", work, FORMS, packed, context, query, key, value, heads, padding, bias, dropout)


def direct_pack(
    packed: Tensor,
    context: Tensor,
    query: Projection,
    key: Projection,
    value: Optional[Projection],
    heads: int,
    padding: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: Dropout,
) -> Result:
    """Projections first, then `attention`: the equation."""
    out, weights = attention(
        split_heads(query(packed), heads),
        split_heads(key(context), heads),
        None if value is None else split_heads(value(context), heads),
        padding,
        dropout,
        bias=None if bias is None else bias.logits(packed.size(1)),
    )
    return merge_heads(out), weights


def moved_pack(
    packed: Tensor,
    context: Tensor,
    query: Projection,
    key: Projection,
    value: Optional[Projection],
    heads: int,
    padding: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: Dropout,
) -> Result:
    """The products in another order: the context is never projected.

        softmax(Q (C W_K)^T) C W_V = softmax((Q W_K^T) C^T) (C) W_V

    Costs O(l D^2) a sentence and 2 H l D a position, in place of D^2 and more: for long contexts
    and few slots. b_K is added, though it is the same for all of a row and its softmax does not see
    it: so every parameter has a gradient.
    """
    out, weights = pack_unprojected(
        split_heads(query(packed), heads),
        context,
        key.by_head(heads),
        None if value is IDENTITY else (key if value is None else value).by_head(heads),
        padding,
        dropout,
        None if bias is None else bias.logits(packed.size(1)),
    )
    return merge_heads(out), weights


def pack_unprojected(
    query: Tensor,
    context: Tensor,
    key: HeadWeights,
    value: Optional[HeadWeights],
    hidden: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    bias: Optional[Tensor] = None,
) -> Tuple[Tensor, Tensor]:
    """The products of `moved_pack`.

    Args:
        query: P W_Q, scaled, (B, H, l, d).
        context: C, (B, m, D).
        key: W_K (H, d, D) and b_K (H, d).
        value: W_V (H, d, D) and b_V (H, d); None where values are the context itself, D / H channels a head.
        hidden: (B, m), True where a row of the context is padding.
        dropout: applied to the weights.
        bias: added to the logits, (B, H, l, m).

    Returns:
        (B, H, l, d) and the weights (B, H, l, m) before dropout.
    """
    heads, slots = query.shape[1:3]
    logits = torch.baddbmm(*moved_to(query, key), context.transpose(1, 2)).unflatten(1, (heads, slots))
    weights = softmax(logits if bias is None else logits + bias, hidden)
    dropped = dropout(weights)
    if value is None:
        return dropped @ split_heads(context, heads), weights
    mixed = (dropped.flatten(1, 2) @ context).unflatten(1, (heads, slots))
    value_weight, value_bias = value
    out = torch.einsum("bhlk,hdk->bhld", mixed, value_weight)
    # rows of weights add up to 1, after a dropout to what it left
    rest = 1 if dropped is weights else dropped.sum(dim=-1, keepdim=True)
    return out + rest * value_bias.unsqueeze(1), weights


def fused_pack(
    packed: Tensor,
    context: Tensor,
    query: Projection,
    key: Projection,
    value: Optional[Projection],
    heads: int,
    padding: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: Dropout,
) -> Optional[Result]:
    """One kernel, which makes no weights; None where it does not compile."""
    queries, scale = query.apart(packed)
    values = None if value is None else value(context)
    y_p = fused.pack(queries, key(context), values, heads, padding, bias, dropout.rate(), scale)
    return None if y_p is None else (y_p, None)


FORMS = {"direct": direct_pack, "moved": moved_pack, "fused": fused_pack}
