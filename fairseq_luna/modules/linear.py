"""A projection that has other forms: prepared for generation on a CPU, with noise in training."""

from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops.linear import PRODUCTS, Product
from ..ops.projection import Projection, scaled

Parameters = Tuple[Tensor, Optional[Tensor]]


class Linear(nn.Linear):
    """A projection that `prepare_products` can give another form to, and `quant_noise.add_noise` noise in training."""

    prepared: Optional[Product] = None
    noise: Optional[Product] = None  # of the weight
    scale = 1.0  # of what weight and bias make

    def weight_as_used(self) -> Tensor:
        """The weight, with its noise in training."""
        return self.weight if self.noise is None or not self.training else self.noise(self.weight)

    def parameters_as_used(self) -> Parameters:
        """Weight and bias of the product, with its scale."""
        return scaled(self.weight_as_used(), self.bias, self.scale)

    def projection(self) -> Projection:
        """The product as operators take it."""
        if self.is_prepared():
            return Projection(self.weight, self.bias, self.prepared, self.scale)
        return Projection(self.weight_as_used(), self.bias, scale=self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.prepared(x) if self.is_prepared() else F.linear(x, *self.parameters_as_used())  # type: ignore[misc]

    def is_prepared(self) -> bool:
        """Whether another form is used here and now: none of them has gradients."""
        return self.prepared is not None and not torch.is_grad_enabled()

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "prepared": None}  # which cannot be copied or pickled

    def _apply(self, *args: Any, **kwargs: Any) -> "Linear":
        self.prepared = None  # it was made of weights on another device or of another dtype
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.prepared = None
        super()._load_from_state_dict(*args, **kwargs)


def linear(in_dim: int, out_dim: int) -> Linear:
    """A projection as the reference starts it: Xavier, bias zero."""
    layer = Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def prepare_products(module: nn.Module, precision: str) -> None:
    """Gives every projection in a module on a CPU its form for generation.

    Norms, softmaxes, residuals and the decoder's state stay in float32 in all of them. Gradients, loaded weights and
    another device or dtype bring the plain form back; weights changed in place do not (fairseq lets no prepared model
    train).

    Args:
        module: with parameters in float32, which stay as they are beside.
        precision: a key of `PRODUCTS`.
    """
    for layer in module.modules():
        if isinstance(layer, Linear):
            weight, bias = layer.parameters_as_used()
            layer.prepared = PRODUCTS[precision](weight.detach(), None if bias is None else bias.detach())


def prepare_for_generation(module: nn.Module, weight: Tensor, precision: str) -> None:
    """`prepare_products` of a model that generates, where it is on a CPU.

    Args:
        module: the part of the model whose products pay.
        weight: one of the model's weights.
        precision: --inference-precision.

    Raises:
        ValueError: if the precision does not suit the device or the dtype of the weights.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        prepare_products(module, precision)
    elif precision != "fp32":
        raise ValueError(
            f"--inference-precision {precision} is for generation on a CPU from weights in float32, but they are "
            f"{str(weight.dtype)[6:]} on {weight.device.type}; leave it out."
        )
