"""The language model's settings and the named architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from ..checks import refused
from ..luna_transformer.config import (
    ActivationFn,
    CausalActivation,
    CausalMean,
    InferencePrecision,
    LunaTransformerConfig,
)
from ..registration import config_of, same_field


def _help(text: str) -> Dict[str, str]:
    return {"help": text}


def _same(name: str) -> Any:
    """A setting as the translation model has it."""
    return same_field(LunaTransformerConfig, name)


@dataclass
class LunaLanguageModelConfig(FairseqDataclass):
    """Settings of a Luna language model; names and defaults are those of `transformer_lm`, but for Luna's own.

    What the translation decoder has too means the same here.
    """

    arch: str = field(default="luna_lm", metadata=_help("the architecture that the settings below are of"))

    # Luna
    projection_length: int = _same("projection_length")
    untie_luna_kv: bool = _same("untie_luna_kv")
    causal_activation: CausalActivation = _same("causal_activation")
    causal_mean: CausalMean = field(
        default="uniform",
        metadata=_help(
            "mean of the past: uniform weighs all words alike, decaying has heads forget at their own rates"
        ),
    )

    # decoder
    decoder_embed_dim: int = field(default=512, metadata=_help("dimension of the decoder"))
    decoder_ffn_embed_dim: int = field(default=2048, metadata=_help("dimension of the feed-forward"))
    decoder_layers: int = _same("decoder_layers")
    decoder_attention_heads: int = _same("decoder_attention_heads")
    decoder_normalize_before: bool = _same("decoder_normalize_before")
    no_decoder_final_norm: bool = _same("no_decoder_final_norm")
    decoder_learned_pos: bool = _same("decoder_learned_pos")
    decoder_layerdrop: float = _same("decoder_layerdrop")
    decoder_layers_to_keep: Any = _same("decoder_layers_to_keep")

    # regularisation and activation
    dropout: float = _same("dropout")
    attention_dropout: float = _same("attention_dropout")
    activation_dropout: float = _same("activation_dropout")
    word_dropout: float = field(default=0.0, metadata=_help("probability of dropout of whole tokens"))
    activation_fn: ActivationFn = _same("activation_fn")
    quant_noise_pq: float = _same("quant_noise_pq")
    quant_noise_pq_block_size: int = _same("quant_noise_pq_block_size")

    # memory in training
    checkpoint_activations: bool = _same("checkpoint_activations")
    offload_activations: bool = _same("offload_activations")
    min_params_to_wrap: int = _same("min_params_to_wrap")
    export: bool = _same("export")

    # generation
    inference_precision: InferencePrecision = _same("inference_precision")

    # embeddings and positions
    share_decoder_input_output_embed: bool = field(default=False, metadata=_help("use one embedding for both sides"))
    layernorm_embedding: bool = _same("layernorm_embedding")
    no_scale_embedding: bool = _same("no_scale_embedding")
    no_token_positional_embeddings: bool = field(default=False, metadata=_help("leave out positions of tokens"))

    # adaptive softmax
    adaptive_softmax_cutoff: Optional[List[int]] = _same("adaptive_softmax_cutoff")
    adaptive_softmax_dropout: float = _same("adaptive_softmax_dropout")
    adaptive_softmax_factor: float = _same("adaptive_softmax_factor")

    # refused, unless off
    adaptive_input: bool = refused(
        False, "its input embeddings are plain; for an adaptive output use --adaptive-softmax-cutoff"
    )
    character_embeddings: bool = refused(False, "it reads tokens; for characters prepare data whose tokens they are")

    # what a language model is in terms of the layers that it shares with the translation decoder
    decoder_self_attention = "luna"
    cross_attention = "none"

    # of the task
    tokens_per_sample: int = II("task.tokens_per_sample")
    max_target_positions: Optional[int] = II("task.max_target_positions")


# What each named architecture sets beside the defaults. `make settings` writes the same as YAML, to configs/model/.
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "luna_lm": {},
    "luna_lm_tiny": {
        "projection_length": 16,
        "decoder_embed_dim": 128,
        "decoder_ffn_embed_dim": 512,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
        "decoder_normalize_before": True,
        "share_decoder_input_output_embed": True,
        "causal_mean": "decaying",
    },
    "luna_lm_gpt": {
        "decoder_embed_dim": 768,
        "decoder_ffn_embed_dim": 3072,
        "decoder_layers": 12,
        "decoder_attention_heads": 12,
        "decoder_normalize_before": True,
        "share_decoder_input_output_embed": True,
        "attention_dropout": 0.1,
        "activation_fn": "gelu",
        "causal_mean": "decaying",
    },
}
DESCRIPTIONS = {
    "luna_lm": "the dimensions of transformer_lm, with the paper's uniform mean",
    "luna_lm_tiny": "the size of scripts/language-model.sh, with a decaying mean",
    "luna_lm_gpt": "the dimensions of GPT and of transformer_lm_gpt, with a decaying mean",
}
CONFIGS = {
    arch: config_of(arch, settings, DESCRIPTIONS[arch], LunaLanguageModelConfig, globals())
    for arch, settings in ARCHITECTURES.items()
}
