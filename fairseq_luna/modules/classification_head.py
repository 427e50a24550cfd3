"""What stands on an encoder that classifies."""

import torch.nn as nn
from fairseq import utils
from torch import Tensor

from .dropout import Dropout
from .linear import linear


class ClassificationHead(nn.Module):
    """One vector of a text, through a hidden layer, to a score for each class.

    Args:
        dim: D.
        classes: how many.
        first: whether the first token is classified, in place of the mean of all.
        activation: of those that fairseq knows.
        dropout: probability, before both layers.
    """

    def __init__(self, dim: int, classes: int, first: bool, activation: str, dropout: float):
        super().__init__()
        self.first = first
        self.dense, self.out = linear(dim, dim), linear(dim, classes)
        self.activation = utils.get_activation_fn(activation)
        self.dropout = Dropout(dropout, module_name="ClassificationHead")

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """X (B, n, D), its mask (B, n), True where padded -> scores (B, classes)."""
        real = (~padding).to(x.dtype).unsqueeze(-1)
        if self.first:
            text = (x * (real * real.cumsum(dim=1) == 1)).sum(dim=1)
        else:
            # in float32: thousands of terms
            text = ((x * real).float().sum(dim=1) / real.float().sum(dim=1)).to(x.dtype)
        return self.out(self.dropout(self.activation(self.dense(self.dropout(text)))))
