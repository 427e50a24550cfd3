"""Unpack (arXiv 2106.01540, section 3.1) in one kernel forward and one backward, its Gaussian bias made on the way.

    Y_X = dropout(softmax_i(scale X K^T + bias^T)) V          n rows, of l slots i

Keys and values of the slots stay on chip, a program walks over a part of the rows. Letters as in `causal.py`, the bias
as in `pack.py`.
"""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import (
    VARYING,
    bias_of_head,
    dot,
    load_offsets,
    load_rows,
    load_slots,
    random_pairs,
    seed_of_turn,
    softmax,
    store_bias_gradients,
    store_rows,
    visible_slots,
)
from .launch import Launch, as_bytes, bias_gradients, draws_of, in_blocks, parts_like, plan_rows


@triton.jit(do_not_specialize=VARYING)
def unpack_kernel(
    x, k, v, hidden, positions, sharpness, shifts, out, k_h, k_l,
    query_scale, n, slots, seed, turn, threshold, rescale, splits, per_split,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, BIAS: tl.constexpr, HIDDEN: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Y_X of a part of the rows."""
    group, split = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    base = batch * n * ROW + head * D
    of_slots = batch * slots * ROW + head * k_h
    keys = load_slots(k + of_slots, slots, k_l, L, D)
    values = load_slots(v + of_slots, slots, k_l, L, D)
    visible = visible_slots(hidden, batch, slots, L, HIDDEN)
    gamma, sign, shift = bias_of_head(sharpness, shifts, head, BIAS)
    for i in range(0, per_split):
        t = (split * per_split + i) * C + tl.arange(0, C)
        logits = dot(load_rows(x + base, t, n, ROW, D), tl.trans(keys), PRECISION) * query_scale
        if BIAS:
            offset = load_offsets(positions + batch * n, t, n, shift, L)
            logits += tl.maximum(-gamma * offset * offset, -30.0)
        weights = softmax(logits, visible)
        if DROPOUT:
            random, _ = random_pairs(seed, group, t, L)
            weights = tl.where(random >= threshold, weights * rescale, 0.0)
        store_rows(out + base, t, n, ROW, dot(weights.to(keys.dtype), values, PRECISION), D)


@triton.jit(do_not_specialize=VARYING)
def unpack_backward_kernel(
    x, k, v, hidden, positions, sharpness, shifts, dy, dx, dk, dv, d_bias, k_h, k_l,
    query_scale, n, slots, seed, turn, threshold, rescale, splits, per_split,
    HEADS: tl.constexpr, L: tl.constexpr, D: tl.constexpr, C: tl.constexpr, TIED: tl.constexpr, BIAS: tl.constexpr,
    HIDDEN: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx of a part of the rows, and the part's share of dk, dv, dgamma and dshift."""
    group, split = tl.program_id(0), tl.program_id(1)
    batch, head = (group // HEADS).to(tl.int64), group % HEADS
    seed = seed_of_turn(seed, turn, DROPOUT)
    ROW: tl.constexpr = HEADS * D
    base = batch * n * ROW + head * D
    of_slots = batch * slots * ROW + head * k_h
    keys = load_slots(k + of_slots, slots, k_l, L, D)
    if TIED:
        values = keys
    else:
        values = load_slots(v + of_slots, slots, k_l, L, D)
    visible = visible_slots(hidden, batch, slots, L, HIDDEN)
    gamma, sign, shift = bias_of_head(sharpness, shifts, head, BIAS)
    d_keys = tl.zeros((L, D), tl.float32)
    d_values = tl.zeros((L, D), tl.float32)
    d_gamma = tl.zeros((L,), tl.float32)
    d_shift = tl.zeros((L,), tl.float32)
    for i in range(0, per_split):
        t = (split * per_split + i) * C + tl.arange(0, C)
        rows_x, rows_dy = load_rows(x + base, t, n, ROW, D), load_rows(dy + base, t, n, ROW, D)
        logits = dot(rows_x, tl.trans(keys), PRECISION) * query_scale
        if BIAS:
            offset = load_offsets(positions + batch * n, t, n, shift, L)
            bias = -gamma * offset * offset
            logits += tl.maximum(bias, -30.0)
        weights = softmax(logits, visible)
        d_weights = dot(rows_dy, tl.trans(values), PRECISION)
        dropped = weights
        if DROPOUT:
            random, _ = random_pairs(seed, group, t, L)
            dropped = tl.where(random >= threshold, weights * rescale, 0.0)
            d_weights = tl.where(random >= threshold, d_weights * rescale, 0.0)
        d_logits = weights * (d_weights - tl.sum(weights * d_weights, axis=1)[:, None])
        if BIAS:
            slope = tl.where((bias > -30.0) & (t < n)[:, None], d_logits * offset, 0.0)
            d_gamma -= tl.sum(slope * offset, axis=0) * sign
            d_shift += tl.sum(slope, axis=0) * 2 * gamma
        d_half = (d_logits * query_scale).to(keys.dtype)
        store_rows(dx + base, t, n, ROW, dot(d_half, keys, PRECISION), D)
        # rows behind the end have x = dy = 0
        d_keys = dot(tl.trans(d_half), rows_x, PRECISION, d_keys)
        if TIED:
            d_keys = dot(tl.trans(dropped.to(keys.dtype)), rows_dy, PRECISION, d_keys)
        else:
            d_values = dot(tl.trans(dropped.to(keys.dtype)), rows_dy, PRECISION, d_values)
    slot = tl.arange(0, L)
    of_parts = split.to(tl.int64) * (tl.num_programs(0) // HEADS) * slots * ROW
    store_rows(dk + of_parts + of_slots, slot, slots, k_l, d_keys, D)
    if not TIED:
        store_rows(dv + of_parts + of_slots, slot, slots, k_l, d_values, D)
    if BIAS:
        part = group * splits + split
        store_bias_gradients(d_bias, part, tl.num_programs(0) * splits, d_gamma, d_shift)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k, v, hidden, positions, sharpness, shifts, launch, draws, query_scale):
        splits, options = launch.parts, launch.options
        batch, heads, slots, _ = k.shape
        numbers = (*k.stride()[1:3], query_scale, x.size(1), slots, *draws, splits, launch.per_part)
        bias = (x, x, x) if positions is None else (positions, sharpness, shifts)
        out = torch.empty_like(x)
        unpack_kernel[(batch * heads, splits)](
            x, k, k if v is None else v, as_bytes(hidden, x), *bias, out, *numbers,
            HIDDEN=hidden is not None, **options,
        )  # fmt: skip
        ctx.save_for_backward(x, k, v, hidden, positions, sharpness, shifts)
        # with the turn, which may change in place: save_for_backward would refuse that
        ctx.launch, ctx.numbers = launch, numbers
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, k, v, hidden, positions, sharpness, shifts = ctx.saved_tensors
        splits, options = ctx.launch.parts, ctx.launch.options
        batch, heads = k.shape[:2]
        bias = (x, x, x) if positions is None else (positions, sharpness, shifts)
        d_bias = None
        if positions is not None:
            d_bias = x.new_empty(2, batch, heads, splits, dtype=torch.float32)
        dx, dk = torch.empty_like(x), parts_like(k, splits)
        dv = None if v is None else parts_like(k, splits)
        unpack_backward_kernel[(batch * heads, splits)](
            x, k, k if v is None else v, as_bytes(hidden, x), *bias, dy.contiguous(), dx, dk, dk if dv is None else dv,
            x if d_bias is None else d_bias, *ctx.numbers, TIED=v is None, HIDDEN=hidden is not None, **options,
        )  # fmt: skip
        if splits > 1:
            dk = dk.sum(0).to(k.dtype)
            dv = None if dv is None else dv.sum(0).to(k.dtype)
        return (dx, dk, dv, None, None, *bias_gradients(d_bias, heads, sharpness), None, None, None)


def unpack(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    hidden: Optional[Tensor] = None,
    positions: Optional[Tensor] = None,
    sharpness: Optional[Tensor] = None,
    shift: Optional[Tensor] = None,
    dropout: float = 0.0,
    seed: int = 0,
    turn: Optional[Tensor] = None,
    query_scale: float = 1.0,
    launch: Optional[Launch] = None,
) -> Tensor:
    """Every position reads the slots.

    Sums are taken in float32, products in the dtype of the inputs, which is one for all but the bias.

    Args:
        query: of X, (B, n, H d).
        key: of Y_P, (B, H, l, d).
        value: (B, H, l, d); None where the keys are the values (tied).
        hidden: (B, l), True where a slot is not used; of each row at least one is.
        positions: x_j in stretches of a slot, (B, n), in float32, for a Gaussian bias; no gradients go there.
        sharpness: gamma, (H,).
        shift: s, (H,).
        dropout: probability, below 1, of the weights.
        seed: of the dropout, from 0 to 2^31 - 1.
        turn: of the dropout, (1,), in int32: added to the seed, read on the device, so that a CUDA graph draws anew at
            every replay (default: 0). It is to stay as it is between a pass forward and its pass backward.
        query_scale: what the products of queries and keys are multiplied by.
        launch: for tests (default: of `plan_rows`).

    Returns:
        Y_X, (B, n, H d).
    """
    batch, heads, slots, dim = key.shape
    launch = launch or plan_rows(
        batch, query.size(1), heads, dim, slots, query.dtype, query.device, positions is not None, dropout > 0
    )
    key, value = in_blocks(key, value)
    query, draws = query.contiguous(), draws_of(dropout, seed, turn, query)
    return _Unpack.apply(query, key, value, hidden, positions, sharpness, shift, launch, draws, query_scale)
