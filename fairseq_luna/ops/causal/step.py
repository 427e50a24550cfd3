"""One step of Luna's causal attention (section 3.3 of the paper), on a state of constant size.

    S_t = (1 - 1/w_t) S_{t-1} + 1/w_t k_t^T a_t,    u_t = softmax_l(q_t S_t),    y_t = u_t T_t

with a = w(c P^T). T is the mean of a_t^T v_t, made in the same way. Tied, T = S^T.
"""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .. import dispatch, fused
from ..dropout import NO_DROPOUT, Dropout
from ..precision import UNPACK_DTYPE, accumulation_dtype, without_autocast
from ..softmax import softmax
from .attention import CAUSAL_ACTIVATIONS, Projections, pack_logits, projected_by_head
from .state import Share, empty_mean, take


class CausalState(NamedTuple):
    """What a causal attention keeps of each hypothesis: d x l numbers a head, twice that untied.

    Attributes:
        keys: mean of k_j^T a_j of the past, (B, H, d, l), in float32 at least.
        values: mean of a_j^T v_j, (B, H, l, d); None where the keys are the values (tied), for it
            is then the transpose of `keys`.
        order: the row whose past each row takes on, (B',); None where each keeps its own.
    """

    keys: Tensor
    values: Optional[Tensor]
    order: Optional[Tensor] = None

    @staticmethod
    def empty(rows: int, pack_query: Tensor, tied: bool) -> "CausalState":
        """Before the first position, for packs with P as it is projected, (B, H, l, d)."""
        _, heads, slots, dim = pack_query.shape
        keys = pack_query.new_zeros(rows, heads, dim, slots, dtype=accumulation_dtype(pack_query.dtype))
        return CausalState(keys, None if tied else keys.new_zeros(rows, heads, slots, dim))

    def reorder(self, new_order: Tensor) -> "CausalState":
        """Follows the beams: at the next step row i takes on the past of row `new_order[i]`.

        Args:
            new_order: (B',). It must not change before that step.
        """
        return self._replace(order=new_order if self.order is None else self.order.index_select(0, new_order))

    def in_order(self) -> "CausalState":
        """With the past of each row at its own place."""
        if self.order is None:
            return self
        values = None if self.values is None else self.values.index_select(0, self.order)
        return CausalState(self.keys.index_select(0, self.order), values)


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
    """One step of `causal_attention` on its state, by the form that `dispatch` chooses; cost and memory free of the
    position.

    Args:
        x: the one new position of every beam, (B, beams, D).
        pack_query: P, projected and scaled, (B, H, l, d).
        projections: of X.
        activation: w, a key of `CAUSAL_ACTIVATIONS`.
        state: of all B * beams rows after the last step, None before the first.
        share: of `state.share_of_step`.
        hidden: (B, l), True where a slot is not used.
        dropout: applied to A_pack and A_unpack.
        in_place: whether the new state may take the memory of the old one; gradients would need that.

    Returns:
        Y (B, beams, H d) and the new state.
    """
    heads, slots, dim = pack_query.shape[1:]
    against = None
    if torch.is_grad_enabled():
        against = "the kernel has no gradients"
    elif dropout.rate() > 0:
        against = "the kernel drops nothing"
    work = dispatch.Work(x, heads, slots, unfusable=against, width=heads * dim)
    return dispatch.run(
        "causal step", work, FORMS, x, pack_query, projections, activation, state, share, hidden, dropout, in_place
    )


def direct_step(
    x: Tensor,
    pack_query: Tensor,
    projections: Projections,
    activation: str,
    state: Optional[CausalState],
    share: Share,
    hidden: Optional[Tensor],
    dropout: Dropout,
    in_place: bool,
) -> Tuple[Tensor, CausalState]:
    """Projections, then `attend_step`."""
    # (B, H, beams, d) -> (B, beams, H, d): each beam has a past of its own
    query, key, value = (
        None if u is None else u.transpose(1, 2) for u in projected_by_head(x, projections, pack_query.size(1))
    )
    pack = dropout(CAUSAL_ACTIVATIONS[activation](pack_logits(x, pack_query, projections))).transpose(1, 2)
    assert query is not None and key is not None
    out, _, state = attend_step(query, key, value, pack, state, share, hidden, dropout, UNPACK_DTYPE, in_place)
    return out.flatten(2), state


def fused_step(
    x: Tensor,
    pack_query: Tensor,
    projections: Projections,
    activation: str,
    state: Optional[CausalState],
    share: Share,
    hidden: Optional[Tensor],
    dropout: Dropout,
    in_place: bool,
) -> Optional[Tuple[Tensor, CausalState]]:
    """One projection, then one kernel, which writes a new state; None where it does not compile."""
    if state is None:
        state = CausalState.empty(x.size(0) * x.size(1), pack_query, tied=projections.value is None)
    share = share if isinstance(share, Tensor) else torch.full((), share, device=x.device)
    projected, scale = projections.together(x), projections.query.scale
    found = fused.causal_step(projected, pack_query, *state[:2], share, state.order, hidden, activation, scale)
    return None if found is None else (found[0], CausalState(*found[1:]))


FORMS = {"direct": direct_step, "fused": fused_step}


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
    if state is None:
        state = CausalState(empty_mean(key, pack), None if value is None else empty_mean(pack, value))
    before = state.in_order()
    keys = take(before.keys, key, pack, share, in_place)
    unpack = softmax((query.to(keys.dtype) @ keys).view(shape), hidden, softmax_dtype)
    values, read = None, keys.transpose(-1, -2)
    if value is not None and before.values is not None:
        values = read = take(before.values, pack, value, share, in_place)
    out = dropout(unpack).flatten(0, 1).unsqueeze(2) @ read
    return out.view(*shape[:3], -1).to(dtype), unpack.to(dtype), CausalState(keys, values)
