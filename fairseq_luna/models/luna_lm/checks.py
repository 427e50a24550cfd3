"""The check of the language model's settings."""

from typing import Any

from fairseq import utils

from ...ops.causal.attention import CAUSAL_ACTIVATIONS
from ...ops.linear import PRODUCTS
from .. import checks
from ..luna_transformer.config import CAUSAL_MEANS
from .config import LunaLanguageModelConfig


def checked(cfg: Any) -> LunaLanguageModelConfig:
    """A complete and sound config of our own class from whatever fairseq hands over.

    Args:
        cfg: a dataclass, omegaconf or argparse object or a dictionary with the fields of `LunaLanguageModelConfig`.

    Raises:
        ValueError: if settings contradict each other or make no model.
    """
    values = checks.completed(cfg, LunaLanguageModelConfig, {})
    if not isinstance(values["tokens_per_sample"], int):  # an interpolation that nothing has filled in
        values["tokens_per_sample"] = 1024
    if not isinstance(values["max_target_positions"], int):
        values["max_target_positions"] = values["tokens_per_sample"]
    layers, name = values["decoder_layers"], "decoder_layers_to_keep"
    kept = values[name] = checks.kept_layers(name, values[name], layers)
    values["decoder_layers"] = layers if kept is None else len(kept)

    dims = "decoder_embed_dim", "decoder_ffn_embed_dim"
    sizes = "projection_length", "decoder_layers", "max_target_positions", "quant_noise_pq_block_size"
    checks.check_sizes(values, (*dims, *sizes))
    dropouts = "dropout", "attention_dropout", "activation_dropout", "word_dropout", "adaptive_softmax_dropout"
    checks.check_probabilities(values, (*dropouts, "decoder_layerdrop", "quant_noise_pq"))
    checks.check_heads(values, [("decoder", "decoder_embed_dim", "decoder_attention_heads")])
    checks.check_blocks(values, dims)
    checks.check_adaptive_softmax(values)
    checks.check_choices(
        values,
        (
            ("causal_activation", list(CAUSAL_ACTIVATIONS)),
            ("causal_mean", CAUSAL_MEANS),
            ("inference_precision", list(PRODUCTS)),
            ("activation_fn", utils.get_available_activation_fns()),
        ),
    )
    result = LunaLanguageModelConfig(**values)
    read = {
        "no_decoder_final_norm": result.decoder_normalize_before,
        "share_decoder_input_output_embed": result.adaptive_softmax_cutoff is None,
        "adaptive_softmax_dropout": result.adaptive_softmax_cutoff is not None,
        "adaptive_softmax_factor": result.adaptive_softmax_cutoff is not None,
        "quant_noise_pq_block_size": result.quant_noise_pq > 0,
    }
    checks.tell_unread(result, read, {})
    return result
