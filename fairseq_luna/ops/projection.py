"""Projections as operators take them, who choose whether to apply one or to move it to the other side of a product."""

from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

HeadWeights = Tuple[Tensor, Tensor]


def scaled(weight: Tensor, bias: Optional[Tensor], scale: float) -> Tuple[Tensor, Optional[Tensor]]:
    """W (out, in) and b (out) times the scale of what they make: there are fewer of them."""
    if scale == 1.0:
        return weight, bias
    return weight * scale, None if bias is None else bias * scale


class Projection(NamedTuple):
    """(x W^T + b) scale, or a form of it for generation, or x itself.

    Attributes:
        weight: W, (out, in); None for x itself.
        bias: b, (out).
        prepared: the whole product in another form, of another layout or precision; it cannot be moved.
        scale: of what the weights make.
    """

    weight: Optional[Tensor] = None
    bias: Optional[Tensor] = None
    prepared: Optional[Callable[[Tensor], Tensor]] = None
    scale: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """(B, n, in) -> (B, n, out)."""
        if self.prepared is not None:
            return self.prepared(x)
        return x if self.weight is None else F.linear(x, *scaled(self.weight, self.bias, self.scale))

    def apart(self, x: Tensor) -> Tuple[Tensor, float]:
        """(B, n, in) -> the product (B, n, out) and what is left to multiply it by, for who does so on the way."""
        if self.prepared is not None:
            return self.prepared(x), 1.0
        return self._replace(scale=1.0)(x), self.scale

    def by_head(self, heads: int) -> HeadWeights:
        """W as (H, d, in) and b as (H, d), scaled."""
        assert self.weight is not None
        weight, bias = scaled(self.weight, self.bias, self.scale)
        assert bias is not None
        return weight.unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))


IDENTITY = Projection()


def side_by_side(x: Tensor, projections: Sequence[Projection]) -> Tensor:
    """Several projections as one product, by their weights, without their scales: (B, n, in) -> (B, n, sum of out)."""
    weights = [projection.weight for projection in projections if projection.weight is not None]
    biases = [projection.bias for projection in projections if projection.bias is not None]
    assert len(weights) == len(biases) == len(projections), "one of them is no product"
    return F.linear(x, torch.cat(weights), torch.cat(biases))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, n, H d) -> (B, H, n, d)."""
    return x.view(x.size(0), x.size(1), heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H d)."""
    return x.transpose(1, 2).flatten(2)


def logits_moved(x: Tensor, projection: HeadWeights, slots: Tensor) -> Tensor:
    """(X W + b) S^T for the slots S of each head as X (W S^T) + b S^T.

    Args:
        x: X, (B, n, D).
        projection: W (H, d, D) and b (H, d).
        slots: S, (B, H, l, d).

    Returns:
        (B, n, H l).
    """
    bias, moved = moved_to(slots, projection)
    return torch.baddbmm(bias.transpose(1, 2), x, moved.transpose(1, 2))


def moved_to(slots: Tensor, projection: HeadWeights) -> Tuple[Tensor, Tensor]:
    """b S^T (B, H l, 1) and S W^T (B, H l, D), of S (B, H, l, d)."""
    weight, bias = projection
    moved = torch.einsum("bhld,hdk->bhlk", slots, weight).flatten(1, 2)
    return torch.einsum("bhld,hd->bhl", slots, bias).flatten(1, 2).unsqueeze(-1), moved
