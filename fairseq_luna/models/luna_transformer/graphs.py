"""Decoding by CUDA graphs: a step is captured once for its shape and replayed for every token.

Launched one by one, the kernels of a step keep a GPU waiting. What graphs cannot hold is decoded as ever: attention
that is read, an ordinary self-attention of the decoder, whose state grows, dropout that is retained, autocast and
gradients. FAIRSEQ_LUNA_GRAPHS=0 in the environment turns them off.
"""

import threading
import warnings
import weakref
from typing import Any, Dict, List, Optional

import torch
from fairseq.modules import FairseqDropout
from torch import Tensor

from ...modules.causal_attention import LunaCausalAttention
from ...modules.source_layer import SourceView
from ...ops.causal.step import CausalState
from ..capture import SWITCH, can_capture, record
from ..sizes import some
from .source import EncodedSource
from .static_step import Shape, StaticStep

MOST_STEPS = 16  # that are kept for later batches
MOST_BYTES = 4 << 30  # of their memory
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
        self.lock = threading.RLock()
        self.pool = torch.cuda.graph_pool_handle() if capture else None  # replays follow each other, so one will do
        self.weights = _places(decoder)
        with torch.inference_mode(False), torch.no_grad():
            self.positions = None if decoder.embed_positions is None else decoder.positions_of_steps(LONGEST)
        self.longest = LONGEST if self.positions is None else len(self.positions)

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of a model captures its own."""

    def __reduce__(self) -> Any:
        return type(None), ()

    @staticmethod
    def suit(decoder: Any) -> bool:
        """Whether the steps of a decoder can be captured here."""
        return can_capture(decoder.embed_tokens.weight.device) and all(
            isinstance(layer.self_attn, LunaCausalAttention) for layer in decoder.layers
        )

    def is_stale(self) -> bool:
        """Whether the weights have moved, so that the graphs would read what was there before."""
        return self.weights != _places(self.decoder)

    def begin(self, source: EncodedSource, rows: int) -> "Optional[Decoding]":
        """The decoding of a batch, before its first step; None where that cannot be captured."""
        sentences = len(source.padding)
        if not sentences or rows % sentences or source.layers is not None or _drops(self.decoder):
            return None
        with self.lock:
            step = self.step_of(Shape.of(source, rows // sentences), source.views)
            if step is None:
                return None
            decoding = Decoding(self, step, source)
            self.users[id(step)] = decoding
        step.load(source)
        return decoding

    def has(self, shape: Shape) -> bool:
        """Whether a step of that shape is there and not in use."""
        return any(step.shape == shape and id(step) not in self.users for step in self.steps)

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
        with torch.inference_mode(False):  # or it would be of no use outside that mode
            step = StaticStep(self.decoder, shape, self.positions, views)
        if self.capture:
            try:
                (step.run,) = record(step.compute, [step.compute], self.pool)
            except RuntimeError as error:
                warnings.warn(
                    f"Decoding goes on without CUDA graphs, more slowly: a step could not be captured ({error}). "
                    f"{SWITCH}=0 turns them off.",
                    stacklevel=2,
                )
                self.decoder.uses_graphs = False
                return None
        self.steps.append(step)
        for old in [old for old in self.steps[:-1] if id(old) not in self.users]:
            if len(self.steps) > MOST_STEPS or sum(kept.bytes() for kept in self.steps) > MOST_BYTES:
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

    def goes_on(self, t: int, rows: int, padding: Tensor) -> bool:
        """Whether the graphs reach to step t, with so many rows of a source of this padding."""
        sentences = len(padding)
        shape = self.step.shape
        if t > self.graphs.longest or sentences > shape.sentences or rows != sentences * shape.beams:
            return False
        if padding is self.padding:
            return True
        # a sentence that stands there twice would need two places
        before = torch.div(self._before(rows)[:: shape.beams], shape.beams, rounding_mode="floor")
        return len(before) == len(before.unique())

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
            keys, values, _ = state.reorder(before).in_order()
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
        smaller = self._smaller(rows // beams)
        if smaller is None:
            self.places = sentence * beams + step.identity[:rows] % beams
            return before
        smaller.load_from(step, sentence[::beams], before)
        self.step, self.places = smaller, None
        return smaller.identity[:rows]

    def _smaller(self, sentences: int) -> Optional[StaticStep]:
        """A step of half the size or less, of this decoding from now on: one that is there, or one of a power of two,
        of which there are few."""
        graphs, shape = self.graphs, self.step.shape
        with graphs.lock:
            for size in some(sentences), 1 << (sentences - 1).bit_length():
                wanted = shape._replace(sentences=size)
                if 2 * size <= shape.sentences and (graphs.has(wanted) or size & (size - 1) == 0):
                    smaller = graphs.step_of(wanted, self.step.views)
                    if smaller is not None:
                        del graphs.users[id(self.step)]
                        graphs.users[id(smaller)] = self
                    return smaller
        return None

    def _put(self, buffer: Tensor, values: Tensor) -> None:
        if self.places is None:
            buffer[: len(values)] = values
        else:
            buffer.index_copy_(0, self.places, values)


def _places(decoder: Any) -> List[int]:
    return [parameter.data_ptr() for parameter in decoder.parameters()]


def _drops(decoder: Any) -> bool:
    """Whether something is dropped at every step, as with --retain-dropout; a graph would always drop the same."""
    return any(
        module.p > 0 and module.apply_during_inference
        for module in decoder.modules()
        if isinstance(module, FairseqDropout)
    )
