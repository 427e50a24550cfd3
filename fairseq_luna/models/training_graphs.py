"""Training by CUDA graphs: all layers forward are one launch, and all backward another.

Launched one by one, their kernels keep a GPU waiting for the host at common sizes of a batch. Batches are padded to a
few shapes, which are captured and from then on replayed (see `shapes.py`). Some updates run without graphs:
with layers that are drawn or computed again, quantisation noise, attention that is read, autocast, or hooks of modules,
and while an earlier batch still waits for its backward pass. Dropout draws other numbers than without graphs.
FAIRSEQ_LUNA_GRAPHS=0 in the environment turns them off.
"""

import warnings
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.distributed import FullyShardedDataParallel
from torch import Tensor

from ..ops import dispatch
from .capture import SWITCH, can_capture, record
from .shapes import Shapes
from .static_pass import Arena, Inputs, StaticPass, trained

PREVENTING = ("checkpoint_activations", "quant_noise_pq", "encoder_layerdrop", "decoder_layerdrop")


class Stack(NamedTuple):
    """What is captured of a model.

    Attributes:
        modules: that it runs.
        enter: turns batches of tokens, (B, n) each, into what the layers read.
        carry: turns that into features (B, n, D) of the last batch of tokens.
        dictionaries: of each batch of tokens.
    """

    modules: List[nn.Module]
    enter: Callable[..., Inputs]
    carry: Callable[..., Tensor]
    dictionaries: List[Dictionary]


class TrainingGraphs:
    """The captured passes of a stack.

    Args:
        stack: what is captured.
        capture: whether to capture; else the same passes run kernel by kernel, as on a CPU.
    """

    def __init__(self, stack: Stack, capture: bool = True):
        self.stack, self.capture = stack, capture
        self.parts = _parts(stack)
        self.begun = self.now()
        self.parameters = trained(stack.modules)
        self.passes: Dict[Any, StaticPass] = {}  # by shape, and by which of its inputs have gradients
        self.shapes = Shapes()
        self.arena = Arena()
        self.underway: Optional[weakref.ref[Ticket]] = None  # whose gradients are to be made
        self.turn = torch.zeros(1, dtype=torch.int32, device=self.parameters[0].device)  # of all dropouts
        self.pool = torch.cuda.graph_pool_handle() if capture else None  # replays follow each other, so one will do

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of a model captures its own."""

    def __reduce__(self) -> Any:
        return type(None), ()

    def is_stale(self) -> bool:
        """Whether something has changed that the graphs hold: the place of a weight, a module, a mode."""
        return self.begun != self.now()

    def now(self) -> List[Any]:
        """What the graphs hold besides the values of weights."""
        held: List[Any] = []
        for part in self.parts:
            own = part.__dict__  # an update should not wait for this
            held += [own["training"], own.get("p"), *own["_modules"].values()]
            held += [(id(x), x.data_ptr(), x.requires_grad) for x in own["_parameters"].values() if x is not None]
        return held

    def is_watched(self) -> bool:
        """Whether there are hooks of modules, which a replay would not call."""
        return any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            for part in self.parts
        )

    def features(self, *tokens: Tensor) -> Optional[Tensor]:
        """Features (B, n, D) of the last of some batches of tokens, (B, n) each; None where no graph is to run."""
        shape = self.shapes.of((len(tokens[0]), *(x.size(1) for x in tokens)))
        waits = self.underway is not None and self.underway() is not None
        if shape is None or waits or self.is_watched():
            return None
        inputs = self.stack.enter(*map(padded, tokens, [shape[0]] * len(tokens), shape[1:], self.stack.dictionaries))
        key = shape, tuple(x is not None and x.requires_grad for x in inputs)
        if key not in self.passes:
            made = self.capture_pass(inputs)
            if made is None:
                return None
            self.passes[key] = made
        out = _Replay.apply(self, self.passes[key], *inputs, *self.parameters)
        return out[: len(tokens[-1]), : tokens[-1].size(1)].contiguous()

    def version(self) -> int:
        """A number that changes with the values of weights."""
        return sum(x._version for x in self.parameters)

    def capture_pass(self, inputs: Inputs) -> Optional[StaticPass]:
        """Graphs for inputs of these shapes; None where capturing fails, and from then on there are none."""
        made = StaticPass(self.stack.carry, inputs, self.stack.modules, self.arena)
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
                f"Training goes on without CUDA graphs, more slowly: an update could not be captured ({error}). "
                f"{SWITCH}=0 turns them off.",
                stacklevel=2,
            )
            # with all their memory, which may be what there was too little of
            self.shapes.most, self.arena, self.pool = 0, Arena(), None
            self.shapes.captured.clear()
            self.passes.clear()
            return None
        return made


def allowed(cfg: Any) -> bool:
    """Whether the settings of a model let its passes be captured."""
    return not any(getattr(cfg, name, 0) for name in PREVENTING)


def renewed(graphs: Optional[TrainingGraphs], stack: Stack) -> Optional[TrainingGraphs]:
    """The graphs of a stack: the given ones if nothing has changed, else new ones; None where it cannot be captured."""
    if graphs is not None and graphs.stack.modules == stack.modules and not graphs.is_stale():
        return graphs
    suits = (
        can_capture(_first(stack).device)
        and len({(x.dtype, x.device) for module in stack.modules for x in module.parameters()}) == 1
        and bool(trained(stack.modules))
        and not any(isinstance(part, FullyShardedDataParallel) for part in _parts(stack))
    )
    return TrainingGraphs(stack) if suits else None


def trains(*modules: nn.Module) -> bool:
    """Whether gradients of modules in training are made, in one dtype."""
    # of CUDA, as every torch understands it
    return all(module.training for module in modules) and torch.is_grad_enabled() and not torch.is_autocast_enabled()


def padded(tokens: Tensor, sentences: int, length: int, dictionary: Dictionary) -> Tensor:
    """Tokens (B, n) in a larger batch: behind all sentences padding, behind the last one sentences of one token."""
    rows, n = tokens.shape
    tokens = F.pad(tokens, (0, length - n, 0, sentences - rows), value=dictionary.pad())
    tokens[rows:, 0] = dictionary.eos()  # there is no softmax over nothing
    return tokens


class Ticket:
    """Of a batch whose gradients are to be made."""


class _Replay(torch.autograd.Function):
    """A captured pass; its gradients are those of the batch that has run last."""

    @staticmethod
    def forward(ctx: Any, graphs: TrainingGraphs, captured: StaticPass, *tensors: Optional[Tensor]) -> Tensor:
        ctx.graphs, ctx.captured, ctx.ticket, ctx.version = graphs, captured, Ticket(), graphs.version()
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
                "Gradients of this batch were asked for twice, or after a later batch had run. A CUDA graph keeps what "
                f"one batch needs, for one backward pass. {SWITCH}=0 in the environment turns graphs off."
            )
        if ctx.version != graphs.version():
            raise RuntimeError("Weights were changed in place between the forward and the backward pass.")
        with dispatch.turning(graphs.turn):
            gradients = ctx.captured.backward(d_out)
        graphs.underway = None
        return (None, None, *gradients)


def _first(stack: Stack) -> Tensor:
    return next(stack.modules[0].parameters())


def _parts(stack: Stack) -> List[nn.Module]:
    return [part for module in stack.modules for part in module.modules()]
