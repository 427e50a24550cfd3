"""The language model's settings and the named architectures."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from ..checks import refused
from ..luna_transformer.config import ActivationFn, CausalActivation, CausalMean, InferencePrecision
from ..registration import config_of


def _help(text: str) -> Dict[str, str]:
    return {"help": text}


@dataclass
class LunaLanguageModelConfig(FairseqDataclass):
    """Settings of a Luna language model; names and defaults are those of `transformer_lm`, but for Luna's own."""

    arch: str = field(default="luna_lm", metadata=_help("the architecture that the settings below are of"))

    # Luna
    projection_length: int = field(default=32, metadata=_help("l, the number of slots of the packed sequence P"))
    untie_luna_kv: bool = field(default=False, metadata=_help("use separate projections for keys and values"))
    causal_activation: CausalActivation = field(
        default="softplus", metadata=_help("w, the activation of the causal pack: softplus, or elu for elu(x) + 1")
    )
    causal_mean: CausalMean = field(
        default="uniform",
        metadata=_help(
            "mean of the past: uniform weighs all words alike, decaying has heads forget at their own rates"
        ),
    )

    # decoder
    decoder_embed_dim: int = field(default=512, metadata=_help("dimension of the decoder"))
    decoder_ffn_embed_dim: int = field(default=2048, metadata=_help("dimension of the feed-forward"))
    decoder_layers: int = field(default=6, metadata=_help("number of layers"))
    decoder_attention_heads: int = field(default=8, metadata=_help("number of attention heads"))
    decoder_normalize_before: bool = field(
        default=False, metadata=_help("put the layer norm before each block (pre-norm)")
    )
    no_decoder_final_norm: bool = field(
        default=False, metadata=_help("leave out the layer norm after the last layer of a pre-norm decoder")
    )
    decoder_learned_pos: bool = field(default=False, metadata=_help("learn the positions"))
    decoder_layerdrop: float = field(
        default=0.0, metadata=_help("probability of each layer to be left out of an update (LayerDrop)")
    )
    # Any: fairseq's --model-overrides bring text or a list
    decoder_layers_to_keep: Any = field(
        default=None,
        metadata=_help("layers to keep when a checkpoint is loaded, counted from 0, as 0,2,4 (by --model-overrides)"),
    )

    # regularisation and activation
    dropout: float = field(default=0.1, metadata=_help("probability of dropout"))
    attention_dropout: float = field(default=0.0, metadata=_help("probability of dropout of attention weights"))
    activation_dropout: float = field(
        default=0.0,
        metadata={
            **_help("probability of dropout after the activation of the feed-forward"),
            "argparse_alias": "--relu-dropout",
        },
    )
    word_dropout: float = field(default=0.0, metadata=_help("probability of dropout of whole tokens"))
    activation_fn: ActivationFn = field(default="relu", metadata=_help("activation of the feed-forward"))
    quant_noise_pq: float = field(
        default=0.0,
        metadata=_help("probability of each block of the layers' weights to be zero in an update (quantisation noise)"),
    )
    quant_noise_pq_block_size: int = field(
        default=8, metadata=_help("weights of a block of --quant-noise-pq; divides the dimensions")
    )

    # memory in training
    checkpoint_activations: bool = field(
        default=False,
        metadata=_help(
            "compute each layer again for its gradients in place of keeping its results: less memory, more time"
        ),
    )
    offload_activations: bool = field(
        default=False,
        metadata=_help("--checkpoint-activations, with what enters each layer kept in the memory of the CPU"),
    )
    min_params_to_wrap: int = field(
        default=100_000_000,
        metadata=_help(
            "parameters of the smallest layer to be sharded on its own by --ddp-backend fully_sharded "
            "(with --checkpoint-activations every layer is)"
        ),
    )
    export: bool = field(default=False, metadata=_help("layer norms of torch, also where apex has a faster one"))

    # generation
    inference_precision: InferencePrecision = field(
        default="fp32",
        metadata=_help(
            "precision of products with weights when a CPU generates: fp32, bf16 or int8 (also by --model-overrides)"
        ),
    )

    # embeddings and positions
    share_decoder_input_output_embed: bool = field(default=False, metadata=_help("use one embedding for both sides"))
    layernorm_embedding: bool = field(default=False, metadata=_help("put a layer norm on the embeddings"))
    no_scale_embedding: bool = field(
        default=False, metadata=_help("do not scale embeddings by the square root of the dimension")
    )
    no_token_positional_embeddings: bool = field(default=False, metadata=_help("leave out positions of tokens"))

    # adaptive softmax
    adaptive_softmax_cutoff: Optional[List[int]] = field(
        default=None,
        metadata=_help(
            "words of the dictionary at which bands of rarer words begin, as 2000,10000: rarer ones have fewer weights "
            "(train by --criterion adaptive_loss --ddp-backend legacy_ddp)"
        ),
    )
    adaptive_softmax_dropout: float = field(
        default=0.0, metadata=_help("probability of dropout inside the bands of rarer words")
    )
    adaptive_softmax_factor: float = field(
        default=4.0, metadata=_help("how many times fewer dimensions each band has than the one before it")
    )

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
