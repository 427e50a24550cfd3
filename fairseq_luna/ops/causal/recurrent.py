"""The causal product one position after the other."""

from typing import Optional

import torch
from torch import Tensor

from ..precision import without_autocast
from .state import ProductResult, RunningMean, empty_mean, share_of_step, take


@without_autocast
def recurrent_causal_product(
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Optional[RunningMean] = None,
    output_state: bool = False,
    decay: Optional[Tensor] = None,
) -> ProductResult:
    """f one position after the other: S <- (1 - 1/w_t) S + 1/w_t y_t^T z_t, then x_t S.

    A step costs O(d1 d2) in time and in memory, whatever its position.
    Arguments, shapes and results as in `naive_causal_product`.
    """
    mean, seen = state or (empty_mean(y, z), 0)
    decay = None if decay is None else decay.detach()
    steps = []
    for t in range(x.size(2)):
        now = slice(t, t + 1)
        mean = take(mean, y[:, :, now], z[:, :, now], share_of_step(seen + t + 1, decay), in_place=False)
        steps.append(x[:, :, now].to(mean.dtype) @ mean)
    out = torch.cat(steps, dim=2).to(x.dtype)
    return out, RunningMean(mean, seen + x.size(2)) if output_state else None
