"""The check of the settings: what makes a model, what contradicts itself, what is refused, what has no effect."""

import logging
from typing import Any, Dict

from fairseq import utils

from ...ops.causal.attention import CAUSAL_ACTIVATIONS
from ...ops.linear import PRODUCTS
from .. import checks
from ..checks import kept_layers
from .architectures import ARCHITECTURES, with_settings_of
from .config import (
    BIASES,
    CAUSAL_MEANS,
    CROSS_ATTENTIONS,
    ENCODER_ATTENTIONS,
    FOLLOWS,
    PACK_VALUES,
    SELF_ATTENTIONS,
    LunaTransformerConfig,
    has_packed,
)

logger = logging.getLogger(__name__)


def checked(cfg: Any) -> LunaTransformerConfig:
    """A complete and sound config of our own class from whatever fairseq hands over.

    Args:
        cfg: a dataclass, omegaconf or argparse object or a dictionary with the fields of `LunaTransformerConfig`.

    Raises:
        ValueError: if settings contradict each other or make no model.
    """
    values = checks.completed(cfg, LunaTransformerConfig, FOLLOWS)
    if values["alignment_layer"] is not None:
        values["alignment_layer"] = kept_alignment_layer(values)
    for side in ("encoder", "decoder"):
        name, layers = f"{side}_layers_to_keep", f"{side}_layers"
        kept = values[name] = kept_layers(name, values[name], values[layers])
        if kept is not None:
            values[layers] = len(kept)
    result = LunaTransformerConfig(**values)

    dims = "encoder_embed_dim", "encoder_ffn_embed_dim", "decoder_embed_dim", "decoder_ffn_embed_dim"
    counts = "encoder_layers", "decoder_layers", "max_source_positions", "max_target_positions"
    checks.check_sizes(values, ("projection_length", "linformer_length", *dims, *counts, "quant_noise_pq_block_size"))
    checks.check_slots(values)
    dropouts = "dropout", "attention_dropout", "activation_dropout", "word_dropout", "adaptive_softmax_dropout"
    checks.check_probabilities(values, (*dropouts, "encoder_layerdrop", "decoder_layerdrop", "quant_noise_pq"))
    checks.check_heads(
        values,
        (
            ("encoder", "encoder_embed_dim", "encoder_attention_heads"),
            ("encoder", "encoder_embed_dim", "encoder_projected_attention_heads"),
            ("decoder", "decoder_embed_dim", "decoder_attention_heads"),
            # P keeps the encoder's dimension in the decoder too
            ("encoder", "encoder_embed_dim", "decoder_projected_attention_heads"),
        ),
    )
    heads, most = values["alignment_heads"], values["decoder_attention_heads"]
    if not 1 <= heads <= most:
        raise ValueError(
            f"--alignment-heads must be from 1 to {most}, since --decoder-attention-heads is {most}, but is {heads}."
        )
    checks.check_blocks(values, dims)
    checks.check_adaptive_softmax(values)
    checks.check_choices(
        values,
        (
            ("causal_activation", list(CAUSAL_ACTIVATIONS)),
            ("causal_mean", CAUSAL_MEANS),
            ("pack_bias", BIASES),
            ("pack_values", PACK_VALUES),
            ("encoder_unpack_bias", BIASES),
            ("encoder_self_attention", ENCODER_ATTENTIONS),
            ("decoder_self_attention", SELF_ATTENTIONS),
            ("cross_attention", CROSS_ATTENTIONS),
            ("inference_precision", list(PRODUCTS)),
            ("activation_fn", utils.get_available_activation_fns()),
        ),
    )
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
    model, others = checks.given_by(cfg, "_name"), with_settings_of(result)
    if model in ARCHITECTURES and others not in (None, model):
        # a YAML of an earlier version lists all settings and does not say whose they are
        logger.warning(f"The model is named {model}, but all its settings are those of {others}.")
    checks.tell_unread(result, read_by(result), FOLLOWS)
    return result


def kept_alignment_layer(values: Dict[str, Any]) -> int:
    """The number, among the decoder's layers that are kept, of the one that aligns.

    Raises:
        ValueError: if there is no such layer, or it is not kept.
    """
    layer, layers = values["alignment_layer"], values["decoder_layers"]
    if not 0 <= layer < layers:
        raise ValueError(
            f"--alignment-layer must be from 0 to {layers - 1}, since --decoder-layers is {layers}, but is {layer}."
        )
    kept = kept_layers("decoder_layers_to_keep", values["decoder_layers_to_keep"], layers)
    if kept is not None and layer not in kept:
        raise ValueError(
            f"--alignment-layer {layer} is left out by --decoder-layers-to-keep {','.join(map(str, kept))}: keep it, "
            "or set another by --model-overrides."
        )
    return layer if kept is None else kept.index(layer)


def encoder_reads(cfg: Any) -> Dict[str, bool]:
    """Which settings an encoder reads, of those that some encoders do not. The classifier's is one, too."""
    luna, linformer = cfg.encoder_self_attention == "luna", cfg.encoder_self_attention == "linformer"
    packed = has_packed(cfg)
    return {
        "fix_projection_length": packed,
        "tokens_per_slot": packed,
        "most_tokens_per_slot": packed,
        "varied_share": cfg.most_tokens_per_slot is not None,
        "untie_luna_kv": packed,
        "pack_bias": luna,
        "pack_values": luna,
        "encoder_unpack_bias": not linformer,
        "linformer_length": linformer,
        "linformer_per_head": linformer,
        "encoder_projected_attention_heads": luna,
        "quant_noise_pq_block_size": cfg.quant_noise_pq > 0,
    }


def read_by(cfg: Any) -> Dict[str, bool]:
    """Which settings the encoder and the decoder read, of those that some models do not."""
    encoder, cross = encoder_reads(cfg), cfg.cross_attention == "packed"
    return {
        **encoder,
        "pack_bias": encoder["pack_bias"] or cross,
        "pack_values": encoder["pack_values"] or cross,
        "decoder_projected_attention_heads": cross,
        "causal_activation": cfg.decoder_self_attention == "luna",
        "no_decoder_final_norm": cfg.decoder_normalize_before,
        "adaptive_softmax_dropout": cfg.adaptive_softmax_cutoff is not None,
        "adaptive_softmax_factor": cfg.adaptive_softmax_cutoff is not None,
        # all embeddings are shared without it
        "share_decoder_input_output_embed": cfg.adaptive_softmax_cutoff is None or cfg.share_all_embeddings,
    }
