"""The check of the settings: what makes a model, what contradicts itself, what is refused, what has no effect."""

import logging
from typing import Any, Dict, List

from fairseq import utils

from .config import (
    BIASES,
    CAUSAL_MEANS,
    CROSS_ATTENTIONS,
    FOLLOWS,
    PACK_VALUES,
    SELF_ATTENTIONS,
    LunaTransformerConfig,
    has_packed,
)
from .functional import CAUSAL_ACTIVATIONS
from .inference import PRODUCTS

logger = logging.getLogger(__name__)


def checked(cfg: Any) -> LunaTransformerConfig:
    """A complete and sound config of our own class from whatever fairseq hands over.

    Args:
        cfg: a dataclass, omegaconf or argparse object or a dictionary with the fields of `LunaTransformerConfig`.

    Raises:
        ValueError: if settings contradict each other or make no model.
    """
    values: Dict[str, Any] = {}
    for name, setting in LunaTransformerConfig.__dataclass_fields__.items():
        if not name.startswith("_"):
            # a checkpoint of an earlier version lacks what has come since
            value = cfg.get(name) if isinstance(cfg, dict) else getattr(cfg, name, None)
            values[name] = setting.default if value is None else value
    for name, leader in FOLLOWS.items():
        if values[name] is None:
            values[name] = values[leader]
    result = LunaTransformerConfig(**values)

    for name in (
        "projection_length",
        "encoder_embed_dim",
        "encoder_ffn_embed_dim",
        "decoder_embed_dim",
        "decoder_ffn_embed_dim",
        "encoder_layers",
        "decoder_layers",
        "max_source_positions",
        "max_target_positions",
    ):
        if values[name] < 1:
            raise ValueError(f"{flag(name)} must be at least 1, but is {values[name]}.")
    for name in ("dropout", "attention_dropout", "activation_dropout", "word_dropout"):
        if not 0 <= values[name] < 1:
            raise ValueError(f"{flag(name)} must be in [0, 1), but is {values[name]}.")
    for side, dim_name, heads_name in (
        ("encoder", "encoder_embed_dim", "encoder_attention_heads"),
        ("encoder", "encoder_embed_dim", "encoder_projected_attention_heads"),
        ("decoder", "decoder_embed_dim", "decoder_attention_heads"),
        # P keeps the encoder's dimension in the decoder too
        ("encoder", "encoder_embed_dim", "decoder_projected_attention_heads"),
    ):
        dim, heads = values[dim_name], values[heads_name]
        if heads < 1 or dim % heads:
            fits = [str(h) for h in range(1, min(dim, 64) + 1) if dim % h == 0]
            raise ValueError(
                f"{flag(heads_name)} {heads} does not divide {flag(dim_name)} {dim} "
                f"of the {side}; possible are {', '.join(fits)}."
            )
    for name, choices in (
        ("causal_activation", list(CAUSAL_ACTIVATIONS)),
        ("causal_mean", CAUSAL_MEANS),
        ("pack_bias", BIASES),
        ("pack_values", PACK_VALUES),
        ("encoder_unpack_bias", BIASES),
        ("encoder_self_attention", SELF_ATTENTIONS),
        ("decoder_self_attention", SELF_ATTENTIONS),
        ("cross_attention", CROSS_ATTENTIONS),
        ("inference_precision", list(PRODUCTS)),
        ("activation_fn", utils.get_available_activation_fns()),
    ):
        if values[name] not in choices:
            raise ValueError(f"{flag(name)} {values[name]!r} is unknown; choose from {', '.join(choices)}.")
    if values["share_all_embeddings"]:
        if values["encoder_embed_dim"] != values["decoder_embed_dim"]:
            raise ValueError(
                f"--share-all-embeddings needs one dimension, but --encoder-embed-dim is "
                f"{values['encoder_embed_dim']} and --decoder-embed-dim {values['decoder_embed_dim']}."
            )
        if values["decoder_embed_path"] not in (None, values["encoder_embed_path"]):
            raise ValueError(
                "--share-all-embeddings takes --encoder-embed-path alone, but "
                f"--decoder-embed-path {values['decoder_embed_path']} was given too."
            )
        result.share_decoder_input_output_embed = True
    for name in without_effect(result):
        logger.warning(f"{flag(name)} {values[name]} has no effect: nothing in this model reads it.")
    return result


def without_effect(cfg: Any) -> List[str]:
    """The settings other than the paper's that no attention of a model reads."""
    encoder, causal, cross = (
        cfg.encoder_self_attention == "luna",
        cfg.decoder_self_attention == "luna",
        cfg.cross_attention == "packed",
    )
    read = {
        "fix_projection_length": has_packed(cfg),
        "untie_luna_kv": has_packed(cfg),
        "pack_bias": encoder or cross,
        "pack_values": encoder or cross,
        "encoder_unpack_bias": encoder,
        "encoder_projected_attention_heads": encoder,
        "decoder_projected_attention_heads": cross,
        "causal_activation": causal,
        "causal_mean": causal,
    }
    fields = LunaTransformerConfig.__dataclass_fields__
    usual = {name: getattr(cfg, FOLLOWS[name]) if name in FOLLOWS else fields[name].default for name in read}
    return [name for name, is_read in read.items() if not is_read and getattr(cfg, name) != usual[name]]


def flag(name: str) -> str:
    """encoder_layers -> --encoder-layers"""
    return "--" + name.replace("_", "-")
