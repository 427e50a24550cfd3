"""The model's settings, the named architectures, and the check of both."""

import logging
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from .functional import CAUSAL_ACTIVATIONS
from .inference import PRODUCTS

logger = logging.getLogger(__name__)

SELF_ATTENTIONS = "luna", "softmax"
CROSS_ATTENTIONS = "packed", "full"
BIASES = "none", "gaussian"
CAUSAL_MEANS = "flat", "decaying"
PACK_VALUES = "projected", "plain"

CausalActivation = ChoiceEnum(list(CAUSAL_ACTIVATIONS))
SelfAttention = ChoiceEnum(SELF_ATTENTIONS)
CrossAttention = ChoiceEnum(CROSS_ATTENTIONS)
Bias = ChoiceEnum(BIASES)
CausalMean = ChoiceEnum(CAUSAL_MEANS)
PackValues = ChoiceEnum(PACK_VALUES)
InferencePrecision = ChoiceEnum(list(PRODUCTS))
ActivationFn = ChoiceEnum(utils.get_available_activation_fns())


def _help(text: str) -> Dict[str, str]:
    return {"help": text}


# One flat class, not a child of fairseq's nested TransformerConfig, which ignores flags such as
# --encoder-layers when a plugin extends it.
@dataclass
class LunaTransformerConfig(FairseqDataclass):
    """Settings of a Luna Transformer; the defaults are the paper's base model with l = 32."""

    # Luna
    projection_length: int = field(default=32, metadata=_help("l, the number of slots of the packed sequence P"))
    fix_projection_length: bool = field(
        default=False, metadata=_help("use all l slots even for sentences shorter than l")
    )
    untie_luna_kv: bool = field(default=False, metadata=_help("separate projections for keys and values"))
    causal_activation: CausalActivation = field(  # type: ignore[valid-type]
        default="softplus", metadata=_help("w of the decoder's causal pack")
    )
    causal_mean: CausalMean = field(  # type: ignore[valid-type]
        default="flat",
        metadata=_help("of the past, in the decoder's self-attention; decaying: each head with a decay of its own"),
    )
    pack_bias: Bias = field(  # type: ignore[valid-type]
        default="none",
        metadata=_help(
            "gaussian: packs of the source begin local, slots spread over the sentence, widths and centres learned"
        ),
    )
    pack_values: PackValues = field(  # type: ignore[valid-type]
        default="projected",
        metadata=_help(
            "of packs of the source: projected states, or plain ones (keys of its slots untied for the decoder)"
        ),
    )
    encoder_unpack_bias: Bias = field(  # type: ignore[valid-type]
        default="none", metadata=_help("gaussian: positions of the encoder begin by reading the slots near them")
    )
    encoder_self_attention: SelfAttention = field(  # type: ignore[valid-type]
        default="luna", metadata=_help("linear in the source, or ordinary attention")
    )
    decoder_self_attention: SelfAttention = field(  # type: ignore[valid-type]
        default="luna", metadata=_help("a state of constant size, or ordinary attention to all of the past")
    )
    cross_attention: CrossAttention = field(  # type: ignore[valid-type]
        default="packed", metadata=_help("the decoder reads the slots of the source, or all of its positions")
    )

    # encoder
    encoder_embed_path: Optional[str] = field(default=None, metadata=_help("path to pre-trained encoder embeddings"))
    encoder_embed_dim: int = field(default=512, metadata=_help("encoder dimension"))
    encoder_ffn_embed_dim: int = field(default=2048, metadata=_help("encoder dimension of the feed-forward"))
    encoder_layers: int = field(default=6, metadata=_help("number of encoder layers"))
    encoder_attention_heads: int = field(default=8, metadata=_help("number of encoder attention heads"))
    encoder_projected_attention_heads: Optional[int] = field(
        default=None,
        metadata=_help("heads of the encoder's pack (default: --encoder-attention-heads)"),
    )
    encoder_normalize_before: bool = field(
        default=False, metadata=_help("layer norm before each encoder block (pre-norm)")
    )
    encoder_learned_pos: bool = field(default=False, metadata=_help("learned positions in the encoder"))

    # decoder
    decoder_embed_path: Optional[str] = field(default=None, metadata=_help("path to pre-trained decoder embeddings"))
    decoder_embed_dim: Optional[int] = field(
        default=None, metadata=_help("decoder dimension (default: --encoder-embed-dim)")
    )
    decoder_ffn_embed_dim: Optional[int] = field(
        default=None,
        metadata=_help("decoder dimension of the feed-forward (default: --encoder-ffn-embed-dim)"),
    )
    decoder_layers: int = field(default=6, metadata=_help("number of decoder layers"))
    decoder_attention_heads: int = field(default=8, metadata=_help("number of decoder attention heads"))
    decoder_projected_attention_heads: Optional[int] = field(
        default=None,
        metadata=_help("heads of the cross attention's pack (default: --decoder-attention-heads)"),
    )
    decoder_normalize_before: bool = field(
        default=False, metadata=_help("layer norm before each decoder block (pre-norm)")
    )
    decoder_learned_pos: bool = field(default=False, metadata=_help("learned positions in the decoder"))

    # alignment
    alignment_layer: Optional[int] = field(
        default=None,
        metadata=_help("decoder layer whose attention aligns target and source, 0 the lowest (default: the last)"),
    )
    alignment_heads: Optional[int] = field(
        default=None,
        metadata=_help("the first so many heads of that layer align (default: --decoder-attention-heads)"),
    )
    full_context_alignment: bool = field(
        default=False,
        metadata=_help("align in a second pass of the decoder, in which every position reads the whole target"),
    )

    # regularisation and activation
    dropout: float = field(default=0.1, metadata=_help("dropout probability"))
    attention_dropout: float = field(default=0.0, metadata=_help("dropout probability of attention weights"))
    activation_dropout: float = field(
        default=0.0, metadata=_help("dropout probability after the feed-forward's activation")
    )
    word_dropout: float = field(default=0.0, metadata=_help("dropout probability of whole tokens, source and target"))
    activation_fn: ActivationFn = field(  # type: ignore[valid-type]
        default="relu", metadata=_help("activation of the feed-forward")
    )

    # generation
    inference_precision: InferencePrecision = field(  # type: ignore[valid-type]
        default="fp32",
        metadata=_help("of the products with weights in generation on a CPU (settable by --model-overrides)"),
    )

    # embeddings
    share_all_embeddings: bool = field(
        default=False,
        metadata=_help("one embedding for source, target and output (needs a joined dictionary)"),
    )
    share_decoder_input_output_embed: bool = field(default=False, metadata=_help("one embedding for target and output"))
    layernorm_embedding: bool = field(default=False, metadata=_help("layer norm on embeddings"))
    no_scale_embedding: bool = field(
        default=False, metadata=_help("do not scale embeddings by the square root of the dimension")
    )
    no_token_positional_embeddings: bool = field(
        default=False, metadata=_help("no positions, of tokens and slots alike")
    )
    max_source_positions: int = field(default=1024, metadata=_help("longest source, in tokens"))
    max_target_positions: int = field(default=1024, metadata=_help("longest target, in tokens"))


