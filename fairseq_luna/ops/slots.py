"""Where slots and positions lie, and the bias of the logits that follows from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from .precision import accumulation_dtype


def slot_positions(padding: Tensor, used: Tensor) -> Tensor:
    """Where each position lies, were the slots spread evenly over the sentence.

        (j + 1/2) / w,   w = n / l'

    for the j-th of the n tokens of a sentence that uses l' slots: the unit is the stretch w of a slot, and slot i has
    its centre at i + 1/2.

    Args:
        padding: (B, m), True where the source is padded, wherever it is.
        used: l' of each sentence, (B, 1).

    Returns:
        (B, m), in float32.
    """
    tokens = (~padding).float()
    # at least 1, for a row of nothing but padding
    stretch = tokens.sum(dim=1, keepdim=True).clamp(min=1) / used.clamp(min=1)
    return (tokens.cumsum(dim=1) - 0.5) / stretch


class GaussianBias(NamedTuple):
    """-|gamma_h| (x_j - c_i - s_h)^2 on the logits of slot i and position j of head h.

    After Yang et al. 2018 (Modeling Localness for Self-Attention Networks) and Guo et al. 2019 (Gaussian Transformer),
    with the slots spread evenly over the sentence for centres c_i.

    Attributes:
        positions: x of `slot_positions`, (B, m), in float32.
        sharpness: gamma, (H,).
        shift: s, (H,), in stretches of a slot.
    """

    positions: Tensor
    sharpness: Tensor
    shift: Tensor

    def logits(self, slots: int) -> Tensor:
        """For l slots: (B, H, l, m)."""
        # squares of slots far away are beyond half precision
        wide = accumulation_dtype(self.shift.dtype)
        gamma, shift = (u.to(wide).view(-1, 1, 1) for u in (self.sharpness.abs(), self.shift))
        centres = torch.arange(slots, device=self.positions.device, dtype=self.positions.dtype).view(-1, 1) + 0.5
        offsets = self.positions[:, None, None, :] - (centres + shift)
        # exp(-30) is nothing beside 1, and far less makes denormal numbers, in which a CPU is slow
        return (-gamma * offsets**2).clamp(min=-30).to(self.shift.dtype)
