"""Luna's causal attention (section 3.3 of the paper), over whole sequences and step by step.

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
from ..precision import UNPACK_DTYPE, accumulation_dtype, without_autocast
from ..projection import Projection, logits_moved, merge_heads, side_by_side, split_heads
from ..softmax import softmax
from .chunk import chunk_causal_product
from .naive import whole_product
from .state import Share, empty_mean, take

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
        """All that is read of X, (B, n, D), as one product without the query's scale: q, k, v and c side by side, or
        tied q, k and c."""
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
    query, key, value = _projected(x, projections, pack_query.size(1))
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
    """One kernel behind one projection; None where it does not compile."""
    tied, scale = projections.value is None, projections.query.scale
    projected = projections.together(x)
    return fused.causal_attention(projected, pack_query, tied, hidden, decay, activation, dropout.rate(), scale)


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


def _projected(x: Tensor, projections: Projections, heads: int) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
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


class CausalState(NamedTuple):
    """What a causal attention keeps of each hypothesis: d x l numbers a head, twice that untied.

    Attributes:
        keys: mean of k_j^T a_j of the past, (B, H, d, l), in float32 at least.
        values: mean of a_j^T v_j, (B, H, l, d); None where the keys are the values (tied), for it
            is then the transpose of `keys`.
    """

    keys: Tensor
    values: Optional[Tensor]

    def reorder(self, new_order: Tensor) -> "CausalState":
        """Follows the beams: row i becomes what row `new_order[i]` was. new_order: (B',)."""
        keys, values = (None if mean is None else mean.index_select(0, new_order) for mean in self)
        assert keys is not None
        return CausalState(keys, values)


def causal_attention_step(
    x: Tensor,
    pack_query: Tensor,
    projections: Projections,
    activation: str,
    state: Optional[CausalState],
    share: Share,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    in_place: bool = False,
) -> Tuple[Tensor, CausalState]:
    """One step of `causal_attention` on its state; cost and memory free of the position.

    Args:
        x: the one new position of every beam, (B, beams, D).
        pack_query: P, projected and scaled, (B, H, l, d).
        projections: of X.
        activation: w, a key of `CAUSAL_ACTIVATIONS`.
        state: of all B * beams rows after the last step, None before the first.
        share: of `state.share_of_step`.
        hidden: (B, l), True where a slot is not used.
        dropout: applied to A_pack and A_unpack.
        in_place: whether the new state takes the memory of the old one; gradients would need that.

    Returns:
        Y (B, beams, H d) and the new state.
    """
    # (B, H, beams, d) -> (B, beams, H, d): each beam has a past of its own
    query, key, value = (
        None if u is None else u.transpose(1, 2) for u in _projected(x, projections, pack_query.size(1))
    )
    pack = dropout(CAUSAL_ACTIVATIONS[activation](pack_logits(x, pack_query, projections))).transpose(1, 2)
    assert query is not None and key is not None
    out, _, state = attend_step(query, key, value, pack, state, share, hidden, dropout, UNPACK_DTYPE, in_place)
    return out.flatten(2), state


@without_autocast
def attend_step(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    pack: Tensor,
    state: Optional[CausalState],
    share: Share,
    hidden: Optional[Tensor] = None,
    dropout: Dropout = NO_DROPOUT,
    softmax_dtype: Optional[torch.dtype] = None,
    in_place: bool = False,
) -> Tuple[Tensor, Tensor, CausalState]:
    """One step of `attend`.

    Args:
        query: (B, beams, H, d), scaled: one position of each beam.
        key: (B, beams, H, d).
        value: (B, beams, H, d); None where the keys are the values (tied).
        pack: (B, beams, H, l).
        state: as in `causal_attention_step`.
        share: as in `causal_attention_step`.
        hidden: (B, l), True where a slot is not used.
        dropout: applied to A_unpack.
        softmax_dtype: as in `softmax`.
        in_place: as in `causal_attention_step`.

    Returns:
        Y (B, beams, H, d), A_unpack (B, beams, H, l) and the new state.
    """
    dtype, shape = query.dtype, pack.shape
    # (B, beams, H, d) -> (B * beams, H, 1, d)
    query, key, pack = (u.flatten(0, 1).unsqueeze(2) for u in (query, key, pack))
    value = None if value is None else value.flatten(0, 1).unsqueeze(2)
    before = state or CausalState(empty_mean(key, pack), None if value is None else empty_mean(pack, value))
    keys = take(before.keys, key, pack, share, in_place)
    unpack = softmax((query.to(keys.dtype) @ keys).view(shape), hidden, softmax_dtype)
    values, read = None, keys.transpose(-1, -2)
    if value is not None and before.values is not None:
        values = read = take(before.values, pack, value, share, in_place)
    out = dropout(unpack).flatten(0, 1).unsqueeze(2) @ read
    return out.view(*shape[:3], -1).to(dtype), unpack.to(dtype), CausalState(keys, values)
