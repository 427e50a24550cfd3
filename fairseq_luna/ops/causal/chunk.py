"""The causal product by chunks of positions: exact and parallel, for training."""

import math
from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import accumulation_dtype, without_autocast
from .state import ProductResult, RunningMean, decay_powers, total_weight

CHUNK_SIZE = 64


@without_autocast
def chunk_causal_product(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Optional[RunningMean] = None,
    output_state: bool = False,
    decay: Optional[Tensor] = None,
    chunk_size: int = CHUNK_SIZE,
) -> ProductResult:
    """f by chunks of c positions: inside a chunk tril(X Y^T) Z, between chunks the running sum.

    Exact for every n, with time linear in n: O(n c (d1 + d2)) inside, O(n d1 d2) between, and memory
    O(n (c + d1 d2 / c)). For the gradients x, y and z are kept in the dtype of the sums, and nothing
    else: the rest is computed again.
    Arguments, shapes and results as in `naive_causal_product`; for a state with a decay 1/lambda^c must
    be a number in the dtype of the sums (lambda >= 0.3 will do for c = 64).

    Raises:
        ValueError: if chunk_size < 1.
    """
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be >= 1, but is {chunk_size} instead.")
    n, dtype, out_dtype = x.size(2), accumulation_dtype(x.dtype), x.dtype
    seen = state.steps if state is not None else 0
    # chunks of even size waste the least on padding: 65 positions are 33 + 32, not 64 + 1
    chunks = max(1, math.ceil(n / chunk_size))
    weight = torch.arange(1 + seen, 1 + seen + n, device=x.device, dtype=dtype).unsqueeze(-1)
    total: Any = seen + n
    known: Any = seen
    if decay is not None:
        decay = decay.detach().to(dtype).view(-1, 1, 1)
        weight = total_weight(decay, weight)
        total, known = (total_weight(decay, torch.full_like(decay, t)) for t in (seen + n, seen))
    before = known * state.mean if state is not None else None
    x, y, z = (u.to(dtype) for u in (x, y, z))
    out, after = _ChunkCausalSums.apply(x, y, z, before, decay, chunks, output_state)
    final = RunningMean(after / total, seen + n) if output_state else None
    return (out / weight).to(out_dtype), final


class _Decay(NamedTuple):
    """Powers of lambda inside a chunk of c positions.

    Attributes:
        inside: lambda^(t - j), from position j to t, (H, 1, c, c), 0 above the diagonal.
        enter: lambda^(t + 1), from the end of the chunk before to position t, (H, 1, c, 1).
        leave: lambda^(c - 1 - j), from position j to the end of the chunk, (H, 1, c, 1).
        across: lambda^c, (H, 1, 1).
    """

    inside: Tensor
    enter: Tensor
    leave: Tensor
    across: Tensor

    @staticmethod
    def of(decay: Tensor, size: int) -> "_Decay":
        """decay: (H, 1, 1)."""
        inside = decay_powers(decay, size).unsqueeze(1)
        enter = decay.unsqueeze(1) * inside[..., :1]
        return _Decay(inside, enter, inside[..., -1:, :].transpose(-1, -2), enter[:, :, -1])


class _ChunkCausalSums(torch.autograd.Function):
    """o_t = x_t (lambda^t S_0 + sum_{j <= t} lambda^(t - j) y_j^T z_j), and the sum after the last position.

    With A = tril(X Y^T) inside a chunk and S the sum of y_j^T z_j over the chunks before it,

        O = A Z + X S
        dX = tril(dO Z^T) Y + dO S^T,    dY = tril(dO Z^T)^T X + Z R^T,    dZ = A^T dO + Y R,

    where R is the sum of x_t^T do_t over the chunks behind it. A decay goes along with every step:
    into tril, and into X on its way to S, into Y on its way out of the chunk.
    """

    @staticmethod
    def forward(ctx, x, y, z, before, decay, chunks, output_state):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, y, z, before, decay)
        ctx.chunks = chunks
        n = x.size(2)
        x, y, z = (_split(u, chunks) for u in (x, y, z))
        powers = None if decay is None else _Decay.of(decay, x.size(3))
        out = _tril_(x @ y.transpose(-1, -2), powers) @ z
        after = None
        if chunks > 1 or before is not None or output_state:
            sums = _sums(_leave(y, powers), z, before, powers)
            out += _enter(x, powers) @ sums[:, :, :-1]
            if output_state:
                # the zeros at the end have let it decay further
                extra = chunks * x.size(3) - n
                after = sums[:, :, -1] if decay is None else sums[:, :, -1] / decay**extra
        return _join(out, n), after

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_after):
        x, y, z, before, decay = ctx.saved_tensors
        if d_out is None:
            d_out = torch.zeros_like(x[..., :1]).expand(*x.shape[:3], z.size(-1))
        return (*_chunk_gradients(x, y, z, before, decay, d_out, d_after, ctx.chunks), None, None, None)


