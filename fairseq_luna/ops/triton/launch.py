"""What starting a kernel asks of the host, the same for all operators."""

import functools
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch
import triton
from torch import Tensor

from .causal_forward import forward_kernel

_INTERPRETED = type(forward_kernel).__name__ == "InterpretedFunction"


class Launch(NamedTuple):
    """How the kernels of a call are started.

    Attributes:
        chunk: C, positions at once.
        parts: of a sequence, that run at once.
        per_part: chunks of each.
        slots: L.
        options: what all kernels of the call are compiled for, and how.
    """

    chunk: int
    parts: int
    per_part: int
    slots: int
    options: Dict[str, Any]


@functools.lru_cache(maxsize=4096)
def plan_rows(
    batch: int, n: int, heads: int, dim: int, slots: int, dtype: torch.dtype, device: torch.device,
    bias: bool, dropping: bool,
) -> Launch:  # fmt: skip
    """The launch of a pack or unpack for B, n, H, d, l."""
    largest = 32 if dtype == torch.float32 or padded(slots) > 64 else 64
    chunk = chunk_for(n, largest)
    options = {
        "HEADS": heads,
        "L": padded(slots),
        "D": dim,
        "C": chunk,
        "BIAS": bias,
        "DROPOUT": dropping,
        "PRECISION": precision(dtype),
        "num_warps": 4 if chunk >= 32 else 2,
        "num_stages": 2,
    }
    return Launch(chunk, *cut(batch * heads, n, chunk, device), padded(slots), options)


def chunk_for(n: int, largest: int) -> int:
    """The power of two, 16 at least, that holds n, or `largest`."""
    chunk = 16
    while chunk < min(n, largest):
        chunk *= 2
    return chunk


def bias_gradients(d_bias: Optional[Tensor], heads: int, like: Optional[Tensor]) -> Tuple[Any, Any]:
    """Of gamma and the shift, (H,) each: sums over sentences and parts of (2, B, H, parts), in one order always."""
    if d_bias is None or like is None:
        return None, None
    return d_bias.sum((1, 3)).to(like.dtype).unbind(0)  # type: ignore[return-value]


def precision(dtype: torch.dtype) -> str:
    """Of the products: three TF32 products for one of float32 on tensor cores have errors of about float32's."""
    if dtype == torch.float32:
        return "tf32x3"
    return "interpreted" if _INTERPRETED else "ieee"


def padded(slots: int) -> int:
    """L: a power of two, 16 at least, as products of blocks want it."""
    return max(16, triton.next_power_of_2(slots))


def cut(groups: int, n: int, chunk: int, device: torch.device) -> Tuple[int, int]:
    """Into how many parts of how many chunks a sequence of n is cut, so that `groups` sequences fill the device."""
    chunks = triton.cdiv(n, chunk)
    parts = max(1, min(triton.cdiv(4 * _processors(device), groups), chunks // 2, 32))
    per_part = triton.cdiv(chunks, parts)
    return triton.cdiv(chunks, per_part), per_part


@functools.lru_cache(maxsize=None)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def draws_of(p: float, seed: int, turn: Optional[Tensor], like: Tensor) -> Tuple[int, Tensor, int, float]:
    """What a kernel drops by: seed, turn, the 24-bit number below which an element goes, the scale of the others."""
    turn = like.new_zeros(1, dtype=torch.int32) if turn is None else turn
    return seed, turn, int(p * 2**24), 1 / (1 - p)


def as_bytes(mask: Any, instead: Tensor) -> Tensor:
    """A mask as kernels read it; a kernel takes no None, but what it does not read may be anything."""
    return instead if mask is None else mask.contiguous().view(torch.uint8)


def in_blocks(of_slots: Tensor, *others: Optional[Tensor]) -> Tuple[Any, ...]:
    """Tensors (B, H, l, d), laid out alike: each sentence is one block of memory, by heads or by slots. They are copied
    only where they are not. None stays None."""
    _, heads, slots, dim = of_slots.shape
    strides = of_slots.stride()
    blocks = ((heads * slots * dim, slots * dim, dim, 1), (heads * slots * dim, dim, heads * dim, 1))
    if strides in blocks and all(other is None or other.stride() == strides for other in others):
        return (of_slots, *others)
    return tuple(None if u is None else u.contiguous() for u in (of_slots, *others))


def parts_like(of_slots: Tensor, parts: int) -> Tensor:
    """Empty memory for the gradient of (B, H, l, d), laid out as that is. Several parts are in float32, to be added
    up."""
    shape, strides, device = of_slots.shape, of_slots.stride(), of_slots.device
    if parts == 1:
        return torch.empty_strided(shape, strides, dtype=of_slots.dtype, device=device)
    return torch.empty_strided((parts, *shape), (of_slots.numel(), *strides), dtype=torch.float32, device=device)
