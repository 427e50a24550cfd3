"""A decoder's step in fixed shapes and memory of its own, so that a CUDA graph can hold it."""

from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from ...modules.decoder_layer import Source
from ...modules.softmax_attention import CrossAttention, SourceState
from ...modules.source_layer import SourceView
from ...modules.step import Step
from ...ops.causal.step import CausalState
from ..sizes import some, upwards
from .source import EncodedSource


class Shape(NamedTuple):
    """What a step is made for; a batch that is smaller leaves places empty.

    Attributes:
        sentences: B.
        beams: of each sentence.
        slots: l.
        positions: m of the source, where the cross attention is full; else 0.
        dtype: of what is computed.
    """

    sentences: int
    beams: int
    slots: int
    positions: int
    dtype: torch.dtype

    @staticmethod
    def of(source: EncodedSource, beams: int) -> "Shape":
        """The smallest of the sizes that steps are made for: they should serve many batches."""
        query, key, _ = source.view(0)
        assert query is not None
        positions = source.out.size(1) if key is None else 0
        return Shape(some(len(source.padding)), beams, upwards(query.size(2), 16), upwards(positions, 64), query.dtype)


class StaticStep:
    """A step of tensors alone: what it reads and writes stays where it is, and nothing asks the device for a number.

    Args:
        decoder: a `LunaDecoder` at rest, whose self-attentions are Luna's.
        shape: of the step.
        positions: of the decoder's embedding for every step, (steps, D); None without.
        views: of a batch's source, for sizes and dtypes.

    Attributes:
        tokens: the last token of each row, (rows,), with rows = B beams.
        order: of which row each row takes the state, (rows,).
        t: number of the step, from 1, ().
        out: logits of the step, (rows, V), or features, after `run`.
    """

    def __init__(self, decoder: Any, shape: Shape, positions: Optional[Tensor], views: List[SourceView]):
        self.decoder, self.shape, self.positions = decoder, shape, positions
        self.run: Callable[[], None] = self.compute  # in place of which a captured graph may stand
        assert views[0].causal_query is not None
        device = views[0].causal_query.device
        rows = shape.sentences * shape.beams
        self.tokens = torch.full((rows,), decoder.padding_idx, device=device)
        self.identity = torch.arange(rows, device=device)
        self.order, self.t = self.identity.clone(), torch.ones((), dtype=torch.int64, device=device)
        self.slot_padding = torch.zeros(shape.sentences, shape.slots, dtype=torch.bool, device=device)
        self.padding = torch.zeros(shape.sentences, shape.positions, dtype=torch.bool, device=device)
        self.views = [SourceView(*map(self._wide, view)) for view in views]
        self.states: List[CausalState] = []
        self.keys_values: List[Optional[Tuple[Tensor, Tensor]]] = []
        for layer, view in zip(decoder.layers, self.views):
            assert view.causal_query is not None
            heads, _, dim = view.causal_query.shape[1:]
            self.states.append(CausalState.empty(rows, view.causal_query, layer.self_attn.key_value.tied))
            both = None
            if isinstance(layer.cross_attn, CrossAttention):
                wide = view.causal_query.new_zeros(shape.sentences, heads, shape.positions, dim)
                both = wide, wide.clone()
            self.keys_values.append(both)
        self.out: Tensor = torch.empty(0)

    def bytes(self) -> int:
        """Of the memory that it keeps."""
        parts = [*_pairs(self.views, self.views), *_pairs(self.states, self.states)]
        parts += _pairs(self.keys_values, self.keys_values)
        return sum(u.numel() * u.element_size() for u, _ in parts)

    def _wide(self, u: Optional[Tensor]) -> Optional[Tensor]:
        """Zeros in the shape of a view's part for all sentences and slots."""
        return None if u is None else u.new_zeros(self.shape.sentences, u.size(1), self.shape.slots, u.size(3))

    def compute(self) -> None:
        """The step."""
        decoder, (sentences, beams, *_) = self.decoder, self.shape
        step = decoder.step_of(self.t, {})
        here = None if self.positions is None else self.positions.index_select(0, self.t.view(1) - 1)
        x = decoder.embed_at(self.tokens.unsqueeze(1), here).view(sentences, beams, -1)
        source = Source(None, self.padding, self.slot_padding)
        for layer, view, kept, read in zip(decoder.layers, self.views, self.states, self.keys_values):
            # one layer at a time: the copy of its state is written back before the next layer makes one
            x, after = through(layer, x, source, view, kept.reorder(self.order), read, step)
            for mean, new in _pairs([kept], [after]):
                mean.copy_(new)
        if decoder.layer_norm is not None:
            x = decoder.layer_norm(x)
        self.out = decoder.output_layer(x.view(sentences * beams, -1))

    def load(self, source: EncodedSource) -> None:
        """A batch that begins: its sentences take the first places."""
        sentences = len(source.padding)
        self.order.copy_(self.identity)
        for mine, theirs in _pairs(self.views, source.views):
            mine[:sentences, :, : theirs.size(2)] = theirs
        assert source.views[0].causal_query is not None
        _load_mask(self.slot_padding, source.slot_padding, sentences, source.views[0].causal_query.size(2))
        if self.shape.positions:
            _load_mask(self.padding, source.padding, sentences, source.padding.size(1))
        for layer, both in zip(self.decoder.layers, self.keys_values):
            if both is not None:
                for mine, theirs in zip(both, layer.cross_attn.keys_values(source.out)):
                    mine[:sentences, :, : theirs.size(2)] = theirs
        for state, _ in _pairs(self.states, self.states):
            state.zero_()

    def load_from(self, other: "StaticStep", sentences: Tensor, rows: Tensor) -> None:
        """What is left of a batch, out of a larger step: of its sentences, and of its rows of states."""
        self.order.copy_(self.identity)
        for mine, theirs in (
            *_pairs(self.views, other.views),
            *_pairs(self.keys_values, other.keys_values),
            (self.slot_padding, other.slot_padding),
            (self.padding, other.padding),
        ):
            mine[: len(sentences)] = theirs.index_select(0, sentences)
        for mine, theirs in _pairs(self.states, other.states):
            mine[: len(rows)] = theirs.index_select(0, rows)


