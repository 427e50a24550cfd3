"""What a step of decoding has beside its tensors."""

from typing import Any, Dict, NamedTuple

from ..ops.causal.state import Share


class Step(NamedTuple):
    """A step of decoding, the same for all layers.

    Attributes:
        incremental_state: fairseq's, in which each attention keeps what it knows of the past, under itself.
        share: 1/w_t of `ops.causal.state.share_of_step`.
        in_place: whether new states may take the memory of the old ones; gradients would need those.
    """

    incremental_state: Dict[Any, Any]
    share: Share
    in_place: bool = False
