"""Ordinary softmax attention, fairseq's own, for the places where a model does not use Luna's.

Tensors are batch first here as elsewhere in the plugin; fairseq's module has them time first.
"""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor

from ..ops.attention import attention
from ..ops.precision import UNPACK_DTYPE
from ..ops.projection import merge_heads, split_heads
from .beams import by_sentence
from .linear import Linear
from .step import Step


class _Attention(MultiheadAttention):
    """fairseq's, with projections that generation can give another form to."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            plain = getattr(self, name)
            projection = Linear(plain.in_features, plain.out_features)
            projection.load_state_dict(plain.state_dict())
            setattr(self, name, projection)

    def keys_values(self, context: Tensor) -> Tuple[Tensor, Tensor]:
        """(B, m, D') -> keys and values, (B, H, m, d) each, in the order in which products read them."""
        key, value = (split_heads(project(context), self.num_heads) for project in (self.k_proj, self.v_proj))
        return key.contiguous(), value.contiguous()

    def read(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
        softmax_dtype: Optional[torch.dtype] = None,
    ) -> Tuple[Tensor, Tensor]:
        """X (B, n, D), keys and values -> (B, n, D) and the weights (B, H, n, m), by `ops.attention.attention`."""
        query = split_heads(self.q_proj(x) * self.scaling, self.num_heads)
        out, weights = attention(query, key, value, hidden, self.dropout_module, softmax_dtype, bias)
        return self.out_proj(merge_heads(out)), weights


class SelfAttention(_Attention):
    """Attention of a sequence to itself: O(n^2 D). In float32 whatever --inference-precision says, unless it has had
    quantisation noise."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__(dim, heads, dropout=dropout, self_attention=True)

    def forward(self, x: Tensor, padding: Optional[Tensor] = None) -> Tensor:
        """X (B, n, D), its mask (B, n), True where padded -> (B, n, D)."""
        x = x.transpose(0, 1)
        out, _ = super().forward(x, x, x, key_padding_mask=padding, need_weights=False)
        return out.transpose(0, 1)


class CausalSelfAttention(_Attention):
    """Attention to the positions up to each one's own; its state grows by a position a step."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__(dim, heads, dropout=dropout, self_attention=True)

    def forward(self, x: Tensor, whole: Optional[Tensor] = None) -> Tensor:
        """X (B, n, D), padded on the right if at all -> (B, n, D). With `whole`, (B, n), True where X is
        padding, every position attends to all others, later ones too."""
        future, n = None, x.size(1)
        if whole is None:
            # float32 first: triu_ of torch 1.12 has no bfloat16 on a GPU
            future = torch.full((n, n), float("-inf"), device=x.device).triu_(1).to(x.dtype)
        x = x.transpose(0, 1)
        out, _ = super().forward(x, x, x, key_padding_mask=whole, attn_mask=future, need_weights=False)
        return out.transpose(0, 1)

    def step(self, x: Tensor, step: Step) -> Tensor:
        """The one new position of every beam, (B, beams, D) -> the same."""
        rows = x.reshape(1, -1, x.size(-1))
        out, _ = super().forward(rows, rows, rows, incremental_state=step.incremental_state, need_weights=False)
        return out.view_as(x)


class SourceState(NamedTuple):
    """What a cross attention keeps of the source, once per sentence.

    Attributes:
        key: (B, H, m, d).
        value: (B, H, m, d).
        beams: how many rows of the decoder each sentence has.
    """

    key: Tensor
    value: Tensor
    beams: int


class CrossAttention(_Attention):
    """Attention of the target to every position of the source: O(n m D), a step O(m D).

    In generation keys and values of the source are computed at the first step and kept once per
    sentence, whatever the number of beams.
    """

    def __init__(self, dim: int, source_dim: int, heads: int, dropout: float):
        super().__init__(dim, heads, kdim=source_dim, vdim=source_dim, dropout=dropout, encoder_decoder_attention=True)

    def forward(
        self, x: Tensor, source: Tensor, padding: Optional[Tensor] = None, need_weights: bool = False
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """Reads the source.

        Args:
            x: X, (B, n, D).
            source: the encoder's output, (B, m, D').
            padding: (B, m), True where the source is padded.
            need_weights: also return the weights.

        Returns:
            (B, n, D), and the weights before dropout, (B, H, n, m), or None.
        """
        if need_weights:
            # fairseq's whole pass would hand out those of all heads together, after dropout
            return self.read(x, *self.keys_values(source), padding, softmax_dtype=UNPACK_DTYPE)
        x, source = x.transpose(0, 1), source.transpose(0, 1)
        out, _ = super().forward(x, source, source, key_padding_mask=padding, need_weights=False)
        return out.transpose(0, 1), None

    def step(self, x: Tensor, source: Tensor, step: Step, padding: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """As `forward`, of the one new position of every beam, (B, beams, D)."""
        state = step.incremental_state
        if self not in state:
            state[self] = SourceState(*self.keys_values(source), x.size(1))
        key, value, _ = state[self]
        return self.read(x, key, value, padding, softmax_dtype=UNPACK_DTYPE)

    def reorder_incremental_state(self, incremental_state: Dict[Any, Any], new_order: Tensor) -> Dict[Any, Any]:
        """Called by fairseq when beams change places or sentences end. new_order: (rows',)."""
        if self in incremental_state:
            key, value, beams = incremental_state[self]
            kept, beams = by_sentence(torch.div(new_order, beams, rounding_mode="floor"))
            if not torch.equal(kept, torch.arange(len(key), device=kept.device)):
                incremental_state[self] = SourceState(key.index_select(0, kept), value.index_select(0, kept), beams)
        return incremental_state
