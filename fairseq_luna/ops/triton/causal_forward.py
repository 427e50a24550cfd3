"""The causal attention's kernels forward: one program walks over a segment of a sentence and head, chunk by chunk.

    logits_t = scale/w_t q_t S_t,   u_t = softmax(logits_t),   y_t = 1/w_t u_t T_t

with the state S_t = sum_{j <= t} lambda^(t-j) k_j^T a_j, T_t = sum_{j <= t} lambda^(t-j) a_j^T v_j, on chip
(tied: T = S^T), and a = w(c P^T). `causal.py` starts them and says what the letters mean.
"""

import triton
import triton.language as tl

from .blocks import (
    VARYING,
    activation,
    causal,
    decay_rates,
    dot,
    load_rows,
    load_slots,
    power,
    powers_inside,
    random_pairs,
    read_past,
    seed_of_turn,
    softmax,
    store_rows,
    store_sum,
    sum_others,
    total_weight,
    visible_slots,
)


@triton.jit(do_not_specialize=VARYING)
def sums_kernel(
    k, v, c, p, decay, key_sums, value_sums,
    p_h, p_l, n, slots, seed, turn, threshold, rescale, segments, per_segment,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, DECAYING: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of k_j^T a_j and of a_j^T v_j over a segment, as they stand at its end."""
    group, segment = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    WIDE: tl.constexpr = (3 if TIED else 4) * ROW
    wide = batch * n * WIDE + head * D
    rate, rest = decay_rates(decay, head, DECAYING)
    of_slots = batch * slots * ROW + head * p_h
    queries = load_slots(p + of_slots, slots, p_l, L, D)
    dtype = queries.dtype
    place = tl.arange(0, C)
    leave = power(rate, (C - 1 - place).to(tl.float32))
    keys = tl.zeros((D, L), tl.float32)
    values = tl.zeros((L, D), tl.float32)
    exists = tl.arange(0, L) < slots
    for i in range(0, per_segment):
        t = (segment * per_segment + i) * C + place
        a = activation(dot(load_rows(c + wide, t, n, WIDE, D), tl.trans(queries), PRECISION), ACTIVATION)
        a = tl.where((t < n)[:, None] & exists[None, :], a, 0.0)
        if DROPOUT:
            random, _ = random_pairs(seed, group, t, L)
            a = tl.where(random >= threshold, a * rescale, 0.0)
        if DECAYING:
            across = power(rate, C * 1.0)
            keys *= across
            values *= across
            a = a * leave[:, None]
        a = a.to(dtype)
        keys = dot(tl.trans(load_rows(k + wide, t, n, WIDE, D)), a, PRECISION, keys)
        if not TIED:
            values = dot(tl.trans(a), load_rows(v + wide, t, n, WIDE, D), PRECISION, values)
    store_sum(key_sums, group, segments, segment, keys, D, L)
    if not TIED:
        store_sum(value_sums, group, segments, segment, values, L, D)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q, k, v, c, p, hidden, decay, key_sums, value_sums, out,
    query_scale, p_h, p_l, n, slots, seed, turn, threshold, rescale, segments, per_segment,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, DECAYING: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, HIDDEN: tl.constexpr, SEGMENTED: tl.constexpr,
    WALK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of a segment of a sentence and head, chunk by chunk. Without WALK there is one chunk, and no state."""
    group, segment = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    WIDE: tl.constexpr = (3 if TIED else 4) * ROW
    base = batch * n * ROW + head * D
    wide = batch * n * WIDE + head * D
    rate, rest = decay_rates(decay, head, DECAYING)
    of_slots = batch * slots * ROW + head * p_h
    queries = load_slots(p + of_slots, slots, p_l, L, D)
    dtype = queries.dtype
    visible = visible_slots(hidden, batch, slots, L, HIDDEN)
    exists = tl.arange(0, L) < slots
    place = tl.arange(0, C)
    steps = place[:, None] - place[None, :]
    ahead, behind = powers_inside(rate, C)
    keys = tl.zeros((D, L), tl.float32)
    values = tl.zeros((L, D), tl.float32)
    if SEGMENTED:
        span = per_segment * C
        keys = sum_others(key_sums, group, segments, 0, segment, segment - 1, span, rate, D, L, DECAYING)
        if not TIED:
            values = sum_others(value_sums, group, segments, 0, segment, segment - 1, span, rate, L, D, DECAYING)
    first = segment * per_segment
    for i in range(0, tl.minimum(per_segment, tl.cdiv(n, C) - first)):
        # a tensor, which the interpreter's loop variable is not
        chunk = first + i
        t = chunk * C + place
        rows_q, rows_k = load_rows(q + wide, t, n, WIDE, D), load_rows(k + wide, t, n, WIDE, D)
        if TIED:
            rows_v = rows_k
        else:
            rows_v = load_rows(v + wide, t, n, WIDE, D)
        a = activation(dot(load_rows(c + wide, t, n, WIDE, D), tl.trans(queries), PRECISION), ACTIVATION)
        a = tl.where((t < n)[:, None] & exists[None, :], a, 0.0)
        if DROPOUT:
            random, other = random_pairs(seed, group, t, L)
            a = tl.where(random >= threshold, a * rescale, 0.0)
        a_half = a.to(dtype)
        share = 1 / total_weight((t + 1).to(tl.float32), rate, rest, DECAYING)
        scores = causal(dot(rows_q, tl.trans(rows_k), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
        if WALK:
            known = total_weight((chunk * C).to(tl.float32), rate, rest, DECAYING)
            enter = known * power(rate, (place + 1).to(tl.float32))
            mean = (keys * (1 / known)).to(dtype)
            logits = read_past(rows_q, mean, scores, a_half, enter, share * query_scale, False, PRECISION)
        else:
            logits = dot(scores, a_half, PRECISION) * (share * query_scale)[:, None]
        u = softmax(logits, visible)
        if DROPOUT:
            u = tl.where(other >= threshold, u * rescale, 0.0)
        u_half = u.to(dtype)
        scores = causal(dot(u_half, tl.trans(a_half), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
        if WALK:
            if TIED:
                y = read_past(u_half, mean, scores, rows_v, enter, share, True, PRECISION)
            else:
                y = read_past(u_half, (values * (1 / known)).to(dtype), scores, rows_v, enter, share, False, PRECISION)
            left = a
            if DECAYING:
                across = power(rate, C * 1.0)
                keys *= across
                values *= across
                left = a * power(rate, (C - 1 - place).to(tl.float32))[:, None]
            left = left.to(dtype)
            keys = dot(tl.trans(rows_k), left, PRECISION, keys)
            if not TIED:
                values = dot(tl.trans(left), rows_v, PRECISION, values)
        else:
            y = dot(scores, rows_v, PRECISION) * share[:, None]
        store_rows(out + base, t, n, ROW, y, D)
