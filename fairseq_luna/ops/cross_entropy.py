"""Cross entropy of the words that a projection predicts, a few rows at a time.

    log p_t = log_softmax(W x_t)
    nll = -sum_t log p_t[y_t]
    loss = (1 - e - e') nll - e' sum_t sum_v log p_t[v],   e' = e / (V - 1)

Over a whole vocabulary the logits of a batch are the largest tensors of a training, and the equation needs several of
them in float32. Here the logits of a few rows exist at a time, and gradients are made while they do. What label
smoothing adds is the same for all words, so S = sum_v W_v is enough for it:

    sum_v log p_t[v] = S x_t - V logsumexp(W x_t)
    dloss/dx_t = W^T (p_t - (1 - e - e') onehot(y_t)) - e' S
    dloss/dW_v = sum_t (p_t[v] - (1 - e - e') [v = y_t] - e') x_t
"""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import dispatch, fused
from .precision import accumulation_dtype, without_autocast
from .softmax import log_softmax_

# Logits at a time. Fewer would be slower, since each time all gradients of W are read and written.
AT_ONCE = {"cpu": 2**25, "cuda": 2**26}
# Float16 holds nothing between 0 and 6e-8, nor above 65504. So probabilities are raised before they are multiplied, or
# those of rare words would vanish. X is lowered, and not too many rows are summed up at a time, or the gradients of
# common words would overflow.
RAISED, LOWERED, MOST_ROWS = 2.0**8, 2.0**-8, 4096


def cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, smoothing: float = 0.0, ignored: Optional[int] = None
) -> Tuple[Tensor, Tensor]:
    """The loss with label smoothing (Szegedy et al. 2016), and the negative log-likelihood.

    Args:
        x: X, (N, D).
        weight: W, (V, D).
        target: y, (N,).
        smoothing: e, the probability that all other words share.
        ignored: the word that does not count, such as padding.

    Returns:
        loss and nll in nats, sums over the rows, in float32 at least. nll has no gradient.
    """
    if ignored is not None and not x.is_cuda:  # where a GPU's host would wait to know how many rows are left
        counting = target != ignored
        x, target = x[counting], target[counting]
    dtype = F.linear(x[:0], weight[:0]).dtype  # as autocast has it
    return _loss(x.to(dtype), weight.to(dtype), target, smoothing, ignored, torch.is_grad_enabled())


@without_autocast
def _loss(*args: Any) -> Tuple[Tensor, Tensor]:
    return _CrossEntropy.apply(*args)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, target, smoothing, ignored, differentiated):
        wide, words = accumulation_dtype(x.dtype), len(weight)
        others = smoothing / (words - 1)
        right = 1 - smoothing - others
        raised, lowered = (RAISED, LOWERED) if x.dtype == torch.float16 else (1.0, 1.0)
        target = target.unsqueeze(1)
        counts = torch.ones_like(target, dtype=wide)
        if ignored is not None:  # it need not be the number of a word
            counts, target = (target != ignored).to(wide), target.masked_fill(target == ignored, 0)
        counted = x * (counts * lowered).to(x.dtype)
        dx = torch.empty_like(x) if differentiated and ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(weight, dtype=wide) if differentiated and ctx.needs_input_grad[1] else None

        log_p_right, normalisers = torch.empty_like(counts), torch.empty_like(counts)
        wanted = dx is not None or dw is not None
        rows = min(MOST_ROWS, max(1, AT_ONCE["cuda" if x.is_cuda else "cpu"] // words))
        for start in range(0, len(x), rows):
            some = slice(start, start + rows)
            logits = x[some] @ weight.t()
            work = dispatch.Work(logits.unsqueeze(0))
            given = logits, target[some], right, raised, wanted
            d_logits, log_p_right[some], normalisers[some] = dispatch.run("cross entropy", work, FORMS, *given)
            if dx is not None:
                torch.mm(d_logits, weight, out=dx[some])
            if dw is not None and dw.dtype == x.dtype:
                dw.addmm_(d_logits.t(), counted[some])
            elif dw is not None:
                dw.add_(d_logits.t() @ counted[some], alpha=1 / (raised * lowered))

        sum_of_x, sum_of_weights = (u.sum(dim=0, dtype=wide) for u in (counted, weight))
        sum_of_x = sum_of_x / lowered
        nll = -(counts * log_p_right).sum()
        spread = words * (counts * normalisers).sum() - sum_of_x @ sum_of_weights
        if dx is not None:
            dx = (dx.to(wide) / raised - others * sum_of_weights) * counts
        if dw is not None:
            dw -= others * sum_of_x
        ctx.save_for_backward(dx, dw)
        ctx.dtype = x.dtype
        ctx.mark_non_differentiable(nll)
        return right * nll + others * spread, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_loss, _):
        gradients = (None if d is None else (d * d_loss).to(ctx.dtype) for d in ctx.saved_tensors)
        return (*gradients, None, None, None, None)


Rows = Tuple[Optional[Tensor], Tensor, Tensor]


def direct_rows(logits: Tensor, target: Tensor, right: float, raised: float, wanted: bool) -> Rows:
    """What the loss needs of some rows of logits, whose memory it takes.

    Args:
        logits: W x, (N, V).
        target: y, (N, 1).
        right: 1 - e - e'.
        raised: what gradients are multiplied by.
        wanted: whether there are to be gradients.

    Returns:
        p - right onehot(y), raised, (N, V), or None; log p[y] and the logsumexp, (N, 1) each, in float32 at least.
    """
    wide, right_logits = accumulation_dtype(logits.dtype), logits.gather(1, target)
    log_p = log_softmax_(logits) if logits.dtype == wide else F.log_softmax(logits, dim=1, dtype=wide)
    log_p_right = log_p.gather(1, target)
    normalisers = right_logits - log_p_right
    if not wanted:
        return None, log_p_right, normalisers
    # the right word's is small where the model is sure of it, so it is rounded last
    d_logits = log_p.exp_().scatter_add_(1, target, torch.full_like(log_p_right, -right))
    if logits.dtype != wide:
        d_logits = torch.mul(d_logits, raised, out=logits)
    return d_logits, log_p_right, normalisers


FORMS = {"direct": direct_rows, "fused": fused.cross_entropy_rows}
