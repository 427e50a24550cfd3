"""The way around a block."""

from typing import Any

import torch.nn as nn
from fairseq.modules import LayerNorm
from torch import Tensor

from ..ops.residual import residual
from .dropout import Dropout


class Residual(nn.Module):
    """The way around a block f: LN(x + f(x)), as in the paper, or with pre-norm x + f(LN(x)).

    To be used as `x = residual.leave(x, f(residual.enter(x)))`.

    Args:
        dim: D.
        pre_norm: whether the norm stands before the block.
        dropout: probability, of what the block makes.
        export: torch's layer norm, also where apex has a faster one.
        entered_only: never left, a post-norm has no norm: one without a gradient would stop DDP.
    """

    def __init__(
        self,
        dim: int,
        pre_norm: bool = False,
        dropout: float = 0.0,
        export: bool = False,
        entered_only: bool = False,
    ):
        super().__init__()
        self.layer_norm: Any = LayerNorm(dim, export=export) if pre_norm or not entered_only else None
        self.dropout = Dropout(dropout, module_name="LunaResidual")
        self.pre_norm = pre_norm

    def enter(self, x: Tensor) -> Tensor:
        """What the block reads."""
        return self.layer_norm(x) if self.pre_norm else x

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """x and the block's result y, joined."""
        x = residual(x, y, self.dropout)
        return x if self.pre_norm else self.layer_norm(x)
