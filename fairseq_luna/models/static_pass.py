"""Forward and backward pass of a stack in fixed shapes and memory of their own, so that CUDA graphs can hold them."""

from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import torch
import torch.nn as nn
from torch import Tensor

Inputs = Sequence[Optional[Tensor]]


class Arena:
    """Memory that passes of many shapes share, for one of them is under way at a time."""

    def __init__(self) -> None:
        self.blocks: Dict[Any, Tensor] = {}

    def take(self, name: str, like: Tensor) -> Tensor:
        """A place of that name, of the shape, dtype and device of `like`."""
        key = name, like.dtype
        block = self.blocks.get(key)
        if block is None or block.numel() < like.numel():
            # who has a place in the block of before keeps it
            self.blocks[key] = block = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        return block[: like.numel()].view(like.shape).detach()


class StaticPass:
    """A function of tensors, and its gradients.

    Args:
        function: of the inputs, to one tensor.
        inputs: for their shapes; those that require gradients get some. What is None stays so.
        modules: whose parameters the function reads, all of one dtype.
        arena: where the inputs, the result and all gradients stand.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Inputs, modules: List[nn.Module], arena: Arena):
        self.function, self.modules, self.arena = function, modules, arena
        self.inputs = [
            None if x is None else arena.take(f"input {i}", x).requires_grad_(x.requires_grad)
            for i, x in enumerate(inputs)
        ]
        self.parameters = trained(modules)
        # They stand for the parameters, whose own accumulators of gradients may be bound to another stream: DDP, or the
        # loss of the update before, keeps them alive. A capture must not touch those.
        self.aliases = [x.detach().requires_grad_() for x in self.parameters]
        self.wanted = [x for x in self.inputs if x is not None and x.requires_grad] + self.aliases
        # in place of which captured graphs may stand
        self.run_forward: Callable[[], None] = self.compute
        self.run_backward: Callable[[], None] = self.differentiate
        self.made: Optional[Tensor] = None  # with its autograd graph, between the two
        self.out: Optional[Tensor] = None
        self.d_out: Optional[Tensor] = None
        self.flat: Optional[Tensor] = None  # the gradients of all parameters
        self.gradients: List[Optional[Tensor]] = []  # of `wanted`; None of what the function does not read

    def forward(self, inputs: Inputs) -> Tensor:
        """The function of these inputs."""
        with torch.no_grad():
            for mine, theirs in zip(self.inputs, inputs):
                if mine is not None and theirs is not None:
                    mine.copy_(theirs)
        self.run_forward()
        assert self.out is not None
        return self.out.clone()  # the next pass writes over it

    def backward(self, d_out: Tensor) -> List[Optional[Tensor]]:
        """The gradients of all inputs and all parameters, of that of the result."""
        assert self.d_out is not None
        self.d_out.copy_(d_out)
        self.run_backward()
        assert self.flat is not None
        inputs, gradients = [], iter(self.gradients)
        for x in self.inputs:
            gradient = next(gradients) if x is not None and x.requires_grad else None
            inputs.append(None if gradient is None else gradient.clone())
        sizes = [x.numel() for x in self.parameters]
        parts = zip(self.flat.clone().split(sizes), self.parameters, gradients)
        return inputs + [None if kept is None else part.view_as(x) for part, x, kept in parts]

    def compute(self) -> None:
        """The function, with what its gradients need."""
        with torch.enable_grad(), replaced(self.modules, dict(zip(self.parameters, self.aliases))):
            self.made = self.function(*self.inputs)
        made = self.made.detach()
        if self.out is None:
            self.out, self.d_out = (self.arena.take(name, made) for name in ("out", "gradient of out"))
        self.out.copy_(made)

    def differentiate(self) -> None:
        """The gradients of what `compute` has made."""
        assert self.made is not None
        found = torch.autograd.grad(self.made, self.wanted, self.d_out, allow_unused=True)
        self.made = None
        if self.flat is None:
            self._lay_out(found)
        pairs = [(mine, theirs) for mine, theirs in zip(self.gradients, found) if mine is not None]
        torch._foreach_copy_([mine for mine, _ in pairs], [theirs for _, theirs in pairs])

    def _lay_out(self, found: Sequence[Optional[Tensor]]) -> None:
        """A place for each gradient that there is."""
        of_inputs = len(self.wanted) - len(self.parameters)
        first = self.parameters[0]
        self.flat = self.arena.take("gradients", first.new_empty(sum(x.numel() for x in self.parameters)))
        places = [self.arena.take(f"gradient {i}", x) for i, x in enumerate(self.wanted[:of_inputs])]
        parts = self.flat.split([x.numel() for x in self.parameters])
        places += [part.view_as(x) for part, x in zip(parts, self.parameters)]
        self.gradients = [None if gradient is None else place for place, gradient in zip(places, found)]


def trained(modules: List[nn.Module]) -> List[Tensor]:
    """The parameters of modules that get gradients."""
    return [x for module in modules for x in module.parameters() if x.requires_grad]


@contextmanager
def replaced(modules: List[nn.Module], others: Dict[Any, Tensor]) -> Iterator[None]:
    """Other tensors in place of parameters, for a while."""
    owners: List[Dict[str, Any]] = [part._parameters for module in modules for part in module.modules()]
    places = [(own, name) for own in owners for name in own]
    before = [own[name] for own, name in places]
    try:
        for (own, name), parameter in zip(places, before):
            own[name] = others.get(parameter, parameter)
        yield
    finally:
        for (own, name), parameter in zip(places, before):
            own[name] = parameter
