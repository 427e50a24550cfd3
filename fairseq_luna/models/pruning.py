"""Layers left out on loading, of a model that was trained by LayerDrop (Fan et al. 2019).

A layer of the decoder is two modules here: what the source alone decides of it is a layer of the encoder's
`SourceMemory`. Both are left out together.
"""

import re
from typing import Dict, List, Optional

from torch import Tensor

# whose layers they are, by what their names begin with; those without "memory" in the authors' checkpoints, too
_OWNERS = {
    "encoder.layers": "encoder",
    "encoder.memory.layers": "decoder",
    "decoder.layers": "decoder",
    "decoder.pack_queries": "decoder",  # of a language model
}
# norms of P behind a last layer, which nothing reads, so that a model does without them (see `modules.residual`)
_UNREAD = re.compile(r"encoder\.(layers\.\d+\.packed_residual|memory\.layers\.\d+\.residual)\.layer_norm\.\w+")


def prune_layers(state_dict: Dict[str, Tensor], keep: Dict[str, Optional[List[int]]]) -> None:
    """Leaves out all layers but some of a checkpoint, in place, and counts those anew from 0.

    A checkpoint that has as many layers as are to be kept has been pruned before, and stays as it is.

    Args:
        state_dict: parameters by name.
        keep: the layers to keep of "encoder" and "decoder", ascending; None for all.

    Raises:
        ValueError: if the checkpoint has no such layer.
    """
    for prefix, side in _OWNERS.items():
        kept, pattern = keep.get(side), re.compile(rf"{re.escape(prefix)}\.(\d+)\.(.*)")
        found = [match for match in map(pattern.fullmatch, list(state_dict)) if match]
        layers = {int(match[1]) for match in found}
        if kept is None or len(layers) in (0, len(kept)):
            continue
        if not layers.issuperset(kept):
            numbers = ",".join(map(str, kept))
            raise ValueError(
                f"--{side}-layers-to-keep {numbers} asks for layers that the checkpoint does not have: "
                f"its {side} has {len(layers)}, numbered from 0."
            )
        parameters = {match: state_dict.pop(match[0]) for match in found}
        for match, value in parameters.items():
            if int(match[1]) in kept:
                state_dict[f"{prefix}.{kept.index(int(match[1]))}.{match[2]}"] = value


def forget_unread_norms(state_dict: Dict[str, Tensor], known: Dict[str, Tensor]) -> None:
    """Leaves out, in place, the norms of P that a layer loses when it becomes the last. known: a model's own state."""
    for name in list(state_dict):
        if name not in known and _UNREAD.fullmatch(name):
            del state_dict[name]
