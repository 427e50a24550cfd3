"""x + dropout(y) in one kernel forward, and one backward that draws the same again: no mask is kept."""

from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks import ROUNDS, VARYING, seed_of_turn
from .launch import draws_of

BLOCK = 1024  # elements for each of the four numbers of a draw


@triton.jit
def add_kept(x, y, out, place, size, random, threshold, rescale, ADD: tl.constexpr):
    """Writes dropout(y) of some elements; with ADD, x + dropout(y)."""
    inside = place < size
    kept = tl.load(y + place, inside, other=0.0).to(tl.float32) * rescale
    kept = tl.where((random >> 8).to(tl.int32) >= threshold, kept, 0.0)
    if ADD:
        kept += tl.load(x + place, inside, other=0.0).to(tl.float32)
    tl.store(out + place, kept.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=VARYING)
def residual_kernel(x, y, out, size, seed, turn, threshold, rescale, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """x + dropout(y); without ADD, dropout(y). A draw gives four numbers, for elements a block apart, so that
    neighbours are read together."""
    program = tl.program_id(0)
    draw = program * BLOCK + tl.arange(0, BLOCK)
    zero = draw * 0
    first, second, third, fourth = tl.philox(seed_of_turn(seed, turn, True), draw, zero, zero, zero, ROUNDS)
    place = program.to(tl.int64) * (4 * BLOCK) + tl.arange(0, BLOCK)
    add_kept(x, y, out, place, size, first, threshold, rescale, ADD)
    add_kept(x, y, out, place + BLOCK, size, second, threshold, rescale, ADD)
    add_kept(x, y, out, place + 2 * BLOCK, size, third, threshold, rescale, ADD)
    add_kept(x, y, out, place + 3 * BLOCK, size, fourth, threshold, rescale, ADD)


class _Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, draws):
        out = torch.empty_like(y, dtype=torch.promote_types(x.dtype, y.dtype))
        _launch(x, y, out, draws, ADD=True)
        # with the turn, which may change in place: save_for_backward would refuse that
        ctx.draws, ctx.dtypes = draws, (x.dtype, y.dtype)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        of_x, of_y = ctx.dtypes
        grad = grad.contiguous()
        dy = torch.empty_like(grad, dtype=of_y)
        _launch(grad, grad, dy, ctx.draws, ADD=False)
        return grad.to(of_x), dy, None


def _launch(x: Tensor, y: Tensor, out: Tensor, draws: tuple, ADD: bool) -> None:
    size = y.numel()
    residual_kernel[(triton.cdiv(size, 4 * BLOCK),)](x, y, out, size, *draws, ADD=ADD, BLOCK=BLOCK, num_warps=4)


def residual(x: Tensor, y: Tensor, dropout: float, seed: int = 0, turn: Optional[Tensor] = None) -> Tensor:
    """x + dropout(y), summed in float32.

    Args:
        x: of any shape.
        y: of the same.
        dropout: probability, below 1, of y.
        seed: of the dropout, from 0 to 2^31 - 1.
        turn: of the dropout, (1,), in int32: added to the seed, as in `causal.causal_attention`.

    Returns:
        As x, in the wider dtype of the two.
    """
    assert x.shape == y.shape, (x.shape, y.shape)
    return _Residual.apply(x.contiguous(), y.contiguous(), draws_of(dropout, seed, turn, y))
