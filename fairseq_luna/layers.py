"""The Luna layers: residuals, normalisation and feed-forward around the attentions.

Besides the layers of encoder and decoder stands `SourceMemoryLayer`, the half of a decoder layer
that depends on the source alone. In each of its three places Luna's attention can give way to an
ordinary one (`ordinary.py`).
"""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch.nn as nn
from fairseq import utils
from fairseq.distributed import fsdp_wrap
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
from .config import decoder_reads_packed
from .dropout import Dropout
from .ordinary import CausalSelfAttention, CrossAttention, SelfAttention
from .recompute import recomputed

# What gamma of a Gaussian bias begins with in the packs that the decoder reads, if their values are
# plain: slots nearly of a token each, where there are enough of them.
PLAIN_SHARPNESS = 4.0


def sharded(layer: nn.Module, cfg: Any) -> nn.Module:
    """The layer, with its parameters spread over GPUs if --ddp-backend fully_sharded asks for it and it is large."""
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class Residual(nn.Module):
    """The way around a block f: LN(x + f(x)), as in the paper, or with pre-norm x + f(LN(x)).

    To be used as `x = residual.leave(x, f(residual.enter(x)))`.
    """

    def __init__(self, cfg: Any, dim: int, pre_norm: bool, entered_only: bool = False):
        super().__init__()
        # never left, a post-norm has no norm: one without a gradient would stop DDP
        self.layer_norm: Any = LayerNorm(dim, export=cfg.export) if pre_norm or not entered_only else None
        self.dropout = Dropout(cfg.dropout, module_name="LunaResidual")
        self.pre_norm = pre_norm

    def enter(self, x: Tensor) -> Tensor:
        """What the block reads."""
        return self.layer_norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """x and the block's result y, joined."""
        x = x + self.dropout(y)
        return x if self.pre_norm else self.layer_norm(x)


class Slots(NamedTuple):
    """What is known of a batch's slots.

    Attributes:
        hidden: (B, l), True where a sentence has no such slot; None where all have all.
        positions: of `functional.slot_positions`, (B, m); None where nothing has a Gaussian bias.
    """

    hidden: Optional[Tensor]
    positions: Optional[Tensor]


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


class Layer(nn.Module):
    """A layer of a stack, which may be computed again for its gradients."""

    def __init__(self, cfg: Any):
        super().__init__()
        self.recompute, self.offload = cfg.checkpoint_activations, cfg.offload_activations


class LunaEncoderLayer(Layer):
    """X_A, P' = LN(Y_X + X), LN(Y_P + P);  X' = LN(FFN(X_A) + X_A)  (paper, section 3.2).

    With ordinary self-attention P stays as it is.
    """

    def __init__(self, cfg: Any, last: bool):
        super().__init__(cfg)
        dim, heads, pre_norm = cfg.encoder_embed_dim, cfg.encoder_attention_heads, cfg.encoder_normalize_before
        self.luna = cfg.encoder_self_attention == "luna"
        # nobody reads the last P' then
        self.updates_packed = self.luna and not (last and not decoder_reads_packed(cfg))
        if self.luna:
            self.self_attn = LunaAttention(
                dim,
                heads,
                cfg.encoder_projected_attention_heads,
                tied=not cfg.untie_luna_kv,
                dropout=cfg.attention_dropout,
                pack_bias=cfg.pack_bias,
                pack_values=cfg.pack_values,
                unpack_bias=cfg.encoder_unpack_bias,
            )
        else:
            self.self_attn = SelfAttention(dim, heads, cfg.attention_dropout)
        self.ffn = FeedForward(dim, cfg.encoder_ffn_embed_dim, cfg.activation_fn, cfg.activation_dropout)
        self.self_attn_residual = Residual(cfg, dim, pre_norm)
        if self.luna:
            self.packed_residual = Residual(cfg, dim, pre_norm, entered_only=not self.updates_packed)
        self.ffn_residual = Residual(cfg, dim, pre_norm)

    @recomputed
    def forward(self, x: Tensor, packed: Tensor, padding: Optional[Tensor], slots: Slots) -> Tuple[Tensor, Tensor]:
        """X (B, n, D), P (B, l, D), mask (B, n), what is known of the slots -> X', P'."""
        attn, ffn = self.self_attn_residual, self.ffn_residual
        if self.luna:
            pack = self.packed_residual
            y_x, y_p = self.self_attn(attn.enter(x), pack.enter(packed), padding, slots.hidden, slots.positions)
            packed = pack.leave(packed, y_p) if self.updates_packed else packed
        else:
            y_x = self.self_attn(attn.enter(x), padding)
        x = attn.leave(x, y_x)
        x = ffn.leave(x, self.ffn(ffn.enter(x)))
        return x, packed


class SourceView(NamedTuple):
    """What one decoder layer sees of the packed source; the same at every step and for every beam.

    Attributes:
        causal_query: P as the query of the causal pack, (B, H, l, d); None with ordinary self-attention.
        cross_key: keys of the cross attention's Y_P, (B, H, l, d); None with a full cross attention.
        cross_value: its values, (B, H, l, d); the same tensor when tied.
    """

    causal_query: Optional[Tensor]
    cross_key: Optional[Tensor]
    cross_value: Optional[Tensor]


