"""How many slots a sentence is packed into."""

import math
from typing import Optional, Tuple

import torch
import torch.nn as nn
from torch import Tensor


class SlotCount(nn.Module):
    """A sentence of n tokens uses ceil(n / r) slots, and l at most. r, its tokens per slot, can differ in training.

    With one r for all sentences, a model learns to pack so many tokens into a slot, and no more. Where each sentence
    draws its r in training, one model packs well for any r that it has met.

    Args:
        most: l, the projection length.
        tokens_per_slot: r, at least 1: a slot for each token, while there are enough.
        up_to: in training, sentences draw r between `tokens_per_slot` and this, its logarithm uniformly; None to draw
            nothing. It may be less than what generation asks for.
        share: of the sentences that draw; the others keep `tokens_per_slot`.
        fixed: whether every sentence uses all l slots.
    """

    def __init__(
        self,
        most: int,
        tokens_per_slot: float = 1.0,
        up_to: Optional[float] = None,
        share: float = 1.0,
        fixed: bool = False,
    ):
        super().__init__()
        self.most, self.tokens_per_slot, self.up_to, self.share, self.fixed = most, tokens_per_slot, up_to, share, fixed

    def forward(self, lengths: Tensor, longest: int) -> Tuple[int, Tensor]:
        """How many slots a batch needs, and how many of them each sentence uses.

        The first number follows from `longest` only, so that a batch of one shape has one number of slots, whatever
        its sentences draw.

        Args:
            lengths: n of each sentence, (B, 1).
            longest: at least as large as every length.

        Returns:
            l' and the slots of each sentence, (B, 1), at most l'.

        Raises:
            ValueError: in training, if there is nothing to draw from.
        """
        if self.fixed:
            return self.most, torch.full_like(lengths, self.most)
        slots = min(self.most, math.ceil(longest / self.tokens_per_slot))
        if self.tokens_per_slot == 1 and not self._draws():
            return slots, lengths.clamp(max=slots)
        # float32 would round 11 / 1.1 up to the next slot, and a GPU divides by a plain number less exactly
        tokens = lengths.double()
        ratios = self._drawn(tokens) if self._draws() else torch.full_like(tokens, self.tokens_per_slot)
        used = (tokens / ratios).ceil()
        return slots, used.to(lengths.dtype).clamp(max=slots)

    def _draws(self) -> bool:
        if not self.training or self.up_to is None:
            return False
        if self.up_to <= self.tokens_per_slot:
            raise ValueError(
                f"--most-tokens-per-slot must be above --tokens-per-slot, which is {self.tokens_per_slot:g}, but is "
                f"{self.up_to:g}. Leave it out if all sentences are to have the same."
            )
        return True

    def _drawn(self, tokens: Tensor) -> Tensor:
        """r of each sentence."""
        assert self.up_to is not None
        chance = torch.rand_like(tokens)
        exponent = torch.where(chance < self.share, chance / self.share, torch.zeros_like(chance))
        return self.tokens_per_slot * (self.up_to / self.tokens_per_slot) ** exponent
