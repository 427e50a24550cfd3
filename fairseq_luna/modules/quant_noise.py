"""Quantisation noise (Fan et al. 2020, Training with Quantization Noise for Extreme Model Compression)."""

from functools import partial

import torch
import torch.nn as nn
from fairseq.modules import MultiheadAttention
from torch import Tensor

from .linear import Linear


def block_noise(weight: Tensor, p: float, block_size: int) -> Tensor:
    """Random blocks of a weight as zeros, the others scaled up; the gradient goes to all of it as if it were whole.

    Args:
        weight: (out, in).
        p: probability of a block to be zero, in [0, 1).
        block_size: how many neighbours of a row are a block; divides `in`.
    """
    blocks = torch.rand(weight.size(0), weight.size(1) // block_size, device=weight.device)
    with torch.no_grad():
        noisy = (weight / (1 - p)).masked_fill((blocks < p).repeat_interleave(block_size, dim=1), 0)
    return noisy + (weight - weight.detach())


def add_noise(module: nn.Module, p: float, block_size: int) -> None:
    """Gives the weights of all projections in a module noise in training, whichever way they are read.

    Not fairseq's `quant_noise`: that writes the zeros into the weights for good unless there is a copy of them in
    float32 (--fp16), and its self-attention reads weights past it.
    """
    for part in module.modules():
        if isinstance(part, Linear):
            part.noise = partial(block_noise, p=p, block_size=block_size)
        if isinstance(part, MultiheadAttention):
            part.skip_embed_dim_check = True  # without it torch's own form is taken, which reads weights directly