@without_autocast
def _chunk_gradients(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    before: Optional[Tensor],
    decay: Optional[Tensor],
    d_out: Tensor,
    d_after: Optional[Tensor],
    chunks: int,
) -> Tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    n = x.size(2)
    x, y, z, d_out = (_split(u, chunks) for u in (x, y, z, d_out))
    powers = None if decay is None else _Decay.of(decay, x.size(3))
    a = _tril_(x @ y.transpose(-1, -2), powers)
    d_a = _tril_(d_out @ z.transpose(-1, -2), powers)
    d_x, d_y, d_z = d_a @ y, d_a.transpose(-1, -2) @ x, a.transpose(-1, -2) @ d_out
    d_before = None
    if chunks > 1 or before is not None or d_after is not None:
        if decay is not None and d_after is not None:
            d_after = d_after / decay ** (chunks * x.size(3) - n)
        left = _leave(y, powers)
        sums = _sums(left, z, before, powers)
        later = _sums(_enter(x, powers), d_out, d_after, powers, from_the_end=True)
        d_x += _enter(d_out @ sums[:, :, :-1].transpose(-1, -2), powers)
        d_y += _leave(z @ later[:, :, 1:].transpose(-1, -2), powers)
        d_z += left @ later[:, :, 1:]
        d_before = None if before is None else later[:, :, 0]
    return _join(d_x, n), _join(d_y, n), _join(d_z, n), d_before


def _tril_(a: Tensor, powers: Optional[_Decay]) -> Tensor:
    # tril first: what is not a number in y must not reach what comes before it
    return a.tril_() if powers is None else a.tril_().mul_(powers.inside)


def _enter(x: Tensor, powers: Optional[_Decay]) -> Tensor:
    return x if powers is None else x * powers.enter


def _leave(y: Tensor, powers: Optional[_Decay]) -> Tensor:
    return y if powers is None else y * powers.leave


def _split(u: Tensor, chunks: int) -> Tensor:
    """(B, H, n, d) -> (B, H, chunks, c, d), the end filled with zeros, which add nothing."""
    size = math.ceil(u.size(2) / chunks)
    missing = chunks * size - u.size(2)
    if missing:
        u = F.pad(u, (0, 0, 0, missing))
    return u.reshape(*u.shape[:2], chunks, size, u.size(-1))


def _join(u: Tensor, n: int) -> Tensor:
    """(B, H, chunks, c, d) -> (B, H, n, d)."""
    return u.flatten(2, 3)[:, :, :n]


def _sums(
    y: Tensor, z: Tensor, start: Optional[Tensor], powers: Optional[_Decay], from_the_end: bool = False
) -> Tensor:
    """The sum of y_j^T z_j before each chunk and after all, (B, H, chunks + 1, d1, d2), added to start (default 0)."""
    added = y.transpose(-1, -2) @ z
    first = torch.zeros_like(added[:, :, :1]) if start is None else start.unsqueeze(2)
    if powers is None:
        if from_the_end:
            return torch.cat((added, first), dim=2).flip(2).cumsum(dim=2).flip(2)
        return torch.cat((first, added), dim=2).cumsum(dim=2)
    sums = [first[:, :, 0]]
    for new in added.flip(2).unbind(2) if from_the_end else added.unbind(2):
        sums.append(powers.across * sums[-1] + new)
    return torch.stack(sums[::-1] if from_the_end else sums, dim=2)
