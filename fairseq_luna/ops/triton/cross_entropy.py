"""What a cross entropy needs of logits, in one kernel: their normaliser, and their gradients.

A program reads a row of logits twice: once for its logsumexp, and again, as a rule from the cache, for its
probabilities.
"""

from typing import Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # words at once


@triton.jit(do_not_specialize=["units"])
def rows_kernel(
    logits, target, log_p_right, normalisers, d_logits, units, right, raised,
    BLOCK: tl.constexpr, WANTED: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Of one row of units * UNIT words; gradients where WANTED."""
    row = tl.program_id(0).to(tl.int64)
    words = units * UNIT  # the compiler sees that UNIT divides it, and reads several logits at once
    word = tl.arange(0, BLOCK)
    logits += row * words
    most = tl.load(logits).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, words, BLOCK):
        some = tl.load(logits + start + word, start + word < words, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(most, tl.max(some, axis=0))
        total = total * tl.exp(most - larger) + tl.exp(some - larger)
        most = larger
    normaliser = most + tl.log(tl.sum(total, axis=0))
    target_word = tl.load(target + row)
    tl.store(normalisers + row, normaliser)
    is_word = (target_word >= 0) & (target_word < words)
    right_logit = tl.load(logits + target_word, is_word, other=float("nan")).to(tl.float32)
    tl.store(log_p_right + row, right_logit - normaliser)
    if WANTED:
        d_logits += row * words
        for start in range(0, words, BLOCK):
            some = tl.load(logits + start + word, start + word < words, other=float("-inf")).to(tl.float32)
            d = (tl.exp(some - normaliser) - tl.where(start + word == target_word, right, 0.0)) * raised
            tl.store(d_logits + start + word, d.to(d_logits.dtype.element_ty), start + word < words)


def unit(words: int) -> int:
    """A divisor of the number of words: 8 where that is one, as fairseq pads its dictionaries, else 1."""
    return 8 if words % 8 == 0 else 1


def gradients_of_rows(
    logits: Tensor, target: Tensor, right: float, raised: float, wanted: bool
) -> Tuple[Optional[Tensor], Tensor, Tensor]:
    """As `ops.cross_entropy.direct_rows`, but the logits stay as they are."""
    log_p_right, normalisers = (torch.empty(target.shape, dtype=torch.float32, device=logits.device) for _ in range(2))
    d_logits, words = torch.empty_like(logits) if wanted else None, logits.size(1)
    rows_kernel[(len(logits),)](
        logits, target, log_p_right, normalisers, logits if d_logits is None else d_logits, words // unit(words),
        float(right), float(raised), BLOCK=BLOCK, WANTED=wanted, UNIT=unit(words), num_warps=8,
    )  # fmt: skip
    return d_logits, log_p_right, normalisers
