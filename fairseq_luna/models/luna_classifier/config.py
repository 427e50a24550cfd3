"""The classifier's settings and the named architectures."""

from dataclasses import field, make_dataclass
from typing import Any, Dict

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from ..luna_transformer.config import LunaTransformerConfig
from ..registration import config_of, same_field

POOLINGS = "mean", "first"
Pooling = ChoiceEnum(POOLINGS)

# of the translation encoder, in the order in which they are listed
SHARED = (
    "projection_length fix_projection_length tokens_per_slot most_tokens_per_slot varied_share untie_luna_kv pack_bias "
    "pack_values encoder_unpack_bias "
    "encoder_self_attention linformer_length linformer_per_head encoder_embed_dim encoder_ffn_embed_dim "
    "encoder_layers encoder_attention_heads encoder_projected_attention_heads encoder_normalize_before "
    "encoder_learned_pos encoder_layerdrop encoder_layers_to_keep dropout attention_dropout activation_dropout "
    "word_dropout activation_fn quant_noise_pq quant_noise_pq_block_size checkpoint_activations offload_activations "
    "min_params_to_wrap export layernorm_embedding no_scale_embedding no_token_positional_embeddings"
).split()


def _shared(name: str) -> Any:
    return name, LunaTransformerConfig.__dataclass_fields__[name].type, same_field(LunaTransformerConfig, name)


LunaClassifierConfig = make_dataclass(
    "LunaClassifierConfig",
    [
        (
            "arch",
            str,
            field(default="luna_classifier", metadata={"help": "the architecture that the settings below are of"}),
        ),
        *map(_shared, SHARED),
        (
            "pooling",
            Pooling,
            field(
                default="mean",
                metadata={"help": "what of a text is classified: the mean of its tokens, or its first token"},
            ),
        ),
        # of the task
        ("max_source_positions", int, II("task.max_source_positions")),
    ],
    bases=(FairseqDataclass,),
    namespace={
        "__module__": __name__,
        # what a classifier is in terms of the layers that it shares with the translation model
        "decoder_self_attention": "none",
        "cross_attention": "none",
    },
)
LunaClassifierConfig.__module__ = __name__  # Python 3.12 writes another there
LunaClassifierConfig.__doc__ = (
    "Settings of a classifier; names and meanings are those of the translation encoder, defaults those of its base."
)

# What each named architecture sets beside the defaults. `make settings` writes the same as YAML, to configs/model/.
_ARENA = {"encoder_normalize_before": True, "encoder_layers": 4}
ARCHITECTURES: Dict[str, Dict[str, Any]] = {
    "luna_classifier": {},
    "luna_classifier_text": {
        **_ARENA,
        "encoder_embed_dim": 256,
        "encoder_ffn_embed_dim": 1024,
        "encoder_attention_heads": 4,
    },
    "luna_classifier_listops": {**_ARENA, "encoder_layers": 6},
    "luna_classifier_tiny": {
        "projection_length": 16,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_normalize_before": True,
    },
}
DESCRIPTIONS = {
    "luna_classifier": "the dimensions of luna_transformer's encoder",
    "luna_classifier_text": "the long-range arena's dimensions for texts of bytes",
    "luna_classifier_listops": "the long-range arena's dimensions for ListOps",
    "luna_classifier_tiny": "small enough for a CPU",
}
CONFIGS = {
    arch: config_of(arch, settings, DESCRIPTIONS[arch], LunaClassifierConfig, globals())
    for arch, settings in ARCHITECTURES.items()
}
