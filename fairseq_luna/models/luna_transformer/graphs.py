"""Decoding by CUDA graphs: a step is captured once for its shape and replayed for every token.

Launched one by one, the kernels of a step keep a GPU waiting. FAIRSEQ_LUNA_GRAPHS=0 in the environment turns the graphs
off. What they cannot hold is decoded as ever: attention that is read, an ordinary self-attention of the decoder, whose
state grows, and gradients.
"""

import os
import warnings
import weakref
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from ...modules.causal_attention import LunaCausalAttention
from ...modules.source_layer import SourceView
from ...ops.causal.attention import CausalState
from .source import EncodedSource
from .static_step import Shape, StaticStep, some

SWITCH = "FAIRSEQ_LUNA_GRAPHS"
MOST_STEPS = 16  # that are kept for later batches
LONGEST = 4096  # positions whose embeddings are kept; a longer target is decoded without a graph


class Graphs:
    """The captured steps of a decoder.

    Args:
        decoder: a `LunaDecoder`.
        capture: whether to capture; else the same steps run kernel by kernel, as on a CPU.
    """

    def __init__(self, decoder: Any, capture: bool = True):
        self.decoder, self.capture = decoder, capture
        self.steps: List[StaticStep] = []  # the latest used last
        self.users: weakref.WeakValueDictionary[int, Decoding] = weakref.WeakValueDictionary()  # by id of the step
        self.positions = None if decoder.embed_positions is None else decoder.positions_of_steps(LONGEST)
        self.longest = LONGEST if self.positions is None else len(self.positions)

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of a model captures its own."""

    def __reduce__(self) -> Any:
        return type(None), ()

    @staticmethod
    def suit(decoder: Any) -> bool:
        """Whether the steps of a decoder can be captured here."""
        on_gpu = decoder.embed_tokens.weight.device.type == "cuda" and os.environ.get(SWITCH) != "0"
        return on_gpu and all(isinstance(layer.self_attn, LunaCausalAttention) for layer in decoder.layers)

    def begin(self, source: EncodedSource, rows: int) -> "Optional[Decoding]":
        """The decoding of a batch, before its first step; None where that cannot be captured."""
        sentences = len(source.padding)
        if not sentences or rows % sentences or source.layers is not None:
            return None
        step = self.step_of(Shape.of(source, rows // sentences), source.views)
        if step is None:
            return None
        step.load(source)
        decoding = Decoding(self, step, source)
        self.users[id(step)] = decoding
        return decoding

    def step_of(self, shape: Shape, views: List[SourceView]) -> Optional[StaticStep]:
        """A step of that shape that no other decoding uses, made now if there is none; None where capturing fails.

        Args:
            shape: of the step.
            views: of a batch's source, for sizes and dtypes.
        """
        for step in self.steps:
            if step.shape == shape and id(step) not in self.users:
                self.steps.remove(step)
                self.steps.append(step)
                return step
        step = StaticStep(self.decoder, shape, self.positions, views)
        if self.capture:
            try:
                _capture(step)
            except RuntimeError as error:
                warnings.warn(
                    f"Decoding goes on without CUDA graphs, more slowly: a step could not be captured ({error}). "
                    f"{SWITCH}=0 turns them off.",
                    stacklevel=2,
                )
                self.decoder.uses_graphs = False
                return None
        self.steps.append(step)
        idle = [old for old in self.steps[:-1] if id(old) not in self.users]
        for old in idle[: max(0, len(self.steps) - MOST_STEPS)]:
            self.steps.remove(old)
        return step


class Decoding:
    """A batch that is being decoded by the steps of `Graphs`.

    Sentences that end leave their places empty, until so many have that a smaller step pays.
    """

    def __init__(self, graphs: Graphs, step: StaticStep, source: EncodedSource):
        self.graphs, self.step = graphs, step
        self.padding = source.padding  # another tensor when sentences have left
        assert source.views[0].causal_query is not None
        self.slots = source.views[0].causal_query.size(2)
        self.places: Optional[Tensor] = None  # the step's row of each row; None where they are the first ones
        self.order: Optional[Tensor] = None  # what rows do before the next step

    def reorder(self, new_order: Tensor) -> None:
        """Follows the beams at the next step. new_order: (rows',)."""
        self.order = new_order if self.order is None else self.order.index_select(0, new_order)

    def goes_on(self, t: int, rows: int, sentences: int) -> bool:
        """Whether the graphs reach to step t, with so many rows of so many sentences."""
        shape = self.step.shape
        return t <= self.graphs.longest and sentences <= shape.sentences and rows == sentences * shape.beams

    def advance(self, tokens: Tensor, t: int, padding: Tensor) -> Tensor:
        """The logits of a step, (rows, V).

        Args:
            tokens: the last token of each row, (rows,).
            t: number of the step, from 1.
            padding: of the source, as the encoder's output has it.
        """
        before = self._before(len(tokens))
        if padding is not self.padding:  # sentences have left, or have changed places
            self.padding = padding
            before = self._move(before)
        self.order = None
        self._put(self.step.order, before)
        self._put(self.step.tokens, tokens)
        self.step.t.fill_(t)
        self.step.run()
        # a copy: the next step writes over it
        return self.step.out[: len(tokens)].clone() if self.places is None else self.step.out[self.places]

    def leave(self, incremental_state: Dict[Any, Any], rows: int) -> None:
        """Hands over to decoding without a graph, of so many rows."""
        before = self._before(rows)
        for layer, state in zip(self.graphs.decoder.layers, self.step.states):
            keys, values = state.reorder(before)
            values = None if values is None else values[:, :, : self.slots].contiguous()
            incremental_state[layer.self_attn] = CausalState(keys[..., : self.slots].contiguous(), values)

    def _before(self, rows: int) -> Tensor:
        """The step's row that each row takes its state from, (rows,)."""
        if self.places is None:
            return self.step.identity[:rows] if self.order is None else self.order
        return self.places if self.order is None else self.places[self.order]

    def _move(self, before: Tensor) -> Tensor:
        """Gives rows their places: those of their sentences, or of a smaller step if that holds them. Returns the row
        of the step that each takes its state from."""
        step, rows, beams = self.step, len(before), self.step.shape.beams
        sentence = torch.div(before, beams, rounding_mode="floor")
        shape = step.shape._replace(sentences=some(rows // beams))
        smaller = self.graphs.step_of(shape, step.views) if 2 * shape.sentences <= step.shape.sentences else None
        if smaller is None:
            self.places = sentence * beams + step.identity[:rows] % beams
            return before
        smaller.load_from(step, sentence[::beams], before)
        self.graphs.users[id(smaller)] = self
        del self.graphs.users[id(step)]
        self.step, self.places = smaller, None
        return smaller.identity[:rows]

    def _put(self, buffer: Tensor, values: Tensor) -> None:
        if self.places is None:
            buffer[: len(values)] = values
        else:
            buffer.index_copy_(0, self.places, values)


def _capture(step: StaticStep) -> None:
    """Makes the step a graph. What torch and Triton prepare in their first calls is done before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step.compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.compute()
    step.run = graph.replay
