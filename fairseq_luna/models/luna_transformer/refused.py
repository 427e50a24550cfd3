"""What fairseq's Transformer takes and Luna does not: each setting, its value when it is off, and what to do instead.

argparse and hydra know these settings, so that `checks.checked` can answer them with a sentence in place of
"unrecognized arguments". They stay out of --help and of configs/model/, for nobody is to choose them.
"""

from dataclasses import dataclass
from typing import Optional

from fairseq.dataclass import FairseqDataclass

from ..checks import refused

_INPUTS = "fairseq has adaptive input embeddings in its language models alone"
_ONE_DIMENSION = "target embedding, decoder and output have one dimension; set --decoder-embed-dim"
_EXPERTS = "no layer of it spreads tokens over experts on several GPUs; leave it out"


@dataclass
class RefusedSettings(FairseqDataclass):
    """Settings of the Transformer that every Luna refuses, unless they are off."""

    no_cross_attention: bool = refused(
        False, "its decoder needs a source; for text without one use --task language_modeling --arch luna_lm"
    )
    cross_self_attention: bool = refused(
        False, "its decoder attends to the source and to its own past apart; leave it out"
    )
    decoder_input_dim: Optional[int] = refused(None, _ONE_DIMENSION, same_as="decoder_embed_dim")
    decoder_output_dim: Optional[int] = refused(None, _ONE_DIMENSION, same_as="decoder_embed_dim")
    merge_src_tgt_embed: bool = refused(
        False,
        "the data would keep the numbers of two dictionaries; prepare it with --joined-dictionary and add "
        "--share-all-embeddings",
    )
    char_inputs: bool = refused(False, "it reads tokens; for characters prepare data whose tokens are characters")
    encoder_xformers_att_config: Optional[str] = refused(
        None, "its encoder has attentions of its own; the ordinary one is --encoder-self-attention softmax"
    )
    decoder_xformers_att_config: Optional[str] = refused(
        None,
        "its decoder has attentions of its own; the ordinary ones are --decoder-self-attention softmax and "
        "--cross-attention softmax",
    )
    adaptive_input: bool = refused(False, f"{_INPUTS}; for an adaptive output use --adaptive-softmax-cutoff")
    tie_adaptive_weights: bool = refused(
        False, f"they would be tied to adaptive input embeddings, and {_INPUTS}; leave it out"
    )
    tie_adaptive_proj: bool = refused(
        False, f"they would be tied to adaptive input embeddings, and {_INPUTS}; leave it out"
    )
    quant_noise_scalar: float = refused(
        0.0,
        "fairseq would put layers of its own in the place of projections, which here split heads and move to the slots "
        "as well; use --quant-noise-pq for noise in training and --inference-precision int8 for 8 bits in generation",
    )
    base_layers: int = refused(0, _EXPERTS)
    base_sublayers: int = refused(1, _EXPERTS)
    base_shuffle: int = refused(1, _EXPERTS)
