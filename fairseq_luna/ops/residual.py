"""x + dropout(y): x went around a block, y came out of it."""

from typing import Optional

from torch import Tensor

from . import dispatch, fused
from .dropout import Dropout


def residual(x: Tensor, y: Tensor, dropout: Dropout) -> Tensor:
    """Joined, by the form that `dispatch` chooses.

    Args:
        x: X, (B, n, D).
        y: of the block, (B, n, D).
        dropout: applied to y.

    Returns:
        (B, n, D).
    """
    rate = dropout.rate()
    if rate == 0:
        return x + y
    return dispatch.run("residual", dispatch.Work(y, dropout=rate), FORMS, x, y, dropout)


def direct_residual(x: Tensor, y: Tensor, dropout: Dropout) -> Tensor:
    """The equation."""
    return x + dropout(y)


def fused_residual(x: Tensor, y: Tensor, dropout: Dropout) -> Optional[Tensor]:
    """One kernel, which keeps no mask; None where it does not compile."""
    return fused.residual(x, y, dropout.rate())


FORMS = {"direct": direct_residual, "fused": fused_residual}
