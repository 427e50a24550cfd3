"""Activation checkpointing: a layer keeps what enters it, and is computed again when its gradients are due."""

import functools
from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .step import Step


def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """For the `forward(self, x, *rest)` of a layer with the attributes `recompute` and `offload`.

    With `offload` x waits in the memory of the CPU. The random numbers of the first pass are drawn again in the second.
    Not fairseq's `checkpoint_wrapper`: that cuts off the gradients of tensors inside a tuple.
    """

    def from_cpu(self: Any, waiting: Tensor, like: Tensor, *rest: Any) -> Any:
        return forward(self, waiting.to(like.device), *rest)

    @functools.wraps(forward)
    def wrapped(self: Any, x: Tensor, *rest: Any) -> Any:
        # a step of a generation writes to its state, and cannot be run twice
        if not self.recompute or not torch.is_grad_enabled() or Step in map(type, rest):
            return forward(self, x, *rest)
        if self.offload:
            # torch looks at the devices of tensors for which random numbers to keep: `like` is of the layer's own
            return checkpoint(from_cpu, self, x.to("cpu"), x.new_empty(0), *rest, use_reentrant=False)
        return checkpoint(forward, self, x, *rest, use_reentrant=False)

    return wrapped
