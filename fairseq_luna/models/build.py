"""Layers of the settings: the one place where those become arguments of modules.

Parts are made in the order in which they draw their first weights, so that a seed says how a model begins.
"""

from functools import partial
from typing import Any, Tuple

import torch.nn as nn
from fairseq.distributed import fsdp_wrap

from ..modules.causal_attention import LunaCausalAttention
from ..modules.decoder_layer import LunaDecoderLayer
from ..modules.encoder_layer import LunaEncoderLayer
from ..modules.feed_forward import FeedForward
from ..modules.head_projection import HeadProjection, KeyValue
from ..modules.linformer import LinformerAttention
from ..modules.local_attention import DecayingSelfAttention, LocalSelfAttention
from ..modules.luna_attention import LunaAttention
from ..modules.pack import Pack
from ..modules.residual import Residual
from ..modules.softmax_attention import CausalSelfAttention, CrossAttention, SelfAttention
from ..modules.source_layer import SourceMemoryLayer
from ..modules.unpack import Unpack

# What gamma of a Gaussian bias begins with: in packs, in the encoder's unpacks, and in the packs that the decoder reads
# if their values are plain: slots nearly of a token each, where there are enough of them.
PACK_SHARPNESS = 1.0
UNPACK_SHARPNESS = 0.5
PLAIN_SHARPNESS = 4.0
# Of softmax attention with a bias in the encoder, in tokens. In Luna's encoder a position reads slots, which read
# positions. The variances of the two add up, so softmax attention begins as local as that with a third.
SELF_SHARPNESS = 1 / (1 / PACK_SHARPNESS + 1 / UNPACK_SHARPNESS)


def encoder_layer(cfg: Any, updates_packed: bool) -> nn.Module:
    """A layer of the encoder, and whether somebody reads its P'. cfg: a `LunaTransformerConfig`, checked."""
    dim, heads, dropout = cfg.encoder_embed_dim, cfg.encoder_attention_heads, cfg.attention_dropout
    attn: Any
    if cfg.encoder_self_attention == "luna":
        attn = LunaAttention(
            dim,
            heads,
            cfg.encoder_projected_attention_heads,
            tied=not cfg.untie_luna_kv,
            dropout=dropout,
            plain=cfg.pack_values == "unprojected",
            pack_sharpness=PACK_SHARPNESS if cfg.pack_bias == "gaussian" else None,
            unpack_sharpness=UNPACK_SHARPNESS if cfg.encoder_unpack_bias == "gaussian" else None,
        )
    elif cfg.encoder_self_attention == "linformer":
        longest, length = cfg.max_source_positions, cfg.linformer_length
        attn = LinformerAttention(dim, heads, longest, length, cfg.linformer_per_head, dropout)
    elif cfg.encoder_unpack_bias == "gaussian":
        attn = LocalSelfAttention(dim, heads, dropout, SELF_SHARPNESS)
    else:
        attn = SelfAttention(dim, heads, dropout)
    ffn = FeedForward(dim, cfg.encoder_ffn_embed_dim, cfg.activation_fn, cfg.activation_dropout)
    residual = _residual(cfg, dim, cfg.encoder_normalize_before)
    return _sharded(cfg, LunaEncoderLayer(attn, ffn, residual, updates_packed, *_recomputing(cfg)))


def source_memory_layer(cfg: Any, last: bool) -> nn.Module:
    """What the source alone decides of a decoder layer. cfg: a `LunaTransformerConfig`, checked."""
    dim, tied, plain = cfg.encoder_embed_dim, not cfg.untie_luna_kv, cfg.pack_values == "unprojected"
    to_decoder = (dim, cfg.decoder_embed_dim, cfg.decoder_attention_heads)
    query = HeadProjection(*to_decoder, is_query=True) if cfg.decoder_self_attention == "luna" else None
    pack = key_value = residual = None
    if cfg.cross_attention == "packed":
        sharpness = None
        if cfg.pack_bias == "gaussian":
            sharpness = PLAIN_SHARPNESS if plain else PACK_SHARPNESS
        heads = cfg.decoder_projected_attention_heads
        pack = Pack(dim, heads, tied, cfg.attention_dropout, plain, sharpness)
        # keys that are values too, of plain averages, were slower to learn (docs/notes/trials.md)
        key_value = KeyValue(*to_decoder, tied and not plain)
        residual = _residual(cfg, dim, cfg.decoder_normalize_before)(entered_only=last)
    return _sharded(cfg, SourceMemoryLayer(query, pack, key_value, residual, last, *_recomputing(cfg)))


def decoder_layer(cfg: Any) -> nn.Module:
    """A layer of the decoder. cfg: a `LunaTransformerConfig` or `LunaLanguageModelConfig`, checked."""
    dim, heads, dropout = cfg.decoder_embed_dim, cfg.decoder_attention_heads, cfg.attention_dropout
    attn: Any
    cross: Any
    decaying = cfg.causal_mean == "decaying"
    if cfg.decoder_self_attention == "luna":
        tied = not cfg.untie_luna_kv
        attn = LunaCausalAttention(dim, heads, tied, dropout, cfg.causal_activation, decaying)
    else:
        attn = (DecayingSelfAttention if decaying else CausalSelfAttention)(dim, heads, dropout)
    if cfg.cross_attention == "none":
        cross = None
    elif cfg.cross_attention == "packed":
        cross = Unpack(dim, heads, dropout)
    else:
        cross = CrossAttention(dim, cfg.encoder_embed_dim, heads, dropout)
    ffn = FeedForward(dim, cfg.decoder_ffn_embed_dim, cfg.activation_fn, cfg.activation_dropout)
    residual = _residual(cfg, dim, cfg.decoder_normalize_before)
    return _sharded(cfg, LunaDecoderLayer(attn, cross, ffn, residual, *_recomputing(cfg)))


def _residual(cfg: Any, dim: int, pre_norm: bool) -> "partial[Residual]":
    return partial(Residual, dim, pre_norm, cfg.dropout, cfg.export)


def _recomputing(cfg: Any) -> Tuple[bool, bool]:
    return cfg.checkpoint_activations, cfg.offload_activations


def _sharded(cfg: Any, layer: nn.Module) -> nn.Module:
    """The layer, with its parameters spread over GPUs if --ddp-backend fully_sharded asks for it and it is large."""
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)
