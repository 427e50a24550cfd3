"""The model's settings."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum

from ...ops.causal.attention import CAUSAL_ACTIVATIONS
from ...ops.linear import PRODUCTS
from ...renamed import former
from .refused import RefusedSettings

SELF_ATTENTIONS = "luna", "softmax"
ENCODER_ATTENTIONS = (*SELF_ATTENTIONS, "linformer")
CROSS_ATTENTIONS = "packed", "softmax"
BIASES = "none", "gaussian"
CAUSAL_MEANS = "uniform", "decaying"
PACK_VALUES = "projected", "unprojected"

CausalActivation = ChoiceEnum(list(CAUSAL_ACTIVATIONS))
SelfAttention = ChoiceEnum(SELF_ATTENTIONS)
EncoderAttention = ChoiceEnum(ENCODER_ATTENTIONS)
CrossAttention = ChoiceEnum([*CROSS_ATTENTIONS, *former("cross_attention")])
Bias = ChoiceEnum(BIASES)
CausalMean = ChoiceEnum([*CAUSAL_MEANS, *former("causal_mean")])
PackValues = ChoiceEnum([*PACK_VALUES, *former("pack_values")])
InferencePrecision = ChoiceEnum(list(PRODUCTS))
ActivationFn = ChoiceEnum(utils.get_available_activation_fns())


def _help(text: str) -> Dict[str, str]:
    return {"help": text}


# One flat class, not a child of fairseq's nested TransformerConfig, which ignores flags such as
# --encoder-layers when a plugin extends it.
@dataclass
class LunaTransformerConfig(RefusedSettings):
    """Settings of a Luna Transformer; the defaults are the paper's base model with l = 32."""

    # Beside the name of the model: a name that is changed alone, over settings that are listed, is noticed by it.
    arch: str = field(default="luna_transformer", metadata=_help("the architecture that the settings below are of"))

    # Luna
    projection_length: int = field(default=32, metadata=_help("l, the number of slots of the packed sequence P"))
    fix_projection_length: bool = field(
        default=False, metadata=_help("use all l slots, also for sentences shorter than l")
    )
    tokens_per_slot: float = field(
        default=1.0,
        metadata=_help(
            "tokens of the source that share a slot: n tokens use n / this slots, rounded up, and --projection-length "
            "at most (can be changed for generation by --model-overrides, or translate.sh --tokens-per-slot)"
        ),
    )
    most_tokens_per_slot: Optional[float] = field(
        default=None,
        metadata=_help(
            "in training, sentences draw their tokens per slot between --tokens-per-slot and this, so that the model "
            "can be used with any of them (default: they draw nothing)"
        ),
    )
    varied_share: float = field(
        default=1.0, metadata=_help("share of the sentences that draw; the others keep --tokens-per-slot")
    )
    untie_luna_kv: bool = field(default=False, metadata=_help("use separate projections for keys and values"))
    causal_activation: CausalActivation = field(  # type: ignore[valid-type]
        default="softplus",
        metadata=_help("w, the activation of the decoder's causal pack: softplus, or elu for elu(x) + 1"),
    )
    causal_mean: CausalMean = field(  # type: ignore[valid-type]
        default="uniform",
        metadata=_help(
            "the past in the decoder's self-attention: uniform weighs all words alike, decaying has heads forget at "
            "their own rates (with softmax by a bias of the logits)"
        ),
    )
    pack_bias: Bias = field(  # type: ignore[valid-type]
        default="none",
        metadata=_help(
            "where slots read the source: everywhere (none), or each near a learned place of its own (gaussian)"
        ),
    )
    pack_values: PackValues = field(  # type: ignore[valid-type]
        default="projected",
        metadata=_help(
            "what slots average: projected states, or unprojected ones, which are read with separate keys and values"
        ),
    )
    encoder_unpack_bias: Bias = field(  # type: ignore[valid-type]
        default="none",
        metadata=_help(
            "which slots a position of the encoder reads, or with softmax which positions: all alike (none), or rather "
            "those near it (gaussian)"
        ),
    )
    encoder_self_attention: EncoderAttention = field(  # type: ignore[valid-type]
        default="luna",
        metadata=_help(
            "luna is linear in the length of the source, softmax is ordinary attention, linformer attends to learned "
            "sums of up to --max-source-positions"
        ),
    )
    linformer_length: int = field(default=128, metadata=_help("k, the number of Linformer's learned sums"))
    linformer_per_head: bool = field(
        default=False, metadata=_help("give each head of Linformer sums of its own, in place of one set for all")
    )
    decoder_self_attention: SelfAttention = field(  # type: ignore[valid-type]
        default="luna",
        metadata=_help("luna keeps a state of constant size, softmax is ordinary attention to all of the past"),
    )
    cross_attention: CrossAttention = field(  # type: ignore[valid-type]
        default="packed",
        metadata=_help("what the decoder reads: packed is the slots of the source, softmax is all of its positions"),
    )

    # encoder
    encoder_embed_path: Optional[str] = field(
        default=None, metadata=_help("file with pre-trained embeddings of the source")
    )
    encoder_embed_dim: int = field(default=512, metadata=_help("dimension of the encoder"))
    encoder_ffn_embed_dim: int = field(default=2048, metadata=_help("dimension of the feed-forward in the encoder"))
    encoder_layers: int = field(default=6, metadata=_help("number of layers of the encoder"))
    encoder_attention_heads: int = field(default=8, metadata=_help("number of attention heads of the encoder"))
    encoder_projected_attention_heads: Optional[int] = field(
        default=None,
        metadata=_help("number of heads that pack in the encoder (default: --encoder-attention-heads)"),
    )
    encoder_normalize_before: bool = field(
        default=False, metadata=_help("put the layer norm before each block of the encoder (pre-norm)")
    )
    encoder_learned_pos: bool = field(default=False, metadata=_help("learn the positions of the encoder"))
    encoder_layerdrop: float = field(
        default=0.0, metadata=_help("probability of each encoder layer to be left out of an update (LayerDrop)")
    )
    # Any: fairseq's --model-overrides bring text or a list
    encoder_layers_to_keep: Any = field(
        default=None,
        metadata=_help(
            "encoder layers to keep when a checkpoint is loaded, counted from 0, as 0,2,4 (by --model-overrides)"
        ),
    )

    # decoder
    decoder_embed_path: Optional[str] = field(
        default=None, metadata=_help("file with pre-trained embeddings of the target")
    )
    decoder_embed_dim: Optional[int] = field(
        default=None, metadata=_help("dimension of the decoder (default: --encoder-embed-dim)")
    )
    decoder_ffn_embed_dim: Optional[int] = field(
        default=None,
        metadata=_help("dimension of the feed-forward in the decoder (default: --encoder-ffn-embed-dim)"),
    )
    decoder_layers: int = field(default=6, metadata=_help("number of layers of the decoder"))
    decoder_attention_heads: int = field(default=8, metadata=_help("number of attention heads of the decoder"))
    decoder_projected_attention_heads: Optional[int] = field(
        default=None,
        metadata=_help("number of heads that pack the source for the decoder (default: --decoder-attention-heads)"),
    )
    decoder_normalize_before: bool = field(
        default=False, metadata=_help("put the layer norm before each block of the decoder (pre-norm)")
    )
    decoder_learned_pos: bool = field(default=False, metadata=_help("learn the positions of the decoder"))
    decoder_layerdrop: float = field(
        default=0.0, metadata=_help("probability of each decoder layer to be left out of an update (LayerDrop)")
    )
    decoder_layers_to_keep: Any = field(
        default=None,
        metadata=_help(
            "decoder layers to keep when a checkpoint is loaded, counted from 0, as 0,2,4 (by --model-overrides)"
        ),
    )
    no_decoder_final_norm: bool = field(
        default=False, metadata=_help("leave out the layer norm after the last layer of a pre-norm decoder")
    )

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
    dropout: float = field(default=0.1, metadata=_help("probability of dropout"))
    attention_dropout: float = field(default=0.0, metadata=_help("probability of dropout of attention weights"))
    activation_dropout: float = field(
        default=0.0,
        metadata={
            **_help("probability of dropout after the activation of the feed-forward"),
            "argparse_alias": "--relu-dropout",  # its name in old commands
        },
    )
    word_dropout: float = field(
        default=0.0, metadata=_help("probability of dropout of whole tokens, in source and target")
    )
    activation_fn: ActivationFn = field(  # type: ignore[valid-type]
        default="relu", metadata=_help("activation of the feed-forward")
    )
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
    inference_precision: InferencePrecision = field(  # type: ignore[valid-type]
        default="fp32",
        metadata=_help(
            "precision of products with weights when a CPU generates: fp32, bf16 or int8 (also by --model-overrides)"
        ),
    )

    # embeddings and positions
    share_all_embeddings: bool = field(
        default=False,
        metadata=_help("use one embedding for source, target and output (needs a joined dictionary)"),
    )
    share_decoder_input_output_embed: bool = field(
        default=False, metadata=_help("use one embedding for target and output")
    )
    layernorm_embedding: bool = field(default=False, metadata=_help("put a layer norm on the embeddings"))
    no_scale_embedding: bool = field(
        default=False, metadata=_help("do not scale embeddings by the square root of the dimension")
    )
    no_token_positional_embeddings: bool = field(
        default=False, metadata=_help("leave out positions, of tokens and of slots")
    )
    max_source_positions: int = field(default=1024, metadata=_help("longest source, in tokens"))
    max_target_positions: int = field(default=1024, metadata=_help("longest target, in tokens"))

    # adaptive softmax
    adaptive_softmax_cutoff: Optional[List[int]] = field(
        default=None,
        metadata=_help(
            "words of the predicted dictionary at which bands of rarer words begin, as 2000,10000: rarer ones have "
            "fewer weights (train by --criterion adaptive_loss --ddp-backend legacy_ddp)"
        ),
    )
    adaptive_softmax_dropout: float = field(
        default=0.0, metadata=_help("probability of dropout inside the bands of rarer words")
    )
    adaptive_softmax_factor: float = field(
        default=4.0, metadata=_help("how many times fewer dimensions each band has than the one before it")
    )


# Settings that follow another one unless given.
FOLLOWS = {
    "encoder_projected_attention_heads": "encoder_attention_heads",
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "decoder_projected_attention_heads": "decoder_attention_heads",
    "alignment_heads": "decoder_attention_heads",
}


def decoder_reads_packed(cfg: Any) -> bool:
    """Whether the decoder needs the encoder's P."""
    return cfg.decoder_self_attention == "luna" or cfg.cross_attention == "packed"


def has_packed(cfg: Any) -> bool:
    """Whether there is a P at all: three ordinary attentions are a Transformer."""
    return cfg.encoder_self_attention == "luna" or decoder_reads_packed(cfg)
