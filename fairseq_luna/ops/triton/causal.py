"""Luna's causal attention (arXiv 2106.01540, section 3.3) in one kernel forward and one or two backward.

    a_j = dropout(w(c_j P^T))                                            A_pack, (n, l)
    u_t = softmax_l(scale/w_t q_t sum_{j <= t} lambda^(t-j) k_j^T a_j)   A_unpack, (n, l)
    y_t = 1/w_t dropout(u_t) sum_{j <= t} lambda^(t-j) a_j^T v_j         w_t = sum_{i < t} lambda^i

B batch, H heads, n positions, l slots, d channels of a head, C positions of a chunk, L = l rounded up. Short sequences
are walked by one program a sentence and head, with the state on chip; long ones are cut into segments, whose sums are
taken first, so that all segments run at once. q, k, v and c stand side by side, in rows of WIDE = 4 H d numbers. Tied,
there is no v, and WIDE = 3 H d. A row of y has ROW = H d numbers.

    kernels      n <= 32   n of one segment   more
    forward      1         1                  2
    backward     1         2                  2, and the sum of dP
"""

import functools
from typing import Optional, Tuple

import torch
from torch import Tensor

from .causal_backward import front_kernel, rear_kernel
from .causal_forward import forward_kernel, sums_kernel
from .causal_one_chunk import one_chunk_backward_kernel
from .launch import Launch, as_bytes, chunk_for, cut, draws_of, in_blocks, padded, parts_like, precision

# The backward pass of one chunk reads past its memory with chunks of 64 (Triton 3.6, on an H200).
LARGEST_ONLY_CHUNK = 32


@functools.lru_cache(maxsize=4096)
def plan(
    batch: int, n: int, heads: int, dim: int, slots: int, dtype: torch.dtype, device: torch.device,
    tied: bool, decaying: bool, activation: str, dropping: bool,
) -> Launch:  # fmt: skip
    """The launch for B, n, H, d, l; chosen by hand: a larger state leaves fewer registers for a chunk."""
    size = dim * padded(slots)
    if dtype == torch.float32:
        largest = 32 if size <= 2048 else 16
    else:
        largest = 64 if size <= (2048 if tied else 1024) and n > 64 else 32
    chunk = chunk_for(n, largest)
    warps = 8 if size >= 8192 else 4 if chunk >= 32 else 2
    options = {
        "HEADS": heads,
        "L": padded(slots),
        "D": dim,
        "C": chunk,
        "TIED": tied,
        "DECAYING": decaying,
        "ACTIVATION": activation,
        "DROPOUT": dropping,
        "PRECISION": precision(dtype),
        "num_warps": warps,
        "num_stages": 2,  # with 1 the compiler of Triton 3.6 makes a rear kernel that reads past its memory
    }
    return Launch(chunk, *cut(batch * heads, n, chunk, device), padded(slots), options)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, hidden, decay, launch, draws, query_scale):
        _, segments, per_segment, padded_slots, options = launch
        batch, n, _ = x.shape
        heads, slots, dim = p.shape[1:]
        groups, tied = batch * heads, options["TIED"]
        q, k, v, c = _q_k_v_c(x, tied)
        numbers = (*p.stride()[1:3], n, slots, *draws)
        hidden_bytes, decays = as_bytes(hidden, p), p if decay is None else decay
        key_sums = value_sums = None
        if segments > 1:
            key_sums = x.new_empty(groups, segments, dim * padded_slots, dtype=torch.float32)
            value_sums = key_sums if tied else torch.empty_like(key_sums)
            sums_kernel[(groups, segments - 1)](
                k, v, c, p, decays, key_sums, value_sums, *numbers, segments, per_segment, **options
            )
        out = x.new_empty(batch, n, heads * dim)
        forward_kernel[(groups, segments)](
            q, k, v, c, p, hidden_bytes, decays, p if key_sums is None else key_sums,
            p if value_sums is None else value_sums, out, query_scale, *numbers, segments, per_segment,
            HIDDEN=hidden is not None, SEGMENTED=segments > 1, WALK=n > launch.chunk, **options,
        )  # fmt: skip
        ctx.save_for_backward(x, p, hidden, decay, key_sums, value_sums)
        # with the turn, which may change in place: save_for_backward would refuse that
        ctx.launch, ctx.query_scale, ctx.numbers = launch, query_scale, numbers
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, p, hidden, decay, key_sums, value_sums = ctx.saved_tensors
        chunk, segments, per_segment, padded_slots, options = ctx.launch
        numbers, dy = ctx.numbers, dy.contiguous()
        groups, n, tied = len(x) * options["HEADS"], x.size(1), options["TIED"]
        dx, dp = torch.empty_like(x), parts_like(p, segments)
        (q, k, v, c), (dq, dk, dv, dc) = _q_k_v_c(x, tied), _q_k_v_c(dx, tied)
        hidden_bytes, decays = as_bytes(hidden, p), p if decay is None else decay
        if n <= chunk and n <= LARGEST_ONLY_CHUNK:
            one_chunk_backward_kernel[(groups,)](
                q, k, v, c, p, hidden_bytes, decays, dy, dq, dk, dv, dc, dp, ctx.query_scale, *numbers,
                HIDDEN=hidden is not None, **options,
            )  # fmt: skip
            return dx, dp, None, None, None, None, None
        d_logits = x.new_empty(groups, n, padded_slots)
        unpack = torch.empty_like(d_logits)
        before, after = (p, p), (p, p)
        if segments > 1:
            key_after = torch.empty_like(key_sums)
            before = (key_sums, value_sums)
            after = (key_after, key_after if tied else torch.empty_like(key_sums))
        front_kernel[(groups, segments)](
            q, k, v, c, p, hidden_bytes, decays, *before, dy, dq, d_logits, unpack, *after, ctx.query_scale,
            *numbers, segments, per_segment, HIDDEN=hidden is not None, SEGMENTED=segments > 1, **options,
        )  # fmt: skip
        rear_kernel[(groups, segments)](
            q, k, v, c, p, decays, dy, d_logits, unpack, *after, dk, dv, dc, dp,
            *numbers, segments, per_segment, SEGMENTED=segments > 1, **options,
        )  # fmt: skip
        dp = dp.sum(0).to(p.dtype) if segments > 1 else dp
        return dx, dp, None, None, None, None, None


