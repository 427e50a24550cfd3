"""What the fused operators compute, in plain torch of any dtype, with explicit dropout masks."""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, rounds: int = 7) -> Tuple[Tensor, ...]:
    """Philox4x32 in int64 arithmetic."""

    def product(factor: int, x: Tensor) -> Tuple[Tensor, Tensor]:
        # 32 x 32 bits, in halves: the product would not fit a signed int64
        low, high = x & 0xFFFF, x >> 16
        first, second = factor * low, factor * high
        total = first + ((second & 0xFFFF) << 16)
        return (total >> 32) + (second >> 16), total & _LOW

    k0, k1 = seed & _LOW, seed >> 32
    for _ in range(rounds):
        high_b, low_b = product(0xCD9E8D57, c2)
        high_a, low_a = product(0xD2511F53, c0)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def dropout_masks(
    seed: int,
    dropout: float,
    batch: int,
    heads: int,
    rows: int,
    columns: int,
    padded: int,
    device=None,
    stream: int = 0,
) -> Tuple[Tensor, Tensor]:
    """Two masks (B, H, rows, columns), True where kept, of the counters that the kernels use."""
    place = (torch.arange(rows, device=device).view(-1, 1) * padded + torch.arange(columns, device=device)).expand(
        batch * heads, rows, columns
    )
    group = torch.arange(batch * heads, device=device).view(-1, 1, 1).expand_as(place)
    zero = torch.zeros_like(place)
    first, second, _, _ = philox(seed, place, group, zero, zero)
    threshold = int(dropout * 2**24)
    return tuple(((u >> 8) >= threshold).view(batch, heads, rows, columns) for u in (first, second))


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    pack_key: Tensor,
    pack_query: Tensor,
    hidden: Optional[Tensor] = None,
    decay: Optional[Tensor] = None,
    activation: str = "softplus",
    dropout: float = 0.0,
    masks: Optional[Tuple[Tensor, Tensor]] = None,
    cancelling: bool = True,
) -> Tensor:
    """Section 3.3 of the paper with the n x n mean of each head. q, k, v, c (B, H, n, d), P (B, H, l, d)."""
    value = key if value is None else value
    n, dtype = query.size(2), query.dtype
    t = torch.arange(n, device=query.device)
    steps = t.view(-1, 1) - t
    lam = torch.ones(1, device=query.device, dtype=dtype) if decay is None else decay.to(dtype)
    mean = (lam.view(-1, 1, 1) ** steps.clamp(min=0)).tril()
    mean = mean / mean.sum(dim=-1, keepdim=True)
    z = pack_key @ pack_query.transpose(-1, -2)
    a = F.softplus(z, beta=math.log(2)) if activation == "softplus" else F.elu(z) + 1
    if masks is not None:
        a = a * masks[0] / (1 - dropout)
    logits = ((query @ key.transpose(-1, -2)) * mean) @ a
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
    unpack = softmax(logits, cancelling)
    if masks is not None:
        unpack = unpack * masks[1] / (1 - dropout)
    return ((unpack @ a.transpose(-1, -2)) * mean) @ value


def softmax(logits: Tensor, cancelling: bool = True) -> Tensor:
    """Of the last dimension. Its gradient, of the logits x_i with weights y_i, is y_i dy_i - y_i sum_j y_j dy_j; not
    `cancelling`, it is the first term alone: as large as what was rounded, where the two cancel."""
    if cancelling:
        return logits.softmax(dim=-1)
    return (logits - logits.logsumexp(dim=-1, keepdim=True).detach()).exp()


def gaussian_bias(sharpness: Tensor, shift: Tensor, slots: int, positions: Tensor) -> Tensor:
    """(B, H, l, n), of positions (B, n) in stretches of a slot."""
    centres = torch.arange(slots, device=positions.device).view(1, -1, 1) + 0.5
    offsets = positions.to(shift.dtype).unsqueeze(1) - centres
    gamma, shift = sharpness.abs().view(-1, 1, 1), shift.view(-1, 1, 1)
    return (-gamma * (offsets.unsqueeze(1) - shift) ** 2).clamp(min=-30)


def attention(query, key, value, hidden, bias, dropout, mask, cancelling=True):
    """hidden: (B, m); bias: (B, H, n, m); mask: (B, H, n, m); cancelling: as in `softmax`."""
    logits = query @ key.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
    weights = softmax(logits, cancelling)
    if mask is not None:
        weights = weights * mask / (1 - dropout)
    return weights.to(key.dtype) @ (key if value is None else value)
