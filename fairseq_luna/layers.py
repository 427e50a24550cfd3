"""The Luna layers: residuals, normalisation and feed-forward around the attentions.

Besides the layers of encoder and decoder stands `SourceMemoryLayer`, the half of a decoder layer
that depends on the source alone.
"""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch.nn as nn
from fairseq import utils
from fairseq.modules import LayerNorm
from torch import Tensor

from .attention import (
    HeadProjection,
    KeyValue,
    LunaAttention,
    LunaCausalAttention,
    Pack,
    Unpack,
    linear,
)
from .dropout import Dropout


class Residual(nn.Module):
    """The way around a block f: LN(x + f(x)), as in the paper, or with pre-norm x + f(LN(x)).

    To be used as `x = residual.leave(x, f(residual.enter(x)))`.
    """

    def __init__(self, dim: int, dropout: float, pre_norm: bool):
        super().__init__()
        self.layer_norm = LayerNorm(dim)
        self.dropout = Dropout(dropout, module_name="LunaResidual")
        self.pre_norm = pre_norm

    def enter(self, x: Tensor) -> Tensor:
        """What the block reads."""
        return self.layer_norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """x and the block's result y, joined."""
        x = x + self.dropout(y)
        return x if self.pre_norm else self.layer_norm(x)


class FeedForward(nn.Module):
    """FFN(x) = W_2 act(W_1 x). (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int, hidden_dim: int, activation: str, activation_dropout: float):
        super().__init__()
        self.fc1 = linear(dim, hidden_dim)
        self.fc2 = linear(hidden_dim, dim)
        self.activation = utils.get_activation_fn(activation)
        self.dropout = Dropout(activation_dropout, module_name="FeedForward")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))


class LunaEncoderLayer(nn.Module):
    """X_A, P' = LN(Y_X + X), LN(Y_P + P);  X' = LN(FFN(X_A) + X_A)  (paper, section 3.2)."""

    def __init__(self, cfg: Any):
        super().__init__()
        dim, pre_norm = cfg.encoder_embed_dim, cfg.encoder_normalize_before
        self.self_attn = LunaAttention(
            dim,
            cfg.encoder_attention_heads,
            cfg.encoder_projected_attention_heads,
            tied=not cfg.untie_luna_kv,
            dropout=cfg.attention_dropout,
        )
        self.ffn = FeedForward(dim, cfg.encoder_ffn_embed_dim, cfg.activation_fn, cfg.activation_dropout)
        self.self_attn_residual = Residual(dim, cfg.dropout, pre_norm)
        self.packed_residual = Residual(dim, cfg.dropout, pre_norm)
        self.ffn_residual = Residual(dim, cfg.dropout, pre_norm)

    def forward(
        self, x: Tensor, packed: Tensor, padding: Optional[Tensor], hidden_slots: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """X (B, n, D), P (B, l, D), masks (B, n) and (B, l) -> X', P'."""
        attn, pack, ffn = self.self_attn_residual, self.packed_residual, self.ffn_residual
        y_x, y_p = self.self_attn(attn.enter(x), pack.enter(packed), padding, hidden_slots)
        x, packed = attn.leave(x, y_x), pack.leave(packed, y_p)
        x = ffn.leave(x, self.ffn(ffn.enter(x)))
        return x, packed


class SourceView(NamedTuple):
    """What one decoder layer sees of the source; the same at every step and for every beam.

    Attributes:
        causal_query: P as the query of the causal pack, (B, H, l, d).
        cross_key: keys of the cross attention's Y_P, (B, H, l, d).
        cross_value: its values, (B, H, l, d); the same tensor when tied.
    """

    causal_query: Tensor
    cross_key: Tensor
    cross_value: Tensor


class SourceMemoryLayer(nn.Module):
    """The half of a decoder layer that the source alone decides: P, and all that is made of it."""

    def __init__(self, cfg: Any, last: bool):
        super().__init__()
        dim, tied = cfg.encoder_embed_dim, not cfg.untie_luna_kv
        to_decoder = (dim, cfg.decoder_embed_dim, cfg.decoder_attention_heads)
        self.causal_query = HeadProjection(*to_decoder, is_query=True)
        self.pack = Pack(dim, cfg.decoder_projected_attention_heads, tied, cfg.attention_dropout)
        self.key_value = KeyValue(*to_decoder, tied)
        self.residual = Residual(dim, cfg.dropout, cfg.decoder_normalize_before)
        self.last = last
        if last and not cfg.decoder_normalize_before:
            # nobody reads the last P', and a norm without a gradient would stop DDP
            self.residual.layer_norm = None

    def forward(
        self, packed: Tensor, encoder_out: Tensor, padding: Optional[Tensor]
    ) -> Tuple[SourceView, Tensor, Tensor]:
        """P (B, l, D), encoder output (B, m, D), its mask (B, m) -> the layer's view of them, P'
        (in the last layer P) and the pack weights (B, H, l, m)."""
        y_p, weights = self.pack(self.residual.enter(packed), encoder_out, padding)
        key, value = self.key_value(y_p)
        # every step of a generation reads them, so their memory is put in order once
        ordered = key.contiguous()
        view = SourceView(
            self.causal_query(packed).contiguous(), ordered, ordered if value is key else value.contiguous()
        )
        return view, packed if self.last else self.residual.leave(packed, y_p), weights


class LunaDecoderLayer(nn.Module):
    """Causal self-attention, cross attention and feed-forward on the target (paper, section 3.3)."""

    def __init__(self, cfg: Any):
        super().__init__()
        dim, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
        self.self_attn = LunaCausalAttention(
            dim,
            heads,
            tied=not cfg.untie_luna_kv,
            dropout=cfg.attention_dropout,
            activation=cfg.causal_activation,
        )
        self.cross_attn = Unpack(dim, heads, cfg.attention_dropout)
        self.ffn = FeedForward(dim, cfg.decoder_ffn_embed_dim, cfg.activation_fn, cfg.activation_dropout)
        pre_norm = cfg.decoder_normalize_before
        self.self_attn_residual = Residual(dim, cfg.dropout, pre_norm)
        self.cross_attn_residual = Residual(dim, cfg.dropout, pre_norm)
        self.ffn_residual = Residual(dim, cfg.dropout, pre_norm)

    def forward(
        self,
        x: Tensor,
        view: SourceView,
        hidden_slots: Optional[Tensor],
        incremental_state: Optional[Dict[Any, Any]] = None,
    ) -> Tuple[Tensor, Tensor]:
        """X (B, n, D), the source as this layer sees it -> X' and unpack weights (B, H, n, l)."""
        attn, cross, ffn = self.self_attn_residual, self.cross_attn_residual, self.ffn_residual
        y = self.self_attn(attn.enter(x), view.causal_query, hidden_slots, incremental_state)
        x = attn.leave(x, y)
        y, weights = self.cross_attn(cross.enter(x), view.cross_key, view.cross_value, hidden_slots)
        x = cross.leave(x, y)
        x = ffn.leave(x, self.ffn(ffn.enter(x)))
        return x, weights
