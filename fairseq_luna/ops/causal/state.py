"""What the causal product remembers of the past, constant in size."""

from typing import NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from ..precision import accumulation_dtype

# 1/w_t: a number, or a tensor of one for each head, (H, 1, 1), or for all of them
Share = Union[float, Tensor]


class RunningMean(NamedTuple):
    """The mean of the past, and how much that is.

    Attributes:
        mean: (B, H, d1, d2), `1/w_t sum_{j <= t} lambda^{t - j} y_j^T z_j`, in float32 at least. A mean
            and not a sum, so that its error stays flat however long the sequence grows.
        steps: t, the number of positions seen.
    """

    mean: Tensor
    steps: int


ProductResult = Tuple[Tensor, Optional[RunningMean]]


def empty_mean(y: Tensor, z: Tensor) -> Tensor:
    """The mean before the first position. y: (B, H, n, d1), z: (B, H, n, d2)."""
    shape = (*y.shape[:-2], y.size(-1), z.size(-1))
    return y.new_zeros(shape, dtype=accumulation_dtype(y.dtype))


def take(mean: Tensor, y: Tensor, z: Tensor, share: Share, in_place: bool) -> Tensor:
    """The mean with one position more: (1 - 1/w_t) mean + 1/w_t y^T z.

    Args:
        mean: of the positions before, (B, H, d1, d2).
        y: (B, H, 1, d1).
        z: (B, H, 1, d2).
        share: 1/w_t.
        in_place: whether to write the new mean over the old one; gradients would need that.
    """
    mean = mean if in_place else mean.clone()
    d1, d2 = mean.shape[-2:]
    y, z = (u.to(mean.dtype) for u in (y, z))
    past, now = 1.0, 1.0
    if isinstance(share, Tensor):
        mean.mul_((1 - share).to(mean.dtype))
        y = y * share.to(mean.dtype)
    else:
        past, now = 1 - share, share
    mean.view(-1, d1, d2).baddbmm_(y.reshape(-1, d1, 1), z.reshape(-1, 1, d2), beta=past, alpha=now)
    return mean


def share_of_step(t: Union[int, Tensor], decay: Optional[Tensor] = None) -> Share:
    """1/w_t of the t-th position, counted from 1. decay: lambda of each head, (H,); None for uniform, w_t = t."""
    if decay is None:
        return 1 / (t if isinstance(t, int) else t.double())
    steps = torch.full_like(decay, t) if isinstance(t, int) else t.to(decay.dtype)
    return (1 / total_weight(decay, steps)).view(-1, 1, 1)


def total_weight(decay: Tensor, t: Tensor) -> Tensor:
    """w_t = sum_{i < t} lambda^i = (1 - lambda^t) / (1 - lambda), for every lambda in (0, 1]."""
    flat = decay == 1
    rest = (1 - decay).masked_fill(flat, 1)
    # 1 - lambda^t without the rounding of lambda^t near 1
    return torch.where(flat, t.to(decay.dtype), -torch.expm1(t * decay.log()) / rest)


def decay_powers(decay: Tensor, n: int) -> Tensor:
    """lambda^(t - j) for j <= t, else 0: (H, n, n)."""
    t = torch.arange(n, device=decay.device)
    return (decay.view(-1, 1, 1) ** (t.view(-1, 1) - t).clamp(min=0)).tril()


def decay_logits(decay: Tensor, apart: Tensor) -> Tensor:
    """log(lambda) i for positions i apart, of which a softmax makes lambda^i: (H, n, m). apart: i, (n, m)."""
    return decay.log().view(-1, 1, 1) * apart