def through(
    layer: Any,
    x: Tensor,
    source: Source,
    view: SourceView,
    state: CausalState,
    keys_values: Optional[Tuple[Tensor, Tensor]],
    step: Step,
) -> Tuple[Tensor, CausalState]:
    """A step of one decoder layer, of tensors alone.

    Args:
        layer: a `LunaDecoderLayer` whose self-attention is Luna's.
        x: (B, beams, D).
        source: the masks of it.
        view: of the layer.
        state: of the layer before the step, of all B * beams rows.
        keys_values: of the source, (B, H, m, d) each, where the cross attention is full.
        step: of the decoding; keeps nothing of what is done here.

    Returns:
        As x, and the state after the step.
    """
    kept = step.incremental_state
    kept[layer.self_attn] = state
    if keys_values is not None:
        kept[layer.cross_attn] = SourceState(*keys_values, x.size(1))
    x, _ = layer(x, source, view, step)
    kept.pop(layer.cross_attn, None)
    return x, kept.pop(layer.self_attn)


def _pairs(mine: Iterable[Any], theirs: Iterable[Any]) -> Iterator[Tuple[Tensor, Tensor]]:
    """The tensors of two lists of tuples side by side, but for what is None."""
    for one, other in zip(mine, theirs):
        if one is not None:
            yield from ((a, b) for a, b in zip(one, other) if a is not None)


def _load_mask(mask: Tensor, padding: Optional[Tensor], sentences: int, width: int) -> None:
    """What is beyond the batch is padding; of an empty sentence the first is seen, for a softmax needs something."""
    mask.fill_(True)
    mask[:, 0] = False
    mask[:sentences, :width] = False if padding is None else padding
