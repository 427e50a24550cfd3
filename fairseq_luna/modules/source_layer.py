"""The half of a decoder layer that the source alone decides (section 3.3 of the paper)."""

from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from .head_projection import HeadProjection, KeyValue
from .layer import Layer
from .pack import Pack
from .recompute import recomputed
from .residual import Residual
from .slot_info import SlotInfo


class SourceView(NamedTuple):
    """What one decoder layer sees of the packed source; the same at every step and for every beam.

    Attributes:
        causal_query: P as the query of the causal pack, (B, H, l, d); None with ordinary self-attention.
        cross_key: keys of the cross attention's Y_P, (B, H, l, d); None with a softmax cross attention.
        cross_value: its values, (B, H, l, d); None where the keys are the values (tied).
    """

    causal_query: Optional[Tensor] = None
    cross_key: Optional[Tensor] = None
    cross_value: Optional[Tensor] = None


class SourceMemoryLayer(Layer):
    """P of a decoder layer, and all that is made of it.

    With a softmax cross attention nothing packs, and P stays the encoder's.

    Args:
        causal_query: of the decoder's causal pack; None with ordinary self-attention.
        pack: of the encoder's output; None with a softmax cross attention.
        key_value: of what is packed; None with `pack`.
        residual: around the pack; None with `pack`.
        last: whether nobody reads P'.
        recompute: as in `Layer`.
        offload: as in `Layer`.
    """

    def __init__(
        self,
        causal_query: Optional[HeadProjection],
        pack: Optional[Pack] = None,
        key_value: Optional[KeyValue] = None,
        residual: Optional[Residual] = None,
        last: bool = False,
        recompute: bool = False,
        offload: bool = False,
    ):
        super().__init__(recompute, offload)
        self.causal_query, self.pack, self.last = causal_query, pack, last
        if pack is not None:
            assert key_value is not None and residual is not None
            self.key_value, self.residual = key_value, residual

    @recomputed
    def forward(
        self,
        packed: Tensor,
        encoder_out: Tensor,
        padding: Optional[Tensor],
        slots: SlotInfo,
        need_weights: bool = False,
    ) -> Tuple[SourceView, Tensor, Optional[Tensor]]:
        """P (B, l, D), encoder output (B, m, D), its mask (B, m), what is known of the slots -> the
        layer's view of them, P' (in the last layer P) and the pack weights (B, H, l, m), as `Pack` returns them."""
        query = key = value = weights = None
        if self.causal_query is not None:
            query = _for_steps(self.causal_query(packed))
        if self.pack is not None:
            y_p, weights = self.pack(self.residual.enter(packed), encoder_out, padding, slots.positions, need_weights)
            key, value = map(_for_steps, self.key_value(y_p))
            packed = packed if self.last else self.residual.leave(packed, y_p)
        return SourceView(query, key, value), packed, weights


def _for_steps(x: Optional[Tensor]) -> Optional[Tensor]:
    """Contiguous for a generation, which reads it at every step. A training reads it once, as it is."""
    return x if x is None or torch.is_grad_enabled() else x.contiguous()
