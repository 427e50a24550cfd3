"""Softmax attention with what makes Luna's local: a decay in the decoder, a Gaussian bias in the encoder.

With both a Transformer is told from Luna by its attention only. Beside a bias torch's fused forms are not used, so
training keeps the weights, O(H n^2). Products with weights follow --inference-precision, as Luna's do.
"""

from typing import Optional

import torch
from torch import Tensor

from ..ops.causal.state import decay_logits
from ..ops.precision import accumulation_dtype
from .causal_attention import head_decays
from .locality import Locality
from .softmax_attention import CausalSelfAttention, SelfAttention
from .step import Step


class LocalSelfAttention(SelfAttention):
    """-|gamma_h| (j - i - s_h)^2 on the logits of positions i and j of head h, as `ops.slots.GaussianBias` has it.

    A slot of one token stands at each position.

    Args:
        dim: D.
        heads: H.
        dropout: probability, of the weights.
        sharpness: what gamma begins with, for distances in tokens.
    """

    def __init__(self, dim: int, heads: int, dropout: float, sharpness: float):
        super().__init__(dim, heads, dropout)
        self.bias = Locality(heads, sharpness)

    def forward(self, x: Tensor, padding: Optional[Tensor] = None) -> Tensor:
        """X (B, n, D), its mask (B, n), True where padded, on either side -> (B, n, D)."""
        n = x.size(1)
        # the tokens of a sentence are neighbours, so their distances are the same wherever it begins
        positions = torch.arange(n, device=x.device).view(1, -1) + 0.5
        out, _ = self.read(x, *self.keys_values(x), padding, self.bias(positions).logits(n))
        return out


class DecayingSelfAttention(CausalSelfAttention):
    """log(lambda_h) (t - j) on the logits of positions t and j of head h, at the rates of Luna's decaying mean.

    As in ALiBi (Press et al. 2022), there for other rates.

    Args:
        dim: D.
        heads: H.
        dropout: probability, of the weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__(dim, heads, dropout)
        # 0 in a checkpoint of before there was a decay: it then has none
        self.register_buffer("decaying", torch.ones((), dtype=torch.int64))

    def forward(self, x: Tensor, whole: Optional[Tensor] = None) -> Tensor:
        """As that of `CausalSelfAttention`; with `whole` a later position counts as one before that is as far."""
        t = torch.arange(x.size(1), device=x.device)
        apart = t.view(-1, 1) - t
        bias = self.logits(apart.abs(), x.dtype)
        if whole is None:
            bias = bias.masked_fill(apart < 0, float("-inf"))
        out, _ = self.read(x, *self.keys_values(x), whole, bias)
        return out

    def step(self, x: Tensor, step: Step) -> Tensor:
        """The one new position of every beam, (B, beams, D) -> the same."""
        rows = x.reshape(-1, 1, x.size(-1))
        # kept as fairseq keeps them, (rows, H, t, d) each, so that they follow the beams
        past, (key, value) = self._get_input_buffer(step.incremental_state), self.keys_values(rows)
        if past:
            key, value = torch.cat((past["prev_key"], key), dim=2), torch.cat((past["prev_value"], value), dim=2)
        self._set_input_buffer(step.incremental_state, {"prev_key": key, "prev_value": value})
        apart = torch.arange(key.size(2) - 1, -1, -1, device=x.device).view(1, -1)
        out, _ = self.read(rows, key, value, bias=self.logits(apart, x.dtype))
        return out.view_as(x)

    def logits(self, apart: Tensor, dtype: torch.dtype) -> Tensor:
        """The bias, (H, n, m), of positions so far apart, (n, m)."""
        decay = head_decays(self.num_heads, apart.device).to(accumulation_dtype(dtype))
        return (decay_logits(decay, apart) * self.decaying).to(dtype)