class SourceMemoryLayer(Layer):
    """The half of a decoder layer that the source alone decides: P, and all that is made of it.

    With a full cross attention nothing packs, and P stays the encoder's.
    """

    def __init__(self, cfg: Any, last: bool):
        super().__init__(cfg)
        dim, tied = cfg.encoder_embed_dim, not cfg.untie_luna_kv
        to_decoder = (dim, cfg.decoder_embed_dim, cfg.decoder_attention_heads)
        self.causal_query = HeadProjection(*to_decoder, is_query=True) if cfg.decoder_self_attention == "luna" else None
        self.pack: Optional[Pack] = None
        if cfg.cross_attention == "packed":
            heads, pre_norm = cfg.decoder_projected_attention_heads, cfg.decoder_normalize_before
            plain = cfg.pack_values == "plain"
            sharpness = PLAIN_SHARPNESS if plain else 1.0
            self.pack = Pack(
                dim, heads, tied, cfg.attention_dropout, cfg.pack_bias, cfg.pack_values, sharpness=sharpness
            )
            # keys that are values too, of plain averages, were slower to learn (docs/quality-trials.md)
            self.key_value = KeyValue(*to_decoder, tied and not plain)
            # nobody reads the last P'
            self.residual = Residual(cfg, dim, pre_norm, entered_only=last)
        self.last = last

    @recomputed
    def forward(
        self,
        packed: Tensor,
        encoder_out: Tensor,
        padding: Optional[Tensor],
        slots: Slots,
        need_weights: bool = False,
    ) -> Tuple[SourceView, Tensor, Optional[Tensor]]:
        """P (B, l, D), encoder output (B, m, D), its mask (B, m), what is known of the slots -> the
        layer's view of them, P' (in the last layer P) and the pack weights (B, H, l, m), as `Pack` returns them."""
        query = key = value = weights = None
        # every step of a generation reads them, so their memory is put in order once
        if self.causal_query is not None:
            query = self.causal_query(packed).contiguous()
        if self.pack is not None:
            y_p, weights = self.pack(self.residual.enter(packed), encoder_out, padding, slots.positions, need_weights)
            plain_key, plain_value = self.key_value(y_p)
            key = plain_key.contiguous()
            value = key if plain_value is plain_key else plain_value.contiguous()
            packed = packed if self.last else self.residual.leave(packed, y_p)
        return SourceView(query, key, value), packed, weights


class Source(NamedTuple):
    """What all decoder layers see of the source.

    Attributes:
        out: the encoder's output, (B, m, D).
        padding: (B, m), True where the source is padded.
        hidden_slots: (B, l), True where a slot is not used; None where all are.
    """

    out: Tensor
    padding: Optional[Tensor]
    hidden_slots: Optional[Tensor]


class LunaDecoderLayer(Layer):
    """Causal self-attention, cross attention and feed-forward on the target (paper, section 3.3)."""

    def __init__(self, cfg: Any):
        super().__init__(cfg)
        dim, heads, dropout = cfg.decoder_embed_dim, cfg.decoder_attention_heads, cfg.attention_dropout
        self.luna = cfg.decoder_self_attention == "luna"
        self.packed = cfg.cross_attention == "packed"
        if self.luna:
            tied, activation = not cfg.untie_luna_kv, cfg.causal_activation
            self.self_attn = LunaCausalAttention(dim, heads, tied, dropout, activation, cfg.causal_mean)
        else:
            self.self_attn = CausalSelfAttention(dim, heads, dropout)
        if self.packed:
            self.cross_attn = Unpack(dim, heads, dropout)
        else:
            self.cross_attn = CrossAttention(dim, cfg.encoder_embed_dim, heads, dropout)
        self.ffn = FeedForward(dim, cfg.decoder_ffn_embed_dim, cfg.activation_fn, cfg.activation_dropout)
        pre_norm = cfg.decoder_normalize_before
        self.self_attn_residual = Residual(cfg, dim, pre_norm)
        self.cross_attn_residual = Residual(cfg, dim, pre_norm)
        self.ffn_residual = Residual(cfg, dim, pre_norm)

    @recomputed
    def forward(
        self,
        x: Tensor,
        source: Source,
        view: SourceView,
        incremental_state: Optional[Dict[Any, Any]] = None,
        need_weights: bool = False,
        whole: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """X (B, n, D), the source, and as this layer sees it -> X' and how much each position reads
        of each slot, or with a full cross attention of each source position, (B, H, n, l or m), if
        asked for. With `whole`, (B, n), True where X is padding, later positions are seen too."""
        attn, cross, ffn = self.self_attn_residual, self.cross_attn_residual, self.ffn_residual
        y = attn.enter(x)
        if self.luna:
            y = self.self_attn(y, view.causal_query, source.hidden_slots, incremental_state, whole)
        else:
            y = self.self_attn(y, incremental_state, whole)
        x = attn.leave(x, y)
        y = cross.enter(x)
        if self.packed:
            y, weights = self.cross_attn(
                y, view.cross_key, view.cross_value, source.hidden_slots, need_weights=need_weights
            )
        else:
            y, weights = self.cross_attn(y, source.out, source.padding, incremental_state, need_weights)
        x = cross.leave(x, y)
        x = ffn.leave(x, self.ffn(ffn.enter(x)))
        return x, weights if need_weights else None
