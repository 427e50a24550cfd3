"""The causal attention's kernels backward: from the front what needs the past, from the rear what needs the future.

With dy_t given, and R_j = sum_{t >= j} lambda^(t-j) 1/w_t q_t^T e_t, R'_j = sum_{t >= j} lambda^(t-j) 1/w_t u_t^T dy_t,

    du_t = 1/w_t dy_t T_t^T      e_t = scale u_t (du_t - sum(u_t du_t))  dq_t = 1/w_t e_t S_t^T
    da_j = k_j R_j + v_j R'_j^T  dz_j = da_j w'(z_j)                     dc_j = dz_j P
    dk_j = a_j R_j^T             dv_j = a_j R'_j                         dP = sum_j dz_j^T c_j

Tied (k = v), dk and dv are one sum and R + R'^T one state. `causal.py` starts the kernels.
"""

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
def front_kernel(
    q, k, v, c, p, hidden, decay, key_sums, value_sums, dy, dq, d_logits, dropped, key_after, value_after,
    query_scale, p_h, p_l, n, slots, seed, turn, threshold, rescale, segments, per_segment,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, DECAYING: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, HIDDEN: tl.constexpr, SEGMENTED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients that need the past: of q and of the logits. Writes for the rear walk, each times w_c / w_t
    with w_c of the first position of the chunk, the gradients of the logits and A_unpack (B H, n, L), and, of a
    segment, the sums of q_t^T e_t and dropped_t^T dy_t / w_t as they stand before it."""
    group, segment = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    WIDE: tl.constexpr = (3 if TIED else 4) * ROW
    base = batch * n * ROW + head * D
    wide = batch * n * WIDE + head * D
    rate, rest = decay_rates(decay, head, DECAYING)
    d_logits += group.to(tl.int64) * n * L
    dropped += group.to(tl.int64) * n * L
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
    later_keys = tl.zeros((D, L), tl.float32)
    later_values = tl.zeros((L, D), tl.float32)
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
        rows_dy = load_rows(dy + base, t, n, ROW, D)
        a = activation(dot(load_rows(c + wide, t, n, WIDE, D), tl.trans(queries), PRECISION), ACTIVATION)
        a = tl.where((t < n)[:, None] & exists[None, :], a, 0.0)
        if DROPOUT:
            random, other = random_pairs(seed, group, t, L)
            a = tl.where(random >= threshold, a * rescale, 0.0)
        a_half = a.to(dtype)
        share = 1 / total_weight((t + 1).to(tl.float32), rate, rest, DECAYING)
        known = total_weight((chunk * C).to(tl.float32), rate, rest, DECAYING)
        enter = known * power(rate, (place + 1).to(tl.float32))
        mean = (keys * (1 / known)).to(dtype)
        scores = causal(dot(rows_q, tl.trans(rows_k), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
        u = softmax(read_past(rows_q, mean, scores, a_half, enter, share * query_scale, False, PRECISION), visible)
        scores = causal(dot(rows_dy, tl.trans(rows_v), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
        if TIED:
            du = read_past(rows_dy, mean, scores, a_half, enter, share, False, PRECISION)
        else:
            du = read_past(rows_dy, (values * (1 / known)).to(dtype), scores, a_half, enter, share, True, PRECISION)
        used = u
        if DROPOUT:
            used = tl.where(other >= threshold, u * rescale, 0.0)
            du = tl.where(other >= threshold, du * rescale, 0.0)
        e = u * (du - tl.sum(u * du, axis=1)[:, None]) * query_scale
        e_half = e.to(dtype)
        scores = causal(dot(e_half, tl.trans(a_half), PRECISION), steps, ahead, behind, DECAYING).to(dtype)
        store_rows(dq + wide, t, n, WIDE, read_past(e_half, mean, scores, rows_k, enter, share, True, PRECISION), D)
        start = total_weight((chunk * C + 1).to(tl.float32), rate, rest, DECAYING)
        e = e * (start * share)[:, None]
        used = used * (start * share)[:, None]
        store_rows(d_logits, t, n, L, e, L)
        store_rows(dropped, t, n, L, used, L)

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
        if SEGMENTED:
            if DECAYING:
                back = power(rate, (place + 1).to(tl.float32))[:, None]
                e = e * back
                used = used * back
            e_half = e.to(dtype)
            used_half = used.to(dtype)
            part = 1 / start
            if DECAYING:
                part = part * power(rate, ((chunk - first) * C).to(tl.float32))
            added = dot(tl.trans(rows_q), e_half, PRECISION)
            if TIED:
                added = dot(tl.trans(rows_dy), used_half, PRECISION, added)
            else:
                later_values += part * dot(tl.trans(used_half), rows_dy, PRECISION)
            later_keys += part * added
    if SEGMENTED:
        store_sum(key_after, group, segments, segment, later_keys, D, L)
        if not TIED:
            store_sum(value_after, group, segments, segment, later_values, L, D)


@triton.jit(do_not_specialize=VARYING)
def rear_kernel(
    q, k, v, c, p, decay, dy, d_logits, dropped, key_after, value_after, dk, dv, dc, dp,
    p_h, p_l, n, slots, seed, turn, threshold, rescale, segments, per_segment,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, DECAYING: tl.constexpr,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, SEGMENTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients that need what comes after: of k, v, c and p. From the last chunk of a segment to its first."""
    group, segment = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    WIDE: tl.constexpr = (3 if TIED else 4) * ROW
    base = batch * n * ROW + head * D
    wide = batch * n * WIDE + head * D
    rate, rest = decay_rates(decay, head, DECAYING)
    d_logits += group.to(tl.int64) * n * L
    dropped += group.to(tl.int64) * n * L
    of_slots = batch * slots * ROW + head * p_h
    queries = load_slots(p + of_slots, slots, p_l, L, D)
    dtype = queries.dtype
    exists = tl.arange(0, L) < slots
    place = tl.arange(0, C)
    # rows are positions j here, columns the later positions t
    steps = place[None, :] - place[:, None]
    ahead, behind = powers_inside(rate, C)
    leave = power(rate, (C - 1 - place).to(tl.float32))[:, None]
    back = power(rate, (place + 1).to(tl.float32))[:, None]
    keys = tl.zeros((D, L), tl.float32)
    values = tl.zeros((L, D), tl.float32)
    if SEGMENTED:
        span = per_segment * C
        keys = sum_others(key_after, group, segments, segment + 1, segments, segment + 1, span, rate, D, L, DECAYING)
        if not TIED:
            values = sum_others(
                value_after, group, segments, segment + 1, segments, segment + 1, span, rate, L, D, DECAYING
            )
    d_queries = tl.zeros((L, D), tl.float32)
    first = segment * per_segment
    last = tl.minimum(first + per_segment, tl.cdiv(n, C)) - 1
    for i in range(0, last - first + 1):
        chunk = last - i
        t = chunk * C + place
        rows_q, rows_k = load_rows(q + wide, t, n, WIDE, D), load_rows(k + wide, t, n, WIDE, D)
        if TIED:
            rows_v = rows_k
        else:
            rows_v = load_rows(v + wide, t, n, WIDE, D)
        rows_c, rows_dy = load_rows(c + wide, t, n, WIDE, D), load_rows(dy + base, t, n, ROW, D)
        e, used = load_rows(d_logits, t, n, L, L), load_rows(dropped, t, n, L, L)
        share = 1 / total_weight((chunk * C + 1).to(tl.float32), rate, rest, DECAYING)
        z = dot(rows_c, tl.trans(queries), PRECISION)
        here = (t < n)[:, None] & exists[None, :]
        a = tl.where(here, activation(z, ACTIVATION), 0.0)
        slope = tl.where(here, activation_slope(z, ACTIVATION), 0.0)
        if DROPOUT:
            random, _ = random_pairs(seed, group, t, L)
            a = tl.where(random >= threshold, a * rescale, 0.0)
            slope = tl.where(random >= threshold, slope * rescale, 0.0)
        a = a.to(dtype)
        later = keys.to(dtype)

        scores = causal(dot(rows_k, tl.trans(rows_q), PRECISION), steps, behind, ahead, DECAYING).to(dtype)
        da = dot(scores, e, PRECISION)
        scores = causal(dot(rows_v, tl.trans(rows_dy), PRECISION), steps, behind, ahead, DECAYING).to(dtype)
        da = dot(scores, used, PRECISION, da) * share
        past = dot(rows_k, later, PRECISION)
        if not TIED:
            past = dot(rows_v, tl.trans(values.to(dtype)), PRECISION, past)
        dz = ((da + past * leave) * slope).to(dtype)
        store_rows(dc + wide, t, n, WIDE, dot(dz, queries, PRECISION), D)
        d_queries = dot(tl.trans(dz), rows_c, PRECISION, d_queries)

        scores = causal(dot(a, tl.trans(e), PRECISION), steps, behind, ahead, DECAYING).to(dtype)
        d_keys = dot(scores, rows_q, PRECISION)
        scores = causal(dot(a, tl.trans(used), PRECISION), steps, behind, ahead, DECAYING).to(dtype)
        if TIED:
            d_keys = dot(scores, rows_dy, PRECISION, d_keys)
        else:
            d_values = dot(scores, rows_dy, PRECISION) * share
            d_values += dot(a, values.to(dtype), PRECISION) * leave
            store_rows(dv + wide, t, n, WIDE, d_values, D)
        d_keys = d_keys * share + dot(a, tl.trans(later), PRECISION) * leave
        store_rows(dk + wide, t, n, WIDE, d_keys, D)

        if DECAYING:
            across = power(rate, C * 1.0)
            keys *= across
            values *= across
            e = (e * back).to(dtype)
            used = (used * back).to(dtype)
        added = dot(tl.trans(rows_q), e, PRECISION)
        if TIED:
            added = dot(tl.trans(rows_dy), used, PRECISION, added)
        else:
            values += share * dot(tl.trans(used), rows_dy, PRECISION)
        keys += share * added
    dp += segment.to(tl.int64) * tl.num_programs(0) * slots * D + of_slots
    store_rows(dp, tl.arange(0, L), slots, p_l, d_queries, D)
