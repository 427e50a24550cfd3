"""The check of the settings: what makes a model, what contradicts itself, what is refused, what has no effect."""

import logging
from typing import Any, Dict, List, Optional

from fairseq import models, utils

from ...ops.causal.attention import CAUSAL_ACTIVATIONS
from ...ops.linear import PRODUCTS
from .architectures import ARCHITECTURES, with_settings_of
from .config import (
    BIASES,
    CAUSAL_MEANS,
    CROSS_ATTENTIONS,
    FOLLOWS,
    PACK_VALUES,
    SELF_ATTENTIONS,
    LunaTransformerConfig,
    flag,
    has_packed,
)
from .refused import RefusedSettings

logger = logging.getLogger(__name__)


def checked(cfg: Any) -> LunaTransformerConfig:
    """A complete and sound config of our own class from whatever fairseq hands over.

    Args:
        cfg: a dataclass, omegaconf or argparse object or a dictionary with the fields of `LunaTransformerConfig`.

    Raises:
        ValueError: if settings contradict each other or make no model.
    """

    def given(name: str) -> Any:
        return cfg.get(name) if isinstance(cfg, dict) else getattr(cfg, name, None)

    model, arch = given("_name"), given("arch")
    if model and arch and arch != _arch_of(model):
        raise ValueError(
            f"The model is named {model}, but its settings are listed and are those of {arch}: a name alone does not "
            f"change them. Choose the model by model={model}, or by --arch {model}."
        )
    values: Dict[str, Any] = {}
    for name, setting in LunaTransformerConfig.__dataclass_fields__.items():
        if not name.startswith("_"):
            # a checkpoint of an earlier version lacks what has come since
            value = given(name)
            values[name] = setting.default if value is None else value
    for name, leader in FOLLOWS.items():
        if values[name] is None:
            values[name] = values[leader]
    refuse(values)
    if values["alignment_layer"] is not None:
        values["alignment_layer"] = kept_alignment_layer(values)
    for side in ("encoder", "decoder"):
        name, layers = f"{side}_layers_to_keep", f"{side}_layers"
        kept = values[name] = kept_layers(name, values[name], values[layers])
        if kept is not None:
            values[layers] = len(kept)
    values["checkpoint_activations"] = values["checkpoint_activations"] or values["offload_activations"]
    if values["adaptive_softmax_cutoff"] is not None:
        values["adaptive_softmax_cutoff"] = list(values["adaptive_softmax_cutoff"])
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
        "quant_noise_pq_block_size",
    ):
        if values[name] < 1:
            raise ValueError(f"{flag(name)} must be at least 1, but is {values[name]}.")
    for name in (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "word_dropout",
        "encoder_layerdrop",
        "decoder_layerdrop",
        "quant_noise_pq",
        "adaptive_softmax_dropout",
    ):
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
    heads, most = values["alignment_heads"], values["decoder_attention_heads"]
    if not 1 <= heads <= most:
        raise ValueError(
            f"--alignment-heads must be from 1 to {most}, since --decoder-attention-heads is {most}, but is {heads}."
        )
    if values["quant_noise_pq"] > 0:
        size = values["quant_noise_pq_block_size"]
        for name in ("encoder_embed_dim", "encoder_ffn_embed_dim", "decoder_embed_dim", "decoder_ffn_embed_dim"):
            if values[name] % size:
                raise ValueError(f"--quant-noise-pq-block-size {size} does not divide {flag(name)} {values[name]}.")
    check_adaptive_softmax(values)
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
    others = with_settings_of(result)
    if model in ARCHITECTURES and others not in (None, model):
        # a YAML of an earlier version lists all settings and does not say whose they are
        logger.warning(f"The model is named {model}, but all its settings are those of {others}.")
    for name in without_effect(result):
        logger.warning(f"{flag(name)} {values[name]} has no effect: nothing in this model reads it.")
    return result


def _arch_of(model: str) -> str:
    """The architecture whose settings a model has by default: that of its name, or of what its settings extend."""
    return getattr(models.MODEL_DATACLASS_REGISTRY.get(model), "arch", model)


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


def kept_layers(name: str, given: Any, layers: int) -> Optional[List[int]]:
    """The numbers in a setting such as `encoder_layers_to_keep`, ascending; None for all of so many layers.

    Raises:
        ValueError: if it does not list layers of the model, each once.
    """
    if given in (None, ""):
        return None
    listed = given.split(",") if isinstance(given, str) else [given] if isinstance(given, int) else list(given)
    try:
        numbers = sorted(map(int, listed))
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len({*numbers}) < len(numbers) or not 0 <= numbers[0] <= numbers[-1] < layers:
        raise ValueError(
            f"{flag(name)} {','.join(map(str, listed))} must list layers to keep, each once, from 0 to {layers - 1}."
        )
    return numbers


def check_adaptive_softmax(values: Dict[str, Any]) -> None:
    """Looks at the bands of words.

    Raises:
        ValueError: if they do not follow each other, or one would have no dimension.
    """
    cutoffs, factor = values["adaptive_softmax_cutoff"], values["adaptive_softmax_factor"]
    if cutoffs is None:
        return
    told = f"--adaptive-softmax-cutoff {','.join(map(str, cutoffs))}"
    if not cutoffs or cutoffs != sorted({*cutoffs}) or cutoffs[0] < 1:
        raise ValueError(f"{told} must be rising numbers of words, from 1, e.g. 2000,10000.")
    if not factor >= 1 or values["decoder_embed_dim"] // factor ** len(cutoffs) < 1:
        raise ValueError(
            f"--adaptive-softmax-factor {factor} must be at least 1, and so small that --decoder-embed-dim "
            f"{values['decoder_embed_dim']} can be divided by it for each of the {len(cutoffs)} bands of {told}."
        )


def refuse(values: Dict[str, Any]) -> None:
    """Refuses what the Transformer takes and Luna does not.

    Raises:
        ValueError: with the first such setting that is not off, and what to do instead.
    """
    for name, setting in RefusedSettings.__dataclass_fields__.items():
        # private fields are fairseq's
        if name.startswith("_") or values[name] in (setting.default, values.get(setting.metadata["same_as"])):
            continue
        given = flag(name) if values[name] is True else f"{flag(name)} {values[name]}"
        raise ValueError(f"{given} does not go with Luna: {setting.metadata['instead']}.")


def without_effect(cfg: Any) -> List[str]:
    """The settings other than the defaults that nothing in a model reads."""
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
        "no_decoder_final_norm": cfg.decoder_normalize_before,
        "quant_noise_pq_block_size": cfg.quant_noise_pq > 0,
        "adaptive_softmax_dropout": cfg.adaptive_softmax_cutoff is not None,
        "adaptive_softmax_factor": cfg.adaptive_softmax_cutoff is not None,
        # all embeddings are shared without it
        "share_decoder_input_output_embed": cfg.adaptive_softmax_cutoff is None or cfg.share_all_embeddings,
    }
    fields = LunaTransformerConfig.__dataclass_fields__
    usual = {name: getattr(cfg, FOLLOWS[name]) if name in FOLLOWS else fields[name].default for name in read}
    return [name for name, is_read in read.items() if not is_read and getattr(cfg, name) != usual[name]]
