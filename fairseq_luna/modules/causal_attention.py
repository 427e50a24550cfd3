"""Luna's causal self-attention as a module (section 3.3 of the paper)."""

import functools
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor

from ..ops.causal.attention import Projections, causal_attention
from ..ops.causal.state import Share
from ..ops.causal.step import CausalState, causal_attention_step
from .dropout import Dropout
from .head_projection import HeadProjection, KeyValue
from .linear import linear


@functools.lru_cache(maxsize=None)
def head_decays(heads: int, device: torch.device) -> Tensor:
    """lambda of each head, (H,), in float64: 1/2, 3/4, 7/8 ... so that the head h remembers about 2^h positions."""
    with torch.inference_mode(False):  # or they would be of no use in training
        return 1 - torch.pow(0.5, torch.arange(1, heads + 1, dtype=torch.float64, device=device))


class LunaCausalAttention(nn.Module):
    """Luna's causal self-attention, in parallel or step by step.

    P is read, not updated, and comes projected: in translation it depends on the source alone.

    Args:
        dim: D, of X.
        heads: H.
        tied: whether one projection makes keys and values.
        dropout: probability, of the weights.
        activation: w of the pack, a key of `CAUSAL_ACTIVATIONS`.
        decaying: whether the past counts less the farther back it is, at a rate of each head's own.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tied: bool = True,
        dropout: float = 0.0,
        activation: str = "softplus",
        decaying: bool = False,
    ):
        super().__init__()
        self.query = HeadProjection(dim, dim, heads, is_query=True)
        self.pack_key = HeadProjection(dim, dim, heads)
        self.key_value = KeyValue(dim, dim, heads, tied)
        self.out = linear(dim, dim)
        self.dropout = Dropout(dropout, module_name="LunaCausalAttention")
        self.activation, self.decaying = activation, decaying

    def forward(
        self,
        x: Tensor,
        pack_query: Tensor,
        slot_padding: Optional[Tensor] = None,
        whole: Optional[Tensor] = None,
    ) -> Tensor:
        """Attends to the positions up to each one's own.

        Args:
            x: X, (B, n, D).
            pack_query: projected and scaled P, (B, H, l, d).
            slot_padding: (B, l), True where a slot is not used.
            whole: (B, n), True where X is padding: attends to all other positions, later ones too.

        Returns:
            (B, n, D).
        """
        projections, decay = self.projections(), self.decays(x.device)
        y = causal_attention(x, pack_query, projections, self.activation, slot_padding, decay, self.dropout, whole)
        return self.out(y)

    def step(
        self,
        x: Tensor,
        pack_query: Tensor,
        state: Optional[CausalState],
        share: Share,
        slot_padding: Optional[Tensor] = None,
        in_place: bool = False,
    ) -> Tuple[Tensor, CausalState]:
        """Attends to the past of each beam, on its state.

        Args:
            x: the one new position of every beam, (B, beams, D).
            pack_query: as in `forward`.
            state: of all B * beams rows after the last step, None before the first.
            share: 1/w_t of `ops.causal.state.share_of_step`, with the `decays`.
            slot_padding: as in `forward`.
            in_place: whether the new state may take the memory of the old one; gradients would need that.

        Returns:
            (B, beams, D) and the new state.
        """
        projections = self.projections()
        y, state = causal_attention_step(
            x, pack_query, projections, self.activation, state, share, slot_padding, self.dropout, in_place
        )
        return self.out(y), state

    def reorder_incremental_state(self, incremental_state: Dict[Any, Any], new_order: Tensor) -> None:
        """Called by fairseq when beams change places or sentences end. new_order: (B',)."""
        if self in incremental_state:
            incremental_state[self] = incremental_state[self].reorder(new_order)

    def decays(self, device: torch.device) -> Optional[Tensor]:
        """lambda of each head, (H,); None for a uniform mean."""
        return head_decays(self.query.heads, device) if self.decaying else None

    def projections(self) -> Projections:
        """Of X, as operators take them."""
        query = self.query.projection()
        key, value = self.key_value.projections()
        return Projections(query, key, value, self.pack_key.projection())
