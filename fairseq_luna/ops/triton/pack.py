"""Pack (arXiv 2106.01540, section 3.1) in one kernel forward and one backward, its Gaussian bias made on the way.

    Y_P = dropout(softmax_j(scale P K^T + bias)) V          l rows of a context of m positions j
    bias_ij = max(-30, -|gamma_h| (x_j - c_i - s_h)^2)          c_i = i + 1/2, the centre of slot i

A program walks over a part of a context with the largest logit and the sum of exponentials of each slot, and its mean
of values, in float32 on chip; where there is more than one part, a small kernel joins them. Letters as in `causal.py`.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import (
    LOG2E,
    VARYING,
    bias_of_head,
    dot,
    load_offsets,
    load_rows,
    load_slots,
    random_pairs,
    seed_of_turn,
    store_bias_gradients,
    store_rows,
)
from .launch import Launch, as_bytes, bias_gradients, draws_of, plan_rows


@triton.jit
def store_packed(
    out, lse, group, base, slots, mean, largest, total, ROW: tl.constexpr, L: tl.constexpr, D: tl.constexpr
):
    """Y_P of a sentence and head, and the logarithms of its sums of exponentials."""
    slot = tl.arange(0, L)
    # nothing was seen of an empty sentence
    safe = tl.where(total > 0, total, 1.0)
    store_rows(out + base, slot, slots, ROW, mean / safe[:, None], D)
    tl.store(lse + group.to(tl.int64) * L + slot, largest + tl.log2(safe) / LOG2E)


@triton.jit
def load_tokens(padding, batch, t, n, PADDED: tl.constexpr):
    """True where t is a token."""
    inside = t < n
    if PADDED:
        inside = inside & (tl.load(padding + batch * n + t, mask=inside, other=1) == 0)
    return inside


@triton.jit(do_not_specialize=VARYING)
def pack_kernel(
    p, k, v, padding, positions, sharpness, shifts, out, lse, partial, extents,
    query_scale, n, slots, seed, turn, threshold, rescale, splits, per_split,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BIAS: tl.constexpr, PADDED: tl.constexpr,
    DROPOUT: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a part of the context: the largest logit and the sum of exponentials of each slot, and its mean of values."""
    group, split = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    base = batch * n * ROW + head * D
    of_slots = batch * slots * ROW + head * D
    queries = load_slots(p + of_slots, slots, ROW, L, D)
    gamma, sign, shift = bias_of_head(sharpness, shifts, head, BIAS)
    largest = tl.full((L,), -1e30, tl.float32)
    total = tl.zeros((L,), tl.float32)
    mean = tl.zeros((L, D), tl.float32)
    for i in range(0, per_split):
        t = (split * per_split + i) * C + tl.arange(0, C)
        # (L, C): slots are rows
        logits = dot(queries, tl.trans(load_rows(k + base, t, n, ROW, D)), PRECISION) * query_scale
        if BIAS:
            offset = load_offsets(positions + batch * n, t, n, shift, L)
            logits += tl.trans(tl.maximum(-gamma * offset * offset, -30.0))
        logits = tl.where(load_tokens(padding, batch, t, n, PADDED)[None, :], logits, float("-inf"))
        now = tl.maximum(largest, tl.max(logits, axis=1))
        weights = tl.exp2((logits - now[:, None]) * LOG2E)
        fade = tl.exp2((largest - now) * LOG2E)
        total = total * fade + tl.sum(weights, axis=1)
        if DROPOUT:
            random, _ = random_pairs(seed, group, t, L)
            weights = tl.where(tl.trans(random) >= threshold, weights * rescale, 0.0)
        mean = mean * fade[:, None]
        mean = dot(weights.to(queries.dtype), load_rows(v + base, t, n, ROW, D), PRECISION, mean)
        largest = now
    if SPLIT:
        part = group.to(tl.int64) * splits + split
        store_rows(partial + part * (L * D), tl.arange(0, L), L, D, mean, D)
        tl.store(extents + part * (2 * L) + tl.arange(0, L), largest)
        tl.store(extents + part * (2 * L) + L + tl.arange(0, L), total)
    else:
        store_packed(out, lse, group, of_slots, slots, mean, largest, total, ROW, L, D)


