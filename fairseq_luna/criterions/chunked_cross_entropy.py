"""fairseq's two losses of words, without the logits of a whole batch: the same numbers in less memory."""

from typing import Any, NamedTuple, Optional, Tuple

import torch.nn as nn
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.distributed import FullyShardedDataParallel
from fairseq.models import BaseFairseqModel, FairseqDecoder, FairseqLanguageModel
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from torch import Tensor

from ..models.luna_lm.decoder import LunaLMDecoder
from ..models.luna_transformer.decoder import LunaDecoder
from ..models.luna_transformer.model import LunaTransformerModel
from ..models.token_decoder import TokenDecoder
from ..modules.linear import Linear
from ..ops.cross_entropy import cross_entropy

# Between features and the loss they have a projection and a log-softmax. Others may have more.
PLAIN = {
    *(kind.forward for kind in (TransformerModelBase, LunaTransformerModel, FairseqLanguageModel)),
    *(kind.forward for kind in (TransformerDecoderBase, LunaDecoder, LunaLMDecoder)),
    *(kind.output_layer for kind in (TransformerDecoderBase, TokenDecoder)),
    *(kind.get_normalized_probs for kind in (BaseFairseqModel, TransformerModelBase, FairseqDecoder, TokenDecoder)),
}


class _Features(NamedTuple):
    """What fairseq's criterion calls in place of a model: it makes features, not logits."""

    model: Any
    projection: nn.Linear

    def __call__(self, **net_input: Any) -> Any:
        return self.model(**net_input, features_only=True)


class _Chunked:
    """Asks a model for features, and computes the loss of its output projection with `ops.cross_entropy`.

    Where a loss of each word is asked for, or the accuracy, or where a model may have more than an output projection,
    the loss is computed as fairseq does.
    """

    eps = 0.0
    ignore_prefix_size = 0
    report_accuracy = False
    padding_idx: int

    def forward(self, model: Any, sample: Any, reduce: bool = True) -> Any:
        """As fairseq's: the loss of a batch, what to divide it by, and what to log."""
        projection = None
        if reduce and not (self.report_accuracy or self.ignore_prefix_size):
            projection = _projection(model)
        made = model if projection is None else _Features(model, projection)
        return super().forward(made, sample, reduce)  # type: ignore[misc]

    def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> Tuple[Tensor, Tensor]:
        """Called by fairseq's `forward` with what `model` has made."""
        if not isinstance(model, _Features):
            return super().compute_loss(model, net_output, sample, reduce)  # type: ignore[misc]
        features, target = net_output[0].flatten(0, 1), model.model.get_targets(sample, net_output).flatten()
        return cross_entropy(features, model.projection.weight, target, self.eps, self.padding_idx)


def _projection(model: Any) -> Optional[nn.Linear]:
    """What makes logits of features; None where it is not known to be all that does."""
    wrapped = [model]
    while isinstance(getattr(wrapped[-1], "module", None), nn.Module):
        wrapped.append(wrapped[-1].module)
    if any(isinstance(part, FullyShardedDataParallel) for part in wrapped):
        return None  # weights are whole only within `forward`
    if getattr(model, "find_unused_parameters", False):
        return None  # DDP would take the projection, which `forward` does not use, for one
    decoder: Any = getattr(wrapped[-1], "decoder", None)
    projection: Any = getattr(decoder, "output_projection", None)
    methods = {getattr(type(decoder), "output_layer", None)}
    for part in wrapped[-1], decoder:
        methods.update(getattr(type(part), name, None) for name in ("forward", "get_normalized_probs"))
    if not methods <= PLAIN or type(projection) not in (nn.Linear, Linear) or projection.bias is not None:
        return None
    return None if projection._forward_hooks or projection._forward_pre_hooks else projection


@register_criterion("chunked_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class ChunkedLabelSmoothedCrossEntropy(_Chunked, LabelSmoothedCrossEntropyCriterion):
    """`--criterion label_smoothed_cross_entropy` with `ops.cross_entropy`."""


@register_criterion("chunked_cross_entropy", dataclass=CrossEntropyCriterionConfig)
class ChunkedCrossEntropy(_Chunked, CrossEntropyCriterion):
    """`--criterion cross_entropy` with `ops.cross_entropy`."""


# fairseq goes on with a training only if its criterion has a class of the same name. These are the same losses.
for _chunked in (ChunkedLabelSmoothedCrossEntropy, ChunkedCrossEntropy):
    _chunked.__name__ = _chunked.__bases__[1].__name__
