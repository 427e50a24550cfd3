"""fairseq's dropout, faster on a CPU."""

from fairseq.modules import FairseqDropout
from torch import Tensor

from ..ops.dropout import dropout


class Dropout(FairseqDropout):
    """fairseq's dropout, as `ops.dropout.dropout` computes it."""

    def rate(self) -> float:
        """The probability, as training or not has it now."""
        return self.p if self.training or self.apply_during_inference else 0.0

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        rate = self.rate()
        return dropout(x, rate) if rate > 0 else x
