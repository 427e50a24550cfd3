"""fairseq's two losses of words, without the logits of a whole batch: the same numbers, in less time and memory."""

import inspect
from typing import Any, Callable, NamedTuple, Optional, Tuple

import torch.nn as nn
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion, CrossEntropyCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.distributed import FullyShardedDataParallel
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor

from ..models.token_decoder import TokenDecoder
from ..ops.cross_entropy import cross_entropy

# that of other decoders may do more than a projection
PLAIN = TransformerDecoderBase.output_layer, TokenDecoder.output_layer


class _Features(NamedTuple):
    """What fairseq's criterion calls in place of a model: it makes features, not logits."""

    model: Any
    projection: nn.Linear

    def __call__(self, **net_input: Any) -> Any:
        return self.model(**net_input, features_only=True)


class _Chunked:
    """Asks a model for features, and computes the loss of its output projection with `ops.cross_entropy`.

    fairseq's way stays where a loss of each word is asked for, or the accuracy, or where a model has no plain output
    projection.
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
    outside = (
        isinstance(model, FullyShardedDataParallel)  # weights are whole only within `forward`
        or getattr(model, "find_unused_parameters", False)  # that of DDP would take the projection for one
    )
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    decoder = getattr(model, "decoder", None)
    plain = getattr(type(decoder), "output_layer", None) in PLAIN
    if outside or not plain or not _takes(model.forward, "features_only"):
        return None
    projection = getattr(decoder, "output_projection", None)
    return projection if isinstance(projection, nn.Linear) and projection.bias is None else None


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(x.name == name or x.kind is x.VAR_KEYWORD for x in parameters)


@register_criterion("chunked_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig)
class ChunkedLabelSmoothedCrossEntropy(_Chunked, LabelSmoothedCrossEntropyCriterion):
    """`--criterion label_smoothed_cross_entropy` with `ops.cross_entropy`."""


@register_criterion("chunked_cross_entropy", dataclass=CrossEntropyCriterionConfig)
class ChunkedCrossEntropy(_Chunked, CrossEntropyCriterion):
    """`--criterion cross_entropy` with `ops.cross_entropy`."""


# fairseq goes on with a training only if its criterion has a class of the same name. These are the same losses.
for _chunked in (ChunkedLabelSmoothedCrossEntropy, ChunkedCrossEntropy):
    _chunked.__name__ = _chunked.__mro__[2].__name__
