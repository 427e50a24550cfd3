"""The feed-forward block of a layer."""

import torch.nn as nn
from fairseq import utils
from torch import Tensor

from .dropout import Dropout
from .linear import linear


class FeedForward(nn.Module):
    """FFN(x) = W_2 act(W_1 x). (B, n, D) -> (B, n, D).

    Args:
        dim: D.
        hidden_dim: of what is between.
        activation: of those that fairseq knows.
        dropout: probability, of the activations.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: str = "relu", dropout: float = 0.0):
        super().__init__()
        self.fc1 = linear(dim, hidden_dim)
        self.fc2 = linear(hidden_dim, dim)
        self.activation = utils.get_activation_fn(activation)
        self.dropout = Dropout(dropout, module_name="FeedForward")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(x))))
