"""Training by CUDA graphs: all layers forward are one launch, and all backward another.

Launched one by one, their kernels keep a GPU waiting for the host at common sizes of a batch. Batches are padded to a
few shapes. A shape that has come several times is captured, and replayed from then on. Some updates run without graphs:
with layers that are drawn or computed again, quantisation noise, attention that is read, autocast, or hooks of modules,
and where the gradients of another batch are still to be made. Dropout draws other numbers than without graphs.
FAIRSEQ_LUNA_GRAPHS=0 in the environment turns them off.
"""

import warnings
import weakref
from collections import Counter
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ...modules.layer import Layer
from ...modules.slot_info import SlotInfo
from ...ops import dispatch
from .capture import SWITCH, can_capture, record
from .static_pass import Arena, Inputs, StaticPass, trained
from .static_step import upwards

COMMON = 3  # a shape that has come so many times is captured when it comes again
MOST = 64  # shapes


class Shape(NamedTuple):
    """What a pass is made for.

    Attributes:
        sentences: B.
        source: m.
        target: n.
    """

    sentences: int
    source: int
    target: int

    @staticmethod
    def of(source: Tensor, target: Tensor) -> "Shape":
        """The next larger of few, that a batch is padded to. source (B, m), target (B, n)."""
        return Shape(few(len(source)), *(upwards(few(x.size(1)), 8) for x in (source, target)))


def few(n: int) -> int:
    """The next number of four binary digits and zeros behind them: at most an eighth more."""
    return upwards(n, 1 << max(0, (n - 1).bit_length() - 4))


