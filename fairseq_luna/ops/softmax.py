"""Softmax over the last dimension: of attentions, and of a vocabulary in place."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import accumulation_dtype


def softmax(logits: Tensor, hidden: Optional[Tensor] = None, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Softmax over the last dimension.

    Args:
        logits: (B, H, n, m).
        hidden: (B, m), True where a column is not to be seen.
        dtype: to compute in (default: float32, or float64 for float64).
    """
    if hidden is not None:
        logits = logits.masked_fill(hidden[:, None, None, :], float("-inf"))
    dtype = dtype or accumulation_dtype(logits.dtype)
    return F.softmax(logits, dim=-1, dtype=dtype).to(logits.dtype)


def log_softmax_(logits: Tensor) -> Tensor:
    """Log-softmax over the last dimension, in place: a vocabulary wide, it is the largest tensor there is.

    Log-probabilities are their own log-softmax: what was made here comes back as it is, so that a
    criterion may ask twice. A part of a larger tensor is left alone, and gets a result of its own.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.log_softmax(logits, dim=-1, out=logits)
    if logits.grad_fn is not None and logits.grad_fn.name() == "_LogSoftmaxBackward":
        return logits
    if logits.is_leaf or logits._base is not None:
        return F.log_softmax(logits, dim=-1)
    return _LogSoftmax.apply(logits)


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.mark_dirty(logits)
        torch.log_softmax(logits, dim=-1, out=logits)
        ctx.save_for_backward(logits)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (log_probs,) = ctx.saved_tensors
        return torch._log_softmax_backward_data(grad, log_probs, -1, log_probs.dtype)
