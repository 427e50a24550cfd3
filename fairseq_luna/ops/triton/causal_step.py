"""One step of Luna's causal attention (arXiv 2106.01540, section 3.3) in one kernel, equations in `ops/causal/step.py`.

One program for each row and head. It reads the old state once, writes the new one, and computes y from what is on chip.
Letters as in `causal.py`.
"""

from typing import Optional, Tuple

import triton
import triton.language as tl
from torch import Tensor

from .blocks import LOG2E, activation, load_slots, visible_slots
from .launch import as_bytes, padded


@triton.jit(do_not_specialize=["beams"])  # where 16 divides the slots, states are read several numbers at once
def step_kernel(
    x, p, hidden, share, order, keys, values, out, next_keys, next_values,
    query_scale, share_h, p_b, p_h, p_l, slots, beams,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, TIED: tl.constexpr, ACTIVATION: tl.constexpr,
    HIDDEN: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """y and the next state of a row and head."""
    group = tl.program_id(0)
    row, head = group // HEADS, group % HEADS
    sentence = (row // beams).to(tl.int64)
    ROW: tl.constexpr = HEADS * D
    channel, slot = tl.arange(0, D), tl.arange(0, L)
    x += row.to(tl.int64) * ((3 if TIED else 4) * ROW) + head * D + channel
    q = tl.load(x).to(tl.float32) * query_scale
    k = tl.load(x + ROW).to(tl.float32)
    c = tl.load(x + (2 if TIED else 3) * ROW).to(tl.float32)
    queries = load_slots(p + sentence * p_b + head * p_h, slots, p_l, L, D).to(tl.float32)
    exists = slot < slots
    a = tl.where(exists, activation(tl.sum(queries * c[None, :], axis=1), ACTIVATION), 0.0)
    now = tl.load(share + head * share_h).to(tl.float32)
    before = row.to(tl.int64)
    if ORDERED:
        before = tl.load(order + row)
    here, there = (row.to(tl.int64) * HEADS + head) * slots * D, (before * HEADS + head) * slots * D

    place = channel[:, None] * slots + slot[None, :]
    state = tl.load(keys + there + place, exists[None, :], other=0.0) * (1 - now)
    state += (k * now)[:, None] * a[None, :]
    tl.store(next_keys + here + place, state, exists[None, :])
    logits = tl.sum(q[:, None] * state, axis=0)
    logits = tl.where(visible_slots(hidden, sentence, slots, L, HIDDEN), logits, float("-inf"))
    u = tl.exp2((logits - tl.max(logits, axis=0)) * LOG2E)
    u = u / tl.sum(u, axis=0)
    if TIED:
        y = tl.sum(state * u[None, :], axis=1)
    else:
        place = slot[:, None] * D + channel[None, :]
        v = tl.load(x + 2 * ROW).to(tl.float32)
        state = tl.load(values + there + place, exists[:, None], other=0.0) * (1 - now)
        state += a[:, None] * (v * now)[None, :]
        tl.store(next_values + here + place, state, exists[:, None])
        y = tl.sum(state * u[:, None], axis=0)
    tl.store(out + row.to(tl.int64) * ROW + head * D + channel, y.to(out.dtype.element_ty))


def causal_step(
    projected: Tensor,
    pack_query: Tensor,
    keys: Tensor,
    values: Optional[Tensor],
    share: Tensor,
    order: Optional[Tensor] = None,
    hidden: Optional[Tensor] = None,
    activation: str = "softplus",
    query_scale: float = 1.0,
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """One position of every beam. Has no gradients; computes in float32.

    Args:
        projected: of X, (B, beams, 3 H d) tied, else (B, beams, 4 H d), as in `causal.causal_attention`.
        pack_query: P, scaled, (B, H, l, d).
        keys: the mean of k_j^T a_j, (rows, H, d, l), in float32.
        values: the mean of a_j^T v_j, (rows, H, l, d); None where the keys are the values (tied).
        share: 1/w_t, of all heads () or of each (H, 1, 1), on the device.
        order: the row whose past each takes on, (B beams,) (default: each keeps its own).
        hidden: (B, l), True where a slot is not used; of each row at least one is.
        activation: w, as in `causal.causal_attention`.
        query_scale: what the products of queries and keys are multiplied by.

    Returns:
        Y, (B, beams, H d), and the next keys and values, of B beams rows, in memory of their own.
    """
    sentences, beams, _ = projected.shape
    heads, slots, dim = pack_query.shape[1:]
    rows, tied = sentences * beams, values is None
    assert projected.size(2) == (3 if tied else 4) * heads * dim and rows == len(keys if order is None else order)
    projected, keys = projected.contiguous(), keys.contiguous()
    values, order = (None if u is None else u.contiguous() for u in (values, order))
    pack_query = pack_query if pack_query.stride(3) == 1 else pack_query.contiguous()
    out = projected.new_empty(sentences, beams, heads * dim)
    next_keys = keys.new_empty(rows, *keys.shape[1:])
    next_values = None if values is None else values.new_empty(rows, *values.shape[1:])
    step_kernel[(rows * heads,)](
        projected, pack_query, as_bytes(hidden, projected), share, projected if order is None else order,
        keys, keys if values is None else values, out, next_keys, next_keys if next_values is None else next_values,
        query_scale, int(share.numel() > 1), *pack_query.stride()[:3], slots, beams,
        HEADS=heads, L=padded(slots), D=dim, TIED=tied, ACTIVATION=activation, HIDDEN=hidden is not None,
        ORDERED=order is not None, num_warps=2,
    )  # fmt: skip
    return out, next_keys, next_values
