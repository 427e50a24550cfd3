"""Which attention of a model aligns target and source (Garg et al. 2019, Jointly Learning to Align and Translate)."""

from typing import Any, List, NamedTuple, Optional

import torch
from torch import Tensor

from ...ops.precision import accumulation_dtype


class Alignment(NamedTuple):
    """The cross attention of one decoder layer, of its first heads.

    Attributes:
        layer: number of the layer, 0 the lowest.
        heads: how many of its heads.
        layers: how many layers there are.
        all_heads: how many heads there are.
    """

    layer: int
    heads: int
    layers: int
    all_heads: int

    @staticmethod
    def of(cfg: Any) -> "Alignment":
        """As the settings have it. cfg: a `LunaTransformerConfig`, checked."""
        layers, all_heads = cfg.decoder_layers, cfg.decoder_attention_heads
        layer = layers - 1 if cfg.alignment_layer is None else cfg.alignment_layer
        return Alignment(layer, cfg.alignment_heads, layers, all_heads)

    def instead(self, layer: Optional[int], heads: Optional[int]) -> "Alignment":
        """Another layer, other heads, where they are given.

        Raises:
            ValueError: if there is no such layer, or are not so many heads.
        """
        chosen = self._replace(
            layer=self.layer if layer is None else layer, heads=self.heads if heads is None else heads
        )
        if not 0 <= chosen.layer < self.layers:
            raise ValueError(f"alignment_layer must be from 0 to {self.layers - 1}, but is {layer}.")
        if not 1 <= chosen.heads <= self.all_heads:
            raise ValueError(f"alignment_heads must be from 1 to {self.all_heads}, but is {heads}.")
        return chosen

    def place(self, drawn: Optional[List[int]]) -> int:
        """The place of the layer among those at work; where LayerDrop has left it out, of the next one below.

        Args:
            drawn: the numbers of the layers at work, ascending; None for all.
        """
        return self.layer if drawn is None else max(0, sum(i <= self.layer for i in drawn) - 1)

    def mean(self, weights: Tensor) -> Tensor:
        """The mean of the heads' weights: (B, H, n, m) -> (B, n, m), in float32 at least.

        A pack may have another number of heads than the unpack; then they are the same share of them.
        """
        first = weights[:, : -(-weights.size(1) * self.heads // self.all_heads)]
        wide = accumulation_dtype(weights.dtype)
        return first.mean(dim=1, dtype=wide)


def even_attention(padding: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """What a target of n positions reads of a source without any layer: all of it alike.

    A loss of alignments finds it in its place, and has no gradient there. Mask (B, m), True where the source is
    padded -> (B, n, m).
    """
    real = (~padding).to(dtype)
    return (real / real.sum(dim=1, keepdim=True)).unsqueeze(1).repeat(1, n, 1)
