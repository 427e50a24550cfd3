"""What is known of a batch's slots."""

from typing import NamedTuple, Optional

from torch import Tensor


class SlotInfo(NamedTuple):
    """What is known of a batch's slots.

    Attributes:
        padding: (B, l), True where a sentence has no such slot; None where all have all.
        positions: of `ops.slots.slot_positions`, (B, m); None where nothing has a Gaussian bias.
    """

    padding: Optional[Tensor]
    positions: Optional[Tensor]
