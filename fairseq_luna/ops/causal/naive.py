"""The causal product as the equation has it, for tests and readers; and the same without an order of time.

    f_t(X, Y, Z) = 1/t x_t sum_{j <= t} y_j^T z_j        X, Y: n x d1,  Z: n x d2,

or, with a decay lambda of each head, the mean in which what is i positions back counts lambda^i,

    f_t(X, Y, Z) = 1/w_t x_t sum_{j <= t} lambda^{t - j} y_j^T z_j,        w_t = sum_{i < t} lambda^i

(the decay of retention, Sun et al. 2023, and of MEGA's moving average, Ma et al. 2022). Its forms have one interface,
`product(x, y, z, state, output_state, decay)`:

    naive.naive_causal_product          the equation                              O(n d1 d2) memory
    chunk.chunk_causal_product          exact and parallel, for training          O(n (c + d1 d2 / c))
    recurrent.recurrent_causal_product  step by step on a state, as in decoding   O(d1 d2)
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..precision import accumulation_dtype, without_autocast
from .state import ProductResult, RunningMean, decay_powers, empty_mean, total_weight


@without_autocast
def naive_causal_product(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Optional[RunningMean] = None,
    output_state: bool = False,
    decay: Optional[Tensor] = None,
) -> ProductResult:
    """f as the equation has it: every outer product, their cumulative mean, then x.

    Costs O(n d1 d2) in time and in memory, of which gradients keep several copies; with a decay
    O(n^2 d1 d2) in time.

    Args:
        x: (B, H, n, d1).
        y: (B, H, n, d1).
        z: (B, H, n, d2).
        state: the state to go on from (default: nothing seen yet).
        output_state: whether to return the state after the last position.
        decay: lambda of each head, (H,), in (0, 1]; no gradients go there (default: 1, a uniform mean).

    Returns:
        (B, H, n, d2) and the state, or None.
    """
    dtype = accumulation_dtype(x.dtype)
    state = state or RunningMean(empty_mean(y, z), 0)
    outer = y.to(dtype).unsqueeze(-1) * z.to(dtype).unsqueeze(-2)
    t = torch.arange(1, x.size(2) + 1, device=x.device)
    if decay is None:
        sums = outer.cumsum(dim=2) + state.steps * state.mean.unsqueeze(2)
        means = sums / (t + state.steps).view(-1, 1, 1)
    else:
        by_head = decay.detach().to(dtype).view(-1, 1)
        sums = torch.einsum("htj,bhjde->bhtde", decay_powers(by_head, len(t)), outer)
        if state.steps:
            seen = total_weight(by_head, torch.full_like(by_head, state.steps)) * by_head**t
            sums = sums + seen.unsqueeze(-1).unsqueeze(-1) * state.mean.unsqueeze(2)
        means = sums / total_weight(by_head, (t + state.steps).to(dtype)).unsqueeze(-1).unsqueeze(-1)
    out = (x.to(dtype).unsqueeze(-2) @ means).squeeze(-2)
    final = RunningMean(means[:, :, -1].contiguous(), state.steps + x.size(2)) if output_state else None
    return out.to(x.dtype), final


@without_autocast
def whole_product(
    x: Tensor, y: Tensor, z: Tensor, padding: Tensor, decay: Optional[Tensor] = None
) -> Tuple[Tensor, None]:
    """f without an order of time: the mean of all positions, in which what is i away counts lambda^i.

        f_t(X, Y, Z) = 1/w_t x_t sum_j lambda^|t - j| y_j^T z_j,        w_t = sum_j lambda^|t - j|

    Costs O(n^2 (d1 + d2)) in time and O(n^2) in memory.

    Args:
        x: (B, H, n, d1).
        y: (B, H, n, d1).
        z: (B, H, n, d2).
        padding: (B, n), True where a position is padding, which no sum has in it.
        decay: as in `naive_causal_product`.

    Returns:
        (B, H, n, d2), and None: there is no state to go on from.
    """
    dtype, t = accumulation_dtype(x.dtype), torch.arange(x.size(2), device=x.device)
    apart = (t.view(-1, 1) - t).abs()
    share = torch.ones_like(apart).unsqueeze(0) if decay is None else decay.detach().view(-1, 1, 1) ** apart
    share = share.to(dtype) * ~padding[:, None, None, :]
    # what is padding may be so far from everything else that no share of it is left
    share = share / share.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    out = (x.to(dtype) @ y.to(dtype).transpose(-1, -2) * share) @ z.to(dtype)
    return out.to(x.dtype), None