class TrainingGraphs:
    """The captured passes of a model.

    Args:
        model: a `LunaTransformerModel`.
        capture: whether to capture; else the same passes run kernel by kernel, as on a CPU.
    """

    def __init__(self, model: Any, capture: bool = True):
        self.model, self.capture = model, capture
        self.places = _places(model)
        self.parameters = trained(_stacks(model))
        self.passes: Dict[Shape, StaticPass] = {}
        self.seen: Counter[Shape] = Counter()
        self.most = MOST
        self.arena = Arena()
        self.underway: Optional[weakref.ref[Ticket]] = None  # whose gradients are to be made
        self.turn = torch.zeros(1, dtype=torch.int32, device=self.parameters[0].device)  # of all dropouts
        self.pool = torch.cuda.graph_pool_handle() if capture else None  # replays follow each other, so one will do

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of a model captures its own."""

    def __reduce__(self) -> Any:
        return type(None), ()

    @staticmethod
    def suit(model: Any) -> bool:
        """Whether the passes of a model can be captured here."""
        cfg, encoder = model.cfg, model.encoder
        layers = [layer for stack in (encoder.layers, model.decoder.layers) for layer in stack]
        return (
            can_capture(encoder.embed_tokens.weight.device)
            and not (cfg.checkpoint_activations or cfg.quant_noise_pq or encoder.layerdrop or encoder.decoder_layerdrop)
            and all(isinstance(layer, Layer) for layer in layers)  # not spread over GPUs
            and len({(x.dtype, x.device) for x in _parameters(model)}) == 1
            and any(x.requires_grad for x in _parameters(model))
        )

    def is_stale(self) -> bool:
        """Whether the weights have moved, so that the graphs would read what was there before."""
        return self.places != _places(self.model)

    def features(self, source: Tensor, target: Tensor) -> Optional[Tensor]:
        """Features (B, n, D) of a source (B, m) and a target (B, n), or None where no graph is to run."""
        shape = Shape.of(source, target)
        captured = self.passes.get(shape)
        if captured is None:
            self.seen[shape] += 1
            if self.seen[shape] <= COMMON or len(self.passes) >= self.most or _has_hooks(self.model):
                return None
        if self.underway is not None and self.underway() is not None:
            return None
        inputs = self.enter(*self.padded(source, target, shape))
        if captured is None:
            captured = self.capture_pass(inputs)
            if captured is None:
                return None
            self.passes[shape] = captured
        out = _Replay.apply(self, captured, *inputs, *self.parameters)
        return out[: len(source), : target.size(1)]

    def padded(self, source: Tensor, target: Tensor, shape: Shape) -> Tuple[Tensor, Tensor]:
        """Both in a batch of a shape: behind all sentences padding, behind the last one sentences of one token."""

        def wider(tokens: Tensor, length: int, dictionary: Any) -> Tensor:
            rows, n = tokens.shape
            tokens = F.pad(tokens, (0, length - n, 0, shape.sentences - rows), value=dictionary.pad())
            tokens[rows:, 0] = dictionary.eos()  # there is no softmax over nothing
            return tokens

        encoder, decoder = self.model.encoder, self.model.decoder
        return wider(source, shape.source, encoder.dictionary), wider(target, shape.target, decoder.dictionary)

    def enter(self, source: Tensor, target: Tensor) -> Inputs:
        """What the layers read: X and P of the source, X of the target, and what is known of them."""
        x, packed, padding, slots = self.model.encoder.enter(source)
        return [x, packed, self.model.decoder.embed(target, None), padding, *slots]

    def carry(
        self, x: Tensor, packed: Optional[Tensor], y: Tensor, padding: Tensor, *slots: Optional[Tensor]
    ) -> Tensor:
        """All layers, of what `enter` gives: features (B, n, D)."""
        encoder = self.model.encoder
        encoded = encoder.carry(x, packed, padding, SlotInfo(*slots))
        features, _, _ = self.model.decoder.carry(y, encoder.source_of(encoded, padding))
        return features

    def capture_pass(self, inputs: Inputs) -> Optional[StaticPass]:
        """Graphs for inputs of these shapes; None where capturing fails, and from then on none is tried."""
        made = StaticPass(self.carry, inputs, _stacks(self.model), self.arena)
        if not self.capture:
            return made

        def whole() -> None:
            made.forward(inputs)
            made.differentiate()

        try:
            with dispatch.turning(self.turn):
                made.run_forward, made.run_backward = record(whole, [made.compute, made.differentiate], self.pool)
        except RuntimeError as error:
            warnings.warn(
                f"Training goes on without more CUDA graphs, more slowly: an update could not be captured ({error}). "
                f"{SWITCH}=0 turns them off.",
                stacklevel=2,
            )
            self.most = 0
            return None
        return made


class Ticket:
    """Of a batch whose gradients are to be made."""


class _Replay(torch.autograd.Function):
    """A captured pass; its gradients are those of the batch that has run last."""

    @staticmethod
    def forward(ctx: Any, graphs: TrainingGraphs, captured: StaticPass, *tensors: Optional[Tensor]) -> Tensor:
        ctx.graphs, ctx.captured, ctx.ticket = graphs, captured, Ticket()
        graphs.underway = weakref.ref(ctx.ticket)
        graphs.turn.random_(0, 2**30)
        with dispatch.turning(graphs.turn):
            return captured.forward(tensors[: len(captured.inputs)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> Any:
        graphs = ctx.graphs
        if graphs.underway is None or graphs.underway() is not ctx.ticket:
            raise RuntimeError(
                "The gradients of a batch were asked for a second time, or after those of a later batch, but a CUDA "
                f"graph keeps what they need of one batch, and once. {SWITCH}=0 in the environment turns graphs off."
            )
        with dispatch.turning(graphs.turn):
            gradients = ctx.captured.backward(d_out)
        graphs.underway = None
        return (None, None, *gradients)


def _stacks(model: Any) -> List[nn.Module]:
    """All that the graphs hold."""
    encoder, decoder = model.encoder, model.decoder
    parts = encoder.layers, encoder.layer_norm, encoder.packed_layer_norm, encoder.memory
    return [part for part in (*parts, decoder.layers, decoder.layer_norm) if part is not None]


def _parameters(model: Any) -> Iterator[Tensor]:
    return (x for stack in _stacks(model) for x in stack.parameters())


def _places(model: Any) -> List[Tuple[int, bool]]:
    return [(x.data_ptr(), x.requires_grad) for x in _parameters(model)]


def _has_hooks(model: Any) -> bool:
    """Whether somebody watches modules, whom a replay would tell nothing."""
    modules = [module for stack in _stacks(model) for module in stack.modules()]
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )
