"""A layer of Luna's encoder (section 3.2 of the paper)."""

from functools import partial
from typing import Optional, Tuple, Union

from torch import Tensor

from .feed_forward import FeedForward
from .layer import Layer
from .linformer import LinformerAttention
from .luna_attention import LunaAttention
from .recompute import recomputed
from .residual import Residual
from .slot_info import SlotInfo
from .softmax_attention import SelfAttention


class LunaEncoderLayer(Layer):
    """X_A, P' = LN(Y_X + X), LN(Y_P + P);  X' = LN(FFN(X_A) + X_A).

    With another self-attention P stays as it is.

    Args:
        self_attn: Luna's attention, an ordinary one or Linformer's.
        ffn: the feed-forward.
        residual: makes a way around a block; takes `entered_only`.
        updates_packed: whether somebody reads P' of this layer.
        recompute: as in `Layer`.
        offload: as in `Layer`.
    """

    def __init__(
        self,
        self_attn: Union[LunaAttention, SelfAttention, LinformerAttention],
        ffn: FeedForward,
        residual: "partial[Residual]",
        updates_packed: bool = True,
        recompute: bool = False,
        offload: bool = False,
    ):
        super().__init__(recompute, offload)
        self.luna = isinstance(self_attn, LunaAttention)
        self.updates_packed = self.luna and updates_packed
        self.self_attn, self.ffn = self_attn, ffn
        self.self_attn_residual = residual()
        if self.luna:
            self.packed_residual = residual(entered_only=not self.updates_packed)
        self.ffn_residual = residual()

    @recomputed
    def forward(self, x: Tensor, packed: Tensor, padding: Optional[Tensor], slots: SlotInfo) -> Tuple[Tensor, Tensor]:
        """X (B, n, D), P (B, l, D), mask (B, n), what is known of the slots -> X', P'."""
        attn, ffn = self.self_attn_residual, self.ffn_residual
        if self.luna:
            pack = self.packed_residual
            y_x, y_p = self.self_attn(attn.enter(x), pack.enter(packed), padding, slots.padding, slots.positions)
            packed = pack.leave(packed, y_p) if self.updates_packed else packed
        else:
            y_x = self.self_attn(attn.enter(x), padding)
        x = attn.leave(x, y_x)
        x = ffn.leave(x, self.ffn(ffn.enter(x)))
        return x, packed
