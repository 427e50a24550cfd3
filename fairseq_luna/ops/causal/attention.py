"""Luna's causal attention (section 3.3 of the paper), over whole sequences; `step.py` goes step by step.

A_pack^T = w(X P^T),    A_unpack = softmax_l(f(X, X, A_pack^T)),    Y = f(A_unpack, A_pack^T, X)
"""

import functools
import math
from typing import Any, Callable, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch, fused
from ..attention import ordered
from ..dropout import NO_DROPOUT, Dropout
from ..precision import UNPACK_DTYPE, accumulation_dtype
from ..projection import Projection, logits_moved, merge_heads, side_by_side, split_heads
from ..softmax import softmax
from .chunk import chunk_causal_product
from .naive import whole_product

# w of the causal pack, element-wise and positive with w(0) = 1: a softmax would see the future.
CAUSAL_ACTIVATIONS = {
    "softplus": lambda logits: F.softplus(logits, beta=math.log(2)),
    "elu": lambda logits: F.elu(logits) + 1,
}

# Triton 3.6 compiled the untied kernel of 32 slots, in half precision, to one that is wrong on an H200.
MAX_UNTIED_SLOTS = 16


class Projections(NamedTuple):
    """What a causal attention reads of X.

    Attributes:
        query: with its scale.
        key: of the keys.
        value: of the values; None where the keys are the values (tied).
        pack_key: of what packs, multiplied with P.
    """

    query: Projection
    key: Projection
    value: Optional[Projection]
    pack_key: Projection

    def together(self, x: Tensor) -> Tensor:
        """X (B, n, D) through all projections in one product, without the query's scale: q, k, v and c side by side,
        (B, n, 4 H d). Tied, there is no v."""
        return side_by_side(x, [projection for projection in self if projection is not None])


def causal_attention(
    x: Tensor,
    pack_query: Tensor,
    projections: Projections,
    activation: str,
    hidden: Optional[Tensor] = None,
    decay: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    whole: Optional[Tensor] = None,
) -> Tensor:
    """Attends over whole sequences, by the form that `dispatch` chooses.

    Args:
        x: X, (B, n, D).
        pack_query: P, projected and scaled, (B, H, l, d).
        projections: of X.
        activation: w, a key of `CAUSAL_ACTIVATIONS`.
        hidden: (B, l), True where a slot is not used.
        decay: lambda of each head, (H,); None for a uniform mean.
        dropout: applied to A_pack and A_unpack.
        whole: (B, n), True where X is padding: attends to all other positions, later ones too.

    Returns:
        Y, (B, n, H d), for the output's projection.
    """
    heads, slots, dim = pack_query.shape[1:]
    against = None if whole is None else "later positions are seen"
    if projections.value is not None and slots > MAX_UNTIED_SLOTS:
        against = f"keys and values are untied, with {slots} slots"
    work = dispatch.Work(x, heads, slots, dropout.rate(), movable=0, unfusable=against, width=heads * dim)
    return dispatch.run(
        "causal attention", work, FORMS, x, pack_query, projections, activation, hidden, decay, dropout, whole
    )


def direct_causal_attention(
    x: Tensor,
    pack_query: Tensor,
    projections: Projections,
    activation: str,
    hidden: Optional[Tensor],
    decay: Optional[Tensor],
    dropout: Dropout,
    whole: Optional[Tensor],
) -> Tensor:
    """Projections, then `attend` with the product in chunks."""
    query, key, value = projected_by_head(x, projections, pack_query.size(1))
    pack = dropout(CAUSAL_ACTIVATIONS[activation](pack_logits(x, pack_query, projections)))
    product: Any = chunk_causal_product if whole is None else functools.partial(whole_product, padding=whole)
    out, _ = attend(query, key, value, pack, hidden, dropout, UNPACK_DTYPE, decay, product)
    return merge_heads(out)


def fused_causal_attention(
    x: Tensor,
    pack_query: Tensor,
    projections: Projections,
    activation: str,
    hidden: Optional[Tensor],
    decay: Optional[Tensor],
    dropout: Dropout,
    whole: Optional[Tensor],
) -> Optional[Tensor]:
    """One projection, then one kernel; None where it does not compile."""
    projected, scale = projections.together(x), projections.query.scale
    return fused.causal_attention(projected, pack_query, hidden, decay, activation, dropout.rate(), scale)


FORMS = {"direct": direct_causal_attention, "fused": fused_causal_attention}


def pack_logits(x: Tensor, pack_query: Tensor, projections: Projections) -> Tensor:
    """X P^T: (B, n, D), (B, H, l, d) -> (B, H, n, l)."""
    heads, slots, dim = pack_query.shape[1:]
    # one projection and one product, so half of both sides
    movable = 0 if projections.query.prepared else 2
    work = dispatch.Work(x, heads, slots, 0.0, movable, unfusable="it is a part of an attention", width=heads * dim)
    return dispatch.run("pack logits", work, PACK_LOGITS, x, pack_query, projections.pack_key)


def direct_pack_logits(x: Tensor, pack_query: Tensor, pack_key: Projection) -> Tensor:
    """(X W) P^T."""
    return split_heads(pack_key(x), pack_query.size(1)) @ pack_query.transpose(-1, -2)


def moved_pack_logits(x: Tensor, pack_query: Tensor, pack_key: Projection) -> Tensor:
    """X (W P^T)."""
    heads, slots = pack_query.shape[1:3]
    logits = logits_moved(x, pack_key.by_head(heads), pack_query)
    return logits.unflatten(2, (heads, slots)).transpose(1, 2)


PACK_LOGITS = {"direct": direct_pack_logits, "moved": moved_pack_logits}


def projected_by_head(x: Tensor, projections: Projections, heads: int) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Queries, keys and values by head, (B, H, n, d) each."""
    query, key = (split_heads(project(x), heads) for project in projections[:2])
    value = projections.value
    return query, key, None if value is None else split_heads(value(x), heads)


def attend(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    pack: Tensor,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    softmax_dtype: Optional[torch.dtype] = None,
    decay: Optional[Tensor] = None,
    product: Callable[..., Tuple[Tensor, Any]] = chunk_causal_product,
) -> Tuple[Tensor, Tensor]:
    """The two products of the equation.

    Args:
        query: (B, H, n, d), scaled.
        key: (B, H, n, d).
        value: (B, H, n, d); None where the keys are the values (tied).
        pack: A_pack^T = w(X P^T), (B, H, n, l).
        hidden: (B, l), True where a slot is not used.
        dropout: applied to A_unpack.
        softmax_dtype: as in `softmax`.
        decay: as in `naive_causal_product`.
        product: f; with `whole_product` the attention sees the future too.

    Returns:
        Y (B, H, n, d) and A_unpack (B, H, n, l).
    """
    dtype, wide = query.dtype, accumulation_dtype(query.dtype)
    # to full precision here and once, for both products
    query, key, pack = (u.to(wide) for u in (query, key, pack))
    query, key, values = ordered(query, key, None if value is None else value.to(wide))
    pack = pack.contiguous()
    logits, _ = product(query, key, pack, decay=decay)
    unpack = softmax(logits, hidden, softmax_dtype)
    out, _ = product(dropout(unpack), pack, values, decay=decay)
    return out.to(dtype), unpack.to(dtype)
