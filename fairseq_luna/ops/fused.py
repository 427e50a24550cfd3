"""The fused operators between their projections: None comes back where a kernel does not compile.

Shapes and arguments are those of the operators in `triton/`; dropout draws its seed from torch's generator, and
its turn is that of `dispatch`.
"""

import functools
from typing import Optional, Tuple

import torch
from torch import Tensor

from . import dispatch
from .slots import GaussianBias


def causal_attention(
    projected: Tensor,
    pack_query: Tensor,
    hidden: Optional[Tensor],
    decay: Optional[Tensor],
    activation: str,
    dropout: float,
    query_scale: float,
) -> Optional[Tensor]:
    """As `triton.causal.causal_attention`."""
    from .triton import causal

    batch, n, _ = projected.shape
    heads, slots, dim = pack_query.shape[1:]
    dtype, device, tied = projected.dtype, projected.device, projected.size(2) == 3 * heads * dim
    launch = causal.plan(batch, n, heads, dim, slots, dtype, device, tied, decay is not None, activation, dropout > 0)
    seed, turn = dispatch.seed(dropout), dispatch.turn(device)
    decay = None if decay is None else _in_float32(decay)

    def call(x, p):
        return causal.causal_attention(x, p, hidden, decay, activation, dropout, seed, turn, query_scale, launch)

    kind = (*launch.options.values(), launch.parts > 1, n > launch.chunk, hidden is None, dtype)
    return dispatch.attempt("causal attention", kind, call, projected, pack_query.to(dtype))


def causal_step(
    projected: Tensor,
    pack_query: Tensor,
    keys: Tensor,
    values: Optional[Tensor],
    share: Tensor,
    order: Optional[Tensor],
    hidden: Optional[Tensor],
    activation: str,
    query_scale: float,
) -> Optional[Tuple[Tensor, Tensor, Optional[Tensor]]]:
    """As `triton.causal_step.causal_step`."""
    from .triton import causal_step as kernels
    from .triton.launch import padded

    def call(x, p, keys, values):
        return kernels.causal_step(x, p, keys, values, share, order, hidden, activation, query_scale)

    heads, slots, dim = pack_query.shape[1:]
    given = values is None, hidden is None, order is None, share.dim(), share.dtype
    kind = heads, padded(slots), slots % 16 == 0, dim, *given, activation, projected.dtype
    return dispatch.attempt("causal step", kind, call, projected, pack_query, keys, values)


def pack(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    heads: int,
    padding: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: float,
    query_scale: float,
) -> Optional[Tensor]:
    """As `triton.pack.pack`."""
    from .triton import pack as kernels

    batch, n, width = key.shape
    positions, sharpness, shift = bias or (None, None, None)
    launch = kernels.plan_rows(
        batch, n, heads, width // heads, query.size(1), key.dtype, key.device, positions is not None, dropout > 0
    )
    seed, turn = dispatch.seed(dropout), dispatch.turn(key.device)

    def call(q, k, v, gamma, s):
        return kernels.pack(q, k, v, heads, padding, positions, gamma, s, dropout, seed, turn, query_scale, launch)

    kind = (*launch.options.values(), launch.parts > 1, value is None, padding is None, key.dtype)
    value = None if value is None else value.to(key.dtype)  # unprojected values under autocast are not projected
    return dispatch.attempt("pack", kind, call, query, key, value, sharpness, shift)


def unpack(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    hidden: Optional[Tensor],
    bias: Optional[GaussianBias],
    dropout: float,
    query_scale: float,
) -> Optional[Tensor]:
    """As `triton.unpack.unpack`."""
    from .triton import unpack as kernels

    batch, heads, slots, dim = key.shape
    positions, sharpness, shift = bias or (None, None, None)
    launch = kernels.plan_rows(
        batch, query.size(1), heads, dim, slots, query.dtype, query.device, positions is not None, dropout > 0
    )
    seed, turn = dispatch.seed(dropout), dispatch.turn(key.device)

    def call(q, k, v, gamma, s):
        return kernels.unpack(q, k, v, hidden, positions, gamma, s, dropout, seed, turn, query_scale, launch)

    kind = (*launch.options.values(), launch.parts > 1, value is None, hidden is None, query.dtype)
    key, value = key.to(query.dtype), None if value is None else value.to(query.dtype)
    return dispatch.attempt("unpack", kind, call, query, key, value, sharpness, shift)


def residual(x: Tensor, y: Tensor, dropout: float) -> Optional[Tensor]:
    """As `triton.residual.residual`."""
    from .triton import residual as kernels

    seed, turn = dispatch.seed(dropout), dispatch.turn(y.device)

    def call(x, y):
        return kernels.residual(x, y, dropout, seed, turn)

    # where 16 divides it, several elements are read at once
    kind = x.dtype, y.dtype, y.numel() % 16 == 0
    return dispatch.attempt("residual", kind, call, x, y)


def cross_entropy_rows(
    logits: Tensor, target: Tensor, right: float, raised: float, wanted: bool
) -> Optional[Tuple[Optional[Tensor], Tensor, Tensor]]:
    """As `cross_entropy.direct_rows`."""
    from .triton import cross_entropy

    def call(logits, target):
        return cross_entropy.gradients_of_rows(logits, target, right, raised, wanted)

    kind = logits.dtype, wanted, cross_entropy.unit(logits.size(1))
    return dispatch.attempt("cross entropy", kind, call, logits, target)


@functools.lru_cache(maxsize=None)  # a CUDA graph may read it
def _in_float32(decay: Tensor) -> Tensor:
    """Made once: the layers of a model have one tensor of decays."""
    with torch.inference_mode(False):  # or it would be of no use in training
        return decay.float()
