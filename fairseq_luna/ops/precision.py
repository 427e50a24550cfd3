"""The dtypes that operators compute in."""

import functools
from typing import Any, Callable

import torch
from torch import Tensor

# The reference takes the softmax of every unpack in float32, even for a float64 model, as fairseq
# does in all its attentions; that of a pack it takes in full. To agree beyond 1e-7 is to do so too.
UNPACK_DTYPE = torch.float32


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """For a function of a tensor and more: autocast would take its sums back to half precision."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return function(x, *args, **kwargs)

    return wrapped