@triton.jit(do_not_specialize=VARYING)
def pack_join_kernel(
    partial, extents, out, lse, slots, splits, HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Joins the parts of a context."""
    group = tl.program_id(0)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    ROW: tl.constexpr = HEADS * D
    slot = tl.arange(0, L)
    largest = tl.full((L,), -1e30, tl.float32)
    total = tl.zeros((L,), tl.float32)
    mean = tl.zeros((L, D), tl.float32)
    for split in range(0, splits):
        part = group.to(tl.int64) * splits + split
        extent = tl.load(extents + part * (2 * L) + slot)
        now = tl.maximum(largest, extent)
        fade, share = tl.exp2((largest - now) * LOG2E), tl.exp2((extent - now) * LOG2E)
        total = total * fade + share * tl.load(extents + part * (2 * L) + L + slot)
        mean = mean * fade[:, None] + share[:, None] * load_rows(partial + part * (L * D), slot, L, D, D)
        largest = now
    store_packed(out, lse, group, batch * slots * ROW + head * D, slots, mean, largest, total, ROW, L, D)


@triton.jit(do_not_specialize=VARYING)
def pack_backward_kernel(
    p, k, v, padding, positions, sharpness, shifts, out, lse, dy, dk, dv, dp, d_bias,
    query_scale, n, slots, seed, turn, threshold, rescale, splits, per_split,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, BIAS: tl.constexpr,
    PADDED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a part of the context: dk and dv, and the part's share of dp, dgamma and dshift."""
    group, split = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    base = batch * n * ROW + head * D
    of_slots = batch * slots * ROW + head * D
    queries = load_slots(p + of_slots, slots, ROW, L, D)
    rows_dy = load_slots(dy + of_slots, slots, ROW, L, D)
    y = load_slots(out + of_slots, slots, ROW, L, D)
    slot = tl.arange(0, L)
    # the sum over j of weights times their gradients is that of y times dy
    along = tl.sum(y.to(tl.float32) * rows_dy.to(tl.float32), axis=1)
    extent = tl.load(lse + group.to(tl.int64) * L + slot)
    gamma, sign, shift = bias_of_head(sharpness, shifts, head, BIAS)
    d_queries = tl.zeros((L, D), tl.float32)
    d_gamma = tl.zeros((L,), tl.float32)
    d_shift = tl.zeros((L,), tl.float32)
    for i in range(0, per_split):
        # (C, L): positions are rows
        t = (split * per_split + i) * C + tl.arange(0, C)
        rows_k = load_rows(k + base, t, n, ROW, D)
        if TIED:
            rows_v = rows_k
        else:
            rows_v = load_rows(v + base, t, n, ROW, D)
        logits = dot(rows_k, tl.trans(queries), PRECISION) * query_scale
        if BIAS:
            offset = load_offsets(positions + batch * n, t, n, shift, L)
            bias = -gamma * offset * offset
            logits += tl.maximum(bias, -30.0)
        seen = load_tokens(padding, batch, t, n, PADDED)[:, None] & (slot < slots)[None, :]
        weights = tl.where(seen, tl.exp2((logits - extent[None, :]) * LOG2E), 0.0)
        d_weights = dot(rows_v, tl.trans(rows_dy), PRECISION)
        dropped = weights
        if DROPOUT:
            random, _ = random_pairs(seed, group, t, L)
            dropped = tl.where(random >= threshold, weights * rescale, 0.0)
            d_weights = tl.where(random >= threshold, d_weights * rescale, 0.0)
        d_logits = weights * (d_weights - along[None, :])
        if BIAS:
            slope = tl.where(bias > -30.0, d_logits * offset, 0.0)
            d_gamma -= tl.sum(slope * offset, axis=0) * sign
            d_shift += tl.sum(slope, axis=0) * 2 * gamma
        d_half = (d_logits * query_scale).to(queries.dtype)
        d_keys = dot(d_half, queries, PRECISION)
        if TIED:
            d_keys = dot(dropped.to(queries.dtype), rows_dy, PRECISION, d_keys)
        else:
            store_rows(dv + base, t, n, ROW, dot(dropped.to(queries.dtype), rows_dy, PRECISION), D)
        store_rows(dk + base, t, n, ROW, d_keys, D)
        d_queries = dot(tl.trans(d_half), rows_k, PRECISION, d_queries)
    of_parts = split.to(tl.int64) * (tl.num_programs(0) // HEADS) * slots * ROW
    store_rows(dp + of_parts + of_slots, slot, slots, ROW, d_queries, D)
    if BIAS:
        part = group * splits + split
        store_bias_gradients(d_bias, part, tl.num_programs(0) * splits, d_gamma, d_shift)


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, k, v, padding, positions, sharpness, shifts, launch, draws, query_scale):
        _, splits, per_split, padded_slots, options = launch
        batch, n, _ = k.shape
        slots, dim, groups = p.size(1), options["D"], batch * options["HEADS"]
        numbers = (query_scale, n, slots, *draws, splits, per_split)
        bias = (p, p, p) if positions is None else (positions, sharpness, shifts)
        out = torch.empty_like(p)
        lse = k.new_empty(groups, padded_slots, dtype=torch.float32)
        partial = extents = lse
        if splits > 1:
            partial = k.new_empty(groups, splits, padded_slots, dim, dtype=torch.float32)
            extents = k.new_empty(groups, splits, 2, padded_slots, dtype=torch.float32)
        pack_kernel[(groups, splits)](
            p, k, k if v is None else v, as_bytes(padding, p), *bias, out, lse, partial, extents, *numbers,
            PADDED=padding is not None, SPLIT=splits > 1, **options,
        )  # fmt: skip
        if splits > 1:
            pack_join_kernel[(groups,)](
                partial, extents, out, lse, slots, splits, HEADS=options["HEADS"], L=padded_slots, D=dim
            )
        ctx.save_for_backward(p, k, v, padding, positions, sharpness, shifts, out, lse)
        # with the turn, which may change in place: save_for_backward would refuse that
        ctx.launch, ctx.numbers = launch, numbers
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        p, k, v, padding, positions, sharpness, shifts, out, lse = ctx.saved_tensors
        splits, options = ctx.launch.parts, ctx.launch.options
        batch, heads = len(k), options["HEADS"]
        bias = (p, p, p) if positions is None else (positions, sharpness, shifts)
        d_bias = None
        if positions is not None:
            d_bias = k.new_empty(2, batch, heads, splits, dtype=torch.float32)
        dk = torch.empty_like(k)
        dv = None if v is None else torch.empty_like(k)
        # a part for each split, to be added up in float32
        dp = p.new_empty(splits, *p.shape, dtype=torch.float32) if splits > 1 else torch.empty_like(p)
        pack_backward_kernel[(batch * heads, splits)](
            p, k, k if v is None else v, as_bytes(padding, p), *bias, out, lse, dy.contiguous(), dk,
            dk if dv is None else dv, dp, lse if d_bias is None else d_bias, *ctx.numbers,
            TIED=v is None, PADDED=padding is not None, **options,
        )  # fmt: skip
        dp = dp.sum(0).to(p.dtype) if splits > 1 else dp
        return (dp, dk, dv, None, None, *bias_gradients(d_bias, heads, sharpness), None, None, None)


def pack(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    heads: int,
    padding: Optional[Tensor] = None,
    positions: Optional[Tensor] = None,
    sharpness: Optional[Tensor] = None,
    shift: Optional[Tensor] = None,
    dropout: float = 0.0,
    seed: int = 0,
    turn: Optional[Tensor] = None,
    query_scale: float = 1.0,
    launch: Optional[Launch] = None,
) -> Tensor:
    """Packs a context into slots.

    Sums are taken in float32, products in the dtype of the inputs, which is one for all but the bias.

    Args:
        query: of P, (B, l, H d).
        key: of the context, (B, m, H d).
        value: (B, m, H d); None where the keys are the values (tied).
        heads: H.
        padding: (B, m), True where the context is padding.
        positions: x_j in stretches of a slot, (B, m), in float32, for a Gaussian bias; no gradients go there.
        sharpness: gamma, (H,).
        shift: s, (H,).
        dropout: probability, below 1, of the weights.
        seed: of the dropout, from 0 to 2^31 - 1.
        turn: of the dropout, (1,), in int32: added to the seed, read on the device, so that a CUDA graph draws anew at
            every replay (default: 0). It is to stay as it is between a pass forward and its pass backward.
        query_scale: what the products of queries and keys are multiplied by.
        launch: for tests (default: of `plan_rows`).

    Returns:
        Y_P, (B, l, H d).
    """
    batch, n, width = key.shape
    launch = launch or plan_rows(
        batch, n, heads, width // heads, query.size(1), key.dtype, key.device, positions is not None, dropout > 0
    )
    query, key = query.contiguous(), key.contiguous()
    value = None if value is None else value.contiguous()
    draws = draws_of(dropout, seed, turn, query)
    return _Pack.apply(query, key, value, padding, positions, sharpness, shift, launch, draws, query_scale)