# The paper's large models are post-norm. What goes beyond it trains better with pre-norm (docs/quality-trials.md).
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
# Luna's self-attentions, linear in the source and of constant state, and a decoder that reads all of the source. With
# the feed-forward that goes with it there are 3 % more parameters than in a Transformer.
FULL_CROSS: Dict[str, Any] = {
    **PRE_NORM,
    "cross_attention": "full",
    "causal_mean": "decaying",
    "pack_bias": "gaussian",
    "encoder_unpack_bias": "gaussian",
}

# All packed, constant per step in both lengths; with l = 32 most sentences have a slot for nearly every token. With the
# feed-forward that goes with it there are 3 % more parameters than in a Transformer.
PLAIN_PACKS: Dict[str, Any] = {
    **PRE_NORM,
    "projection_length": 32,
    "pack_values": "plain",
    "causal_mean": "decaying",
    "pack_bias": "gaussian",
    "encoder_unpack_bias": "gaussian",
}

# What each named architecture sets beside the defaults; configs/model/ says the same in YAML.
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "luna_transformer": {},
    "luna_transformer_full_cross": {**FULL_CROSS, "encoder_ffn_embed_dim": 1920},
    "luna_transformer_tiny": TINY,
    "luna_transformer_tiny_full_cross": {**TINY, **FULL_CROSS, "encoder_ffn_embed_dim": 480},
    "luna_transformer_plain_packs": {**PLAIN_PACKS, "encoder_ffn_embed_dim": 1664},
    "luna_transformer_tiny_plain_packs": {**TINY, **PLAIN_PACKS, "encoder_ffn_embed_dim": 416},
    "luna_transformer_iwslt_de_en": {
        "encoder_ffn_embed_dim": 1024,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
    "luna_transformer_wmt_en_de": WMT,
    "luna_transformer_wmt_en_de_untied": {**WMT, "untie_luna_kv": True},
    "luna_transformer_wmt_en_de_full_cross": {**WMT, **FULL_CROSS, "encoder_ffn_embed_dim": 1920},
    "luna_transformer_wmt_en_de_plain_packs": {**WMT, **PLAIN_PACKS, "encoder_ffn_embed_dim": 1664},
    "luna_transformer_wmt_en_de_big": {
        **WMT,
        "encoder_embed_dim": 1024,
        "encoder_ffn_embed_dim": 4096,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "dropout": 0.3,
    },
}

# Settings that follow another one unless given.
FOLLOWS = {
    "encoder_projected_attention_heads": "encoder_attention_heads",
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "decoder_projected_attention_heads": "decoder_attention_heads",
    "alignment_heads": "decoder_attention_heads",
}


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
    for name, least, most, limit in (
        ("alignment_layer", 0, values["decoder_layers"] - 1, "decoder_layers"),
        ("alignment_heads", 1, values["decoder_attention_heads"], "decoder_attention_heads"),
    ):
        if values[name] is not None and not least <= values[name] <= most:
            raise ValueError(
                f"{flag(name)} must be from {least} to {most}, since {flag(limit)} is {values[limit]}, "
                f"but is {values[name]}."
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


def decoder_reads_packed(cfg: Any) -> bool:
    """Whether the decoder needs the encoder's P."""
    return cfg.decoder_self_attention == "luna" or cfg.cross_attention == "packed"


def has_packed(cfg: Any) -> bool:
    """Whether there is a P at all: three ordinary attentions are a Transformer."""
    return cfg.encoder_self_attention == "luna" or decoder_reads_packed(cfg)


def flag(name: str) -> str:
    """encoder_layers -> --encoder-layers"""
    return "--" + name.replace("_", "-")
