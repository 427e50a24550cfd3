"""The fused operators, for who has asked `dispatch.fused`: None comes back where a kernel does not compile.

Shapes and arguments are those of the operators in `triton/`; dropout draws its seed from torch's generator.
"""

from typing import Optional

from torch import Tensor

from . import dispatch


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    pack_key: Tensor,
    pack_query: Tensor,
    hidden: Optional[Tensor],
    decay: Optional[Tensor],
    activation: str,
    dropout: float,
) -> Optional[Tensor]:
    """As `triton.causal.causal_attention`."""
    from .triton import causal

    batch, n, _ = query.shape
    heads, slots, dim = pack_query.shape[1:]
    tied, decaying = value is None, decay is not None
    launch = causal.plan(
        batch, n, heads, dim, slots, query.dtype, query.device, tied, decaying, activation, dropout > 0
    )  # fmt: skip
    seed = dispatch.seed(dropout)

    def call(q, k, v, c, p):
        return causal.causal_attention(q, k, v, c, p, hidden, decay, activation, dropout, seed, launch)

    kind = (*launch.options.values(), launch.parts > 1, n > launch.chunk, hidden is None, query.dtype)
    pack_query = pack_query.to(query.dtype)
    return dispatch.attempt("causal attention", kind, call, query, key, value, pack_key, pack_query)


def pack(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    heads: int,
    padding: Optional[Tensor],
    positions: Optional[Tensor],
    sharpness: Optional[Tensor],
    shift: Optional[Tensor],
    dropout: float,
) -> Optional[Tensor]:
    """As `triton.pack.pack`."""
    from .triton import pack as kernels

    batch, n, width = key.shape
    positions = None if sharpness is None else positions
    launch = kernels.plan_rows(
        batch, n, heads, width // heads, query.size(1), key.dtype, key.device, positions is not None, dropout > 0
    )
    seed = dispatch.seed(dropout)

    def call(q, k, v, gamma, s):
        return kernels.pack(q, k, v, heads, padding, positions, gamma, s, dropout, seed, launch)

    kind = (*launch.options.values(), launch.parts > 1, value is None, padding is None, key.dtype)
    value = None if value is None else value.to(key.dtype)  # plain values under autocast are not projected
    return dispatch.attempt("pack", kind, call, query, key, value, sharpness, shift)


def unpack(
    query: Tensor,
    key: Tensor,
    value: Optional[Tensor],
    hidden: Optional[Tensor],
    positions: Optional[Tensor],
    sharpness: Optional[Tensor],
    shift: Optional[Tensor],
    dropout: float,
) -> Optional[Tensor]:
    """As `triton.unpack.unpack`."""
    from .triton import unpack as kernels

    batch, heads, slots, dim = key.shape
    positions = None if sharpness is None else positions
    launch = kernels.plan_rows(
        batch, query.size(1), heads, dim, slots, query.dtype, query.device, positions is not None, dropout > 0
    )
    seed = dispatch.seed(dropout)

    def call(q, k, v, gamma, s):
        return kernels.unpack(q, k, v, hidden, positions, gamma, s, dropout, seed, launch)

    kind = (*launch.options.values(), launch.parts > 1, value is None, hidden is None, query.dtype)
    key, value = key.to(query.dtype), None if value is None else value.to(query.dtype)
    return dispatch.attempt("unpack", kind, call, query, key, value, sharpness, shift)
