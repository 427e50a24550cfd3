"""Everything to tune in the quick start, as options of fairseq-train and fairseq-generate."""

import argparse
import difflib
from typing import Any, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.generation.options import MAX_TOKENS, Search
from luna_tools.machine import import_plugin

# The same for every architecture (but for the feed-forward of the plugin's own ones of this size, chosen for as many
# parameters): `--arch transformer` is the baseline of equal size.
DIMENSIONS: Dict[str, Any] = {
    "--encoder-embed-dim": 128,
    "--encoder-ffn-embed-dim": 512,
    "--encoder-layers": 3,
    "--encoder-attention-heads": 4,
    "--decoder-embed-dim": 128,
    "--decoder-ffn-embed-dim": 512,
    "--decoder-layers": 3,
    "--decoder-attention-heads": 4,
    "--encoder-normalize-before": None,
    "--decoder-normalize-before": None,
    "--share-all-embeddings": None,
    "--dropout": 0.05,
}
TRAINING: Dict[str, Any] = {
    "--task": "translation",
    "--criterion": "label_smoothed_cross_entropy",
    "--label-smoothing": 0.1,
    "--optimizer": "adam",
    "--adam-betas": "(0.9, 0.98)",
    "--clip-norm": 1.0,
    "--lr": 0.004,
    "--lr-scheduler": "polynomial_decay",  # linear, from the end of the warm-up to zero at the last update
    "--max-tokens": 1024,  # for as many tokens, small batches learnt more than large ones
    "--max-tokens-valid": 4096,
}
RUN: Dict[str, Any] = {
    "vocabulary": 4000,
    "warmup": 600,  # updates; at most a quarter of the run, and then to a learning rate as much lower
    "updates": 5600,
    "validations": 20,
    "averaged checkpoints": 3,
}
DECODING = {
    "--beam": Search.beam,
    "--lenpen": Search.lenpen,
    "--max-len-a": Search.max_len_a,
    "--max-len-b": Search.max_len_b,
    "--max-tokens": MAX_TOKENS,
}


def words(options: dict) -> List[str]:
    """A table of options as words of a command line; None stands for a flag without a value."""
    return [str(word) for flag, value in options.items() for word in ((flag,) if value is None else (flag, value))]


def model_class(arch: str) -> Any:
    """The class behind an architecture of fairseq's.

    Raises:
        Problem: if fairseq knows none of that name.
    """
    import_plugin()
    from fairseq.models import ARCH_MODEL_REGISTRY

    if arch not in ARCH_MODEL_REGISTRY:
        near = difflib.get_close_matches(arch, ARCH_MODEL_REGISTRY, 3) or ["luna_transformer_tiny", "transformer"]
        raise Problem(f"--arch {arch} is not an architecture that fairseq knows; did you mean {' or '.join(near)}?")
    return ARCH_MODEL_REGISTRY[arch]


def dimensions(arch: str) -> Dict[str, Any]:
    """The dimensions that an architecture has options for, and does not know better."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    model_class(arch).add_args(parser)
    left_out = parser.parse_known_args(words(DIMENSIONS))[1]
    from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES

    if ARCHITECTURES.get(arch, {}).get("encoder_embed_dim") == DIMENSIONS["--encoder-embed-dim"]:
        left_out += ["--encoder-ffn-embed-dim", "--decoder-ffn-embed-dim"]
    return {flag: value for flag, value in DIMENSIONS.items() if flag not in left_out}