def _q_k_v_c(x: Tensor, tied: bool) -> Tuple[Tensor, ...]:
    """Of what stands side by side; v is k where they are tied."""
    q, k, *v, c = x.unflatten(2, (3 if tied else 4, -1)).unbind(2)
    return q, k, v[0] if v else k, c


def causal_attention(
    projected: Tensor,
    pack_query: Tensor,
    hidden: Optional[Tensor] = None,
    decay: Optional[Tensor] = None,
    activation: str = "softplus",
    dropout: float = 0.0,
    seed: int = 0,
    turn: Optional[Tensor] = None,
    query_scale: float = 1.0,
    launch: Optional[Launch] = None,
) -> Tensor:
    """Luna's causal attention over whole sequences.

    Sums are taken in float32, products in the dtype of the inputs, which is one for all.

    Args:
        projected: q, k and c of X side by side, (B, n, 3 H d); untied q, k, v and c, (B, n, 4 H d).
        pack_query: P, scaled, (B, H, l, d).
        hidden: (B, l), True where a slot is not used; of each row at least one is.
        decay: lambda of each head, (H,), from 0.1 to 1; no gradients go there (default: 1, a uniform mean).
        activation: w, "softplus" (with base 2) or "elu" (plus 1).
        dropout: probability, below 1, of A_pack and of A_unpack.
        seed: of the dropout, from 0 to 2^31 - 1.
        turn: of the dropout, (1,), in int32: added to the seed, read on the device, so that a CUDA graph draws anew at
            every replay (default: 0). It is to stay as it is between a pass forward and its pass backward.
        query_scale: what the products of queries and keys are multiplied by.
        launch: for tests (default: of `plan`).

    Returns:
        (B, n, H d).
    """
    batch, n, _ = projected.shape
    heads, slots, dim = pack_query.shape[1:]
    launch = launch or plan(
        batch,
        n,
        heads,
        dim,
        slots,
        projected.dtype,
        projected.device,
        projected.size(2) == 3 * heads * dim,
        decay is not None,
        activation,
        dropout > 0,
    )
    projected, (pack_query,) = projected.contiguous(), in_blocks(pack_query)
    draws = draws_of(dropout, seed, turn, projected)
    return _CausalAttention.apply(projected, pack_query, hidden, decay, launch, draws, query_scale)
