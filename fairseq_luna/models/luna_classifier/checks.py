"""The check of the classifier's settings."""

from typing import Any

from fairseq import utils

from .. import checks
from ..luna_transformer.checks import encoder_reads
from ..luna_transformer.config import BIASES, ENCODER_ATTENTIONS, PACK_VALUES
from .config import POOLINGS, LunaClassifierConfig

FOLLOWS = {"encoder_projected_attention_heads": "encoder_attention_heads"}


def checked(cfg: Any) -> Any:
    """A complete and sound config of our own class from whatever fairseq hands over.

    Args:
        cfg: a dataclass, omegaconf or argparse object or a dictionary with the fields of `LunaClassifierConfig`.

    Raises:
        ValueError: if settings contradict each other or make no model.
    """
    values = checks.completed(cfg, LunaClassifierConfig, FOLLOWS)
    if not isinstance(values["max_source_positions"], int):  # an interpolation that nothing has filled in
        values["max_source_positions"] = 4096
    layers, name = values["encoder_layers"], "encoder_layers_to_keep"
    kept = values[name] = checks.kept_layers(name, values[name], layers)
    values["encoder_layers"] = layers if kept is None else len(kept)

    dims = "encoder_embed_dim", "encoder_ffn_embed_dim"
    sizes = "projection_length", "linformer_length", "encoder_layers", "max_source_positions"
    checks.check_sizes(values, (*dims, *sizes, "quant_noise_pq_block_size"))
    checks.check_slots(values)
    dropouts = "dropout", "attention_dropout", "activation_dropout", "word_dropout"
    checks.check_probabilities(values, (*dropouts, "encoder_layerdrop", "quant_noise_pq"))
    heads = "encoder_attention_heads", "encoder_projected_attention_heads"
    checks.check_heads(values, [("encoder", "encoder_embed_dim", name) for name in heads])
    checks.check_blocks(values, dims)
    checks.check_choices(
        values,
        (
            ("pack_bias", BIASES),
            ("pack_values", PACK_VALUES),
            ("encoder_unpack_bias", BIASES),
            ("encoder_self_attention", ENCODER_ATTENTIONS),
            ("pooling", POOLINGS),
            ("activation_fn", utils.get_available_activation_fns()),
        ),
    )
    result = LunaClassifierConfig(**values)
    checks.tell_unread(result, encoder_reads(result), FOLLOWS)
    return result
