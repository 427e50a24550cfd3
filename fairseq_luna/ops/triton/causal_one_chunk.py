"""The causal attention's kernel backward of sequences of one chunk, equations in `causal_backward.py`."""

import triton
import triton.language as tl

from .blocks import (
    VARYING,
    activation,
    activation_slope,
    causal,
    decay_rates,
    dot,
    load_rows,
    load_slots,
    powers_inside,
    random_pairs,
    seed_of_turn,
    softmax,
    store_rows,
    total_weight,
    visible_slots,
)


@triton.jit(do_not_specialize=VARYING)
def one_chunk_backward_kernel(
    q, k, v, c, p, hidden, decay, dy, dq, dk, dv, dc, dp,
    query_scale, p_h, p_l, n, slots, seed, turn, threshold, rescale,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, DECAYING: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All gradients of a sentence and head of at most C positions."""
    group = tl.program_id(0)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    WIDE: tl.constexpr = (3 if TIED else 4) * ROW
    base = batch * n * ROW + head * D
    wide = batch * n * WIDE + head * D
    rate, rest = decay_rates(decay, head, DECAYING)
    t = tl.arange(0, C)
    steps = t[:, None] - t[None, :]
    ahead, behind = powers_inside(rate, C)
    rows_q = load_rows(q + wide, t, n, WIDE, D)
    rows_k = load_rows(k + wide, t, n, WIDE, D)
    if TIED:
        rows_v = rows_k
    else:
        rows_v = load_rows(v + wide, t, n, WIDE, D)
    rows_c = load_rows(c + wide, t, n, WIDE, D)
    rows_dy = load_rows(dy + base, t, n, ROW, D)
    of_slots = batch * slots * ROW + head * p_h
    queries = load_slots(p + of_slots, slots, p_l, L, D)
    dtype = queries.dtype
    visible = visible_slots(hidden, batch, slots, L, HIDDEN)
    exists = (t < n)[:, None] & (tl.arange(0, L) < slots)[None, :]
    share = (1 / total_weight((t + 1).to(tl.float32), rate, rest, DECAYING))[:, None]

    z = dot(rows_c, tl.trans(queries), PRECISION)
    a = tl.where(exists, activation(z, ACTIVATION), 0.0)
    slope = tl.where(exists, activation_slope(z, ACTIVATION), 0.0)
    if DROPOUT:
        random, other = random_pairs(seed, group, t, L)
        a = tl.where(random >= threshold, a * rescale, 0.0)
        slope = tl.where(random >= threshold, slope * rescale, 0.0)
    a = a.to(dtype)
    qk = causal(dot(rows_q, tl.trans(rows_k), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
    u = softmax(dot(qk, a, PRECISION) * (share * query_scale), visible)
    yv = causal(dot(rows_dy, tl.trans(rows_v), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
    du = dot(yv, a, PRECISION) * share
    dropped = u
    if DROPOUT:
        dropped = tl.where(other >= threshold, u * rescale, 0.0)
        du = tl.where(other >= threshold, du * rescale, 0.0)
    # the products take them with 1/w_t
    dropped = (dropped * share).to(dtype)
    e = (u * (du - tl.sum(u * du, axis=1)[:, None]) * (share * query_scale)).to(dtype)

    ea = causal(dot(e, tl.trans(a), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
    store_rows(dq + wide, t, n, WIDE, dot(ea, rows_k, PRECISION), D)
    d_keys = dot(tl.trans(ea), rows_q, PRECISION)
    ua = causal(dot(dropped, tl.trans(a), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
    if TIED:
        d_keys = dot(tl.trans(ua), rows_dy, PRECISION, d_keys)
    else:
        store_rows(dv + wide, t, n, WIDE, dot(tl.trans(ua), rows_dy, PRECISION), D)
    store_rows(dk + wide, t, n, WIDE, d_keys, D)
    da = dot(tl.trans(qk), e, PRECISION)
    da = dot(tl.trans(yv), dropped, PRECISION, da)
    dz = (da * slope).to(dtype)
    store_rows(dc + wide, t, n, WIDE, dot(dz, queries, PRECISION), D)
    slot = tl.arange(0, L)
    d_queries = dot(tl.trans(dz), rows_c, PRECISION)
    store_rows(dp + of_slots, slot, slots, p_l, d_queries, D)
