"""The named architectures: what each sets beside the defaults, and its settings as a class."""

from typing import Any, Dict, Optional

from ... import renamed
from ...renamed import current
from ..registration import config_of
from .config import LunaTransformerConfig

# The paper's large models are post-norm. What goes beyond it trains better with pre-norm (docs/notes/trials.md).
PRE_NORM: Dict[str, Any] = {"encoder_normalize_before": True, "decoder_normalize_before": True}
WMT: Dict[str, Any] = {"attention_dropout": 0.1, "activation_dropout": 0.1}
TINY: Dict[str, Any] = {
    **PRE_NORM,
    "projection_length": 16,
    "encoder_embed_dim": 128,
    "encoder_ffn_embed_dim": 512,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "dropout": 0.05,
}
# With the feed-forwards below, local and hybrid models have 3 % more parameters than a Transformer.
# Local: all is packed, so that a step costs the same at any length. Slots stand in the order of the source. With l = 32
# most sentences have a slot for nearly every token.
LOCAL: Dict[str, Any] = {
    **PRE_NORM,
    "projection_length": 32,
    "pack_values": "unprojected",
    "causal_mean": "decaying",
    "pack_bias": "gaussian",
    "encoder_unpack_bias": "gaussian",
}
# Hybrid: self-attentions are Luna's, linear in the source and of constant state. The decoder reads all of the source.
HYBRID: Dict[str, Any] = {
    **PRE_NORM,
    "cross_attention": "softmax",
    "causal_mean": "decaying",
    "pack_bias": "gaussian",
    "encoder_unpack_bias": "gaussian",
}

# What each named architecture sets beside the defaults. `make settings` writes the same as YAML, to configs/model/.
# A setting that comes later stays out of the older ones: their checkpoints were trained with its default.
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "luna_transformer": {},
    "luna_transformer_local": {**LOCAL, "encoder_ffn_embed_dim": 1664},
    "luna_transformer_hybrid": {**HYBRID, "encoder_ffn_embed_dim": 1920},
    "luna_transformer_tiny": TINY,
    "luna_transformer_tiny_local": {**TINY, **LOCAL, "encoder_ffn_embed_dim": 416},
    "luna_transformer_tiny_hybrid": {**TINY, **HYBRID, "encoder_ffn_embed_dim": 480},
    "luna_transformer_iwslt_de_en": {
        "encoder_ffn_embed_dim": 1024,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
    "luna_transformer_wmt_en_de": WMT,
    "luna_transformer_wmt_en_de_untied": {**WMT, "untie_luna_kv": True},
    "luna_transformer_wmt_en_de_local": {**WMT, **LOCAL, "encoder_ffn_embed_dim": 1664},
    "luna_transformer_wmt_en_de_hybrid": {**WMT, **HYBRID, "encoder_ffn_embed_dim": 1920},
    "luna_transformer_wmt_en_de_big": {
        **WMT,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "dropout": 0.3,
    },
}

ALL_PACKED = "with l = 32; slots and the decoder's past are local"
ALL_READ = "a decoder that reads all of the source; slots and the decoder's past are local"
DESCRIPTIONS = {
    "luna_transformer": "the paper's base size with l = 32",
    "luna_transformer_local": f"luna_transformer {ALL_PACKED}",
    "luna_transformer_hybrid": f"luna_transformer with {ALL_READ}",
    "luna_transformer_tiny": "the size of scripts/quickstart.sh",
    "luna_transformer_tiny_local": f"luna_transformer_tiny {ALL_PACKED}",
    "luna_transformer_tiny_hybrid": f"luna_transformer_tiny with {ALL_READ}",
    "luna_transformer_iwslt_de_en": "for corpora of 100,000 to 300,000 pairs",
    "luna_transformer_wmt_en_de": "the paper's WMT14 English-German model, tied keys and values",
    "luna_transformer_wmt_en_de_untied": "the paper's WMT14 English-German model, untied keys and values",
    "luna_transformer_wmt_en_de_local": f"luna_transformer_wmt_en_de {ALL_PACKED}",
    "luna_transformer_wmt_en_de_hybrid": f"luna_transformer_wmt_en_de with {ALL_READ}",
    "luna_transformer_wmt_en_de_big": "the dimensions of Transformer-big",
}


def with_settings_of(cfg: Any) -> Optional[str]:
    """The named architecture whose settings a model has, whatever it is named; None where no architecture has them.

    Args:
        cfg: with the settings of a `LunaTransformerConfig` as attributes.
    """
    usual = {key: getattr(LunaTransformerConfig, key) for settings in ARCHITECTURES.values() for key in settings}
    has = {key: current(key, getattr(cfg, key, default)) for key, default in usual.items()}
    return next((arch for arch, settings in ARCHITECTURES.items() if {**usual, **settings} == has), None)


CONFIGS = {
    arch: config_of(arch, settings, DESCRIPTIONS[arch], LunaTransformerConfig, globals())
    for arch, settings in ARCHITECTURES.items()
}
# those of earlier versions, each with the settings of the one that it is called now
FORMER_CONFIGS = {
    before: config_of(before, ARCHITECTURES[now], f"{now}, by its former name", LunaTransformerConfig, globals())
    for before, now in renamed.ARCHITECTURES.items()
}
