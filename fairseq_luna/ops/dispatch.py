"""The one place that decides which form of an operator runs.

    fused    one kernel, on a CUDA device that has Triton, for the dtypes, head sizes and numbers of slots that it takes
    moved    products in another order, where slots are few beside positions
    direct   the equation, which is right everywhere

FAIRSEQ_LUNA_FUSED=0 in the environment turns all kernels off. `using` tells otherwise for a while, `forms` says what
ran, and why.
"""

import functools
import importlib
import os
import warnings
from collections import defaultdict
from contextlib import contextmanager
from typing import Any, Callable, Dict, Hashable, Iterator, NamedTuple, Optional, Set

import torch
from torch import Tensor

SWITCH = "FAIRSEQ_LUNA_FUSED"
HEAD_SIZES = (16, 32, 64, 128)
MAX_SLOTS = 32  # the kernels take up to 128, which have not been checked on a GPU
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Of the device, not of the compiler: the plain form would meet them too, or the device is lost.
_OF_THE_DEVICE = ("out of memory", "illegal memory access", "device-side assert", "unspecified launch failure")

_fused: Optional[bool] = None  # as `using` has it
_moved: Optional[bool] = None
_turn: Optional[Tensor] = None  # as `turning` has it
_forms: Dict[str, "Chosen"] = {}
_compiled: Dict[str, Set[Hashable]] = defaultdict(set)
_failed: Dict[Hashable, str] = {}  # by operator where none of its kernels has compiled, else by kernel
_told: Dict[str, str] = {}  # of which operators a warning has spoken


class Work(NamedTuple):
    """What an operator has before it.

    Attributes:
        x: what it reads, (B, n, D). All else that it reads is on the same device and, but in a residual, of the same
            dtype.
        heads: H; 0 of what is no attention.
        slots: l.
        dropout: probability.
        movable: how many projections, each D x D, could move from the positions to the slots; 0 where none can.
        unfusable: what stands against a kernel besides, in words.
        width: H d (default: D).
    """

    x: Tensor
    heads: int = 0
    slots: int = 0
    dropout: float = 0.0
    movable: int = 0
    unfusable: Optional[str] = None
    width: Optional[int] = None

    @property
    def head_size(self) -> int:
        """d."""
        return (self.width or self.x.size(-1)) // self.heads


class Chosen(NamedTuple):
    """The form that ran last, and why it was not a kernel."""

    form: str
    unfused: Optional[str]


def run(operator: str, work: Work, forms: Dict[str, Callable[..., Any]], *args: Any) -> Any:
    """The operator on these arguments, in the form that suits.

    Args:
        operator: its name, for `forms`: "pack", "unpack", "causal attention", "causal step", "pack logits",
            "residual" or "cross entropy".
        work: what it has before it.
        forms: by name; "fused" gives None where its kernel does not compile.
        args: of the form, all the same.
    """
    reason = why_not_fused(operator, work)
    if reason is None:
        _forms[operator] = Chosen("fused", None)
        result = forms["fused"](*args)
        if result is not None:
            return result
        reason = _told[operator]
    form = "moved" if is_moved(work) else "direct"
    _forms[operator] = Chosen(form, reason)
    return forms[form](*args)


def is_moved(work: Work) -> bool:
    """Whether projections are better moved from the positions to the slots.

    It takes 2 l D^2 + 2 H l n D multiply-adds in place of n D^2 for each projection and 2 l n D,
    in smaller pieces; and the moved slots are of H l x D numbers, which X should not be smaller than.
    """
    if not work.movable or _moved is not None:
        return bool(work.movable and _moved)
    positions, dim = work.x.shape[1:]
    moved = 2 * work.slots * dim**2 + 2 * work.heads * work.slots * positions * dim
    direct = work.movable * positions * dim**2 + 2 * work.slots * positions * dim
    return positions >= work.heads * work.slots and moved < 0.8 * direct


def why_not_fused(operator: str, work: Work) -> Optional[str]:
    """What stands against the kernel, in words; None where nothing does. Arguments as in `run`."""
    if _fused is None:
        if os.environ.get(SWITCH) == "0":
            return f"{SWITCH}=0"
    elif not _fused:
        return "told so"
    x = work.x
    device = x.device
    if device.type == "cuda":
        if device.index != torch.cuda.current_device():
            return f"{device} is not the current device"
    elif device.type != "cpu" or not _fused or not _interpreted():
        return f"the device is {device.type}"
    missing = _missing()
    if missing is not None:
        return missing
    if x.dtype not in DTYPES:
        return f"the dtype is {str(x.dtype)[6:]}"
    if work.heads and work.head_size not in HEAD_SIZES:
        return f"the head size is {work.head_size}"
    if work.heads and not 1 <= work.slots <= MAX_SLOTS:
        return f"there are {work.slots} slots"
    if work.dropout >= 1 or x.numel() == 0:
        return "nothing is left to compute"
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return "the model is exported"
    return work.unfusable or _failed.get(operator)


def forms() -> Dict[str, Chosen]:
    """How each operator ran last."""
    return dict(_forms)


def forget_forms() -> None:
    """What ran before is not told any more."""
    _forms.clear()


@contextmanager
def using(fused: Optional[bool] = None, moved: Optional[bool] = None) -> Iterator[None]:
    """Forms as told, wherever they can run: kernels or none, whatever the environment says; projections moved or not.

    On a CPU kernels run by Triton's interpreter, where TRITON_INTERPRET=1 was set before Triton was imported. None
    leaves the choice as it is.
    """
    global _fused, _moved
    before = _fused, _moved
    _fused, _moved = (now if told is None else told for told, now in zip((fused, moved), before))
    try:
        yield
    finally:
        _fused, _moved = before


@contextmanager
def turning(turn: Tensor) -> Iterator[None]:
    """Dropouts of kernels are of this turn, for a CUDA graph, in which their seeds are frozen.

    A pass backward belongs within, as its pass forward does: activation checkpointing runs that again.

    Args:
        turn: (1,), in int32, on the device; it may change in place from one update to the next.
    """
    global _turn
    before, _turn = _turn, turn
    try:
        yield
    finally:
        _turn = before


def attempt(operator: str, key: Hashable, call: Callable[..., Any], *inputs: Optional[Tensor]) -> Any:
    """`call(*inputs)`, or None where its kernels do not compile, which is told once.

    Kernels of the backward pass would fail when it is too late for the plain form. So the first call of a kind runs
    forward and backward on copies before its result is trusted.

    Args:
        operator: as in `run`.
        key: what the kernels are compiled for.
        call: the operator; of equal inputs it makes equal results.
        inputs: of which floating point ones have gradients.
    """
    key = (operator, key, torch.is_grad_enabled())
    if key in _failed:
        return None
    if key not in _compiled[operator]:
        try:
            _try(call, inputs)
        except Exception as error:  # of the compiler there are many kinds, and others in other versions
            if any(words in str(error) for words in _OF_THE_DEVICE):
                raise
            _give_up(operator, key, error)
            return None
        _compiled[operator].add(key)
    return call(*inputs)


def _give_up(operator: str, key: Hashable, error: Exception) -> None:
    reason = f"its kernel does not compile here ({type(error).__name__}: {_first_line(error)})"
    if operator not in _told:
        warnings.warn(
            f"The plain form of {operator} runs, more slowly: {reason}. {SWITCH}=0 turns all kernels off.",
            stacklevel=3,
        )
        _told[operator] = reason
    # what has run as a kernel must be one still when activation checkpointing runs it again
    _failed[key if _compiled[operator] else operator] = reason


def seed(dropout: float) -> int:
    """Of a kernel's dropout, from torch's generator of the CPU: nothing waits for the device, torch.manual_seed sets
    it, and activation checkpointing draws it again."""
    return int(torch.randint(2**31 - 1, (), device="cpu")) if dropout else 0


def turn(device: torch.device) -> Tensor:
    """What kernels on a device add to the seeds of their dropouts, (1,) in int32: 0, or as `turning` has it."""
    return _first_turn(device) if _turn is None else _turn


@functools.lru_cache(maxsize=None)
def _first_turn(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or it would be of no use in training
        return torch.zeros(1, dtype=torch.int32, device=device)


def _try(call: Callable[..., Any], inputs: Any) -> None:
    if not torch.is_grad_enabled():
        call(*inputs)
        return
    copies = [x if x is None or not x.is_floating_point() else x.detach().requires_grad_() for x in inputs]
    leaves = [x for x in copies if x is not None and x.requires_grad]
    # activation checkpointing is not to see what is kept here
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        out = call(*copies)
    torch.autograd.grad(out, leaves, torch.zeros_like(out), allow_unused=True)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]


@functools.lru_cache(maxsize=None)
def _missing() -> Optional[str]:
    try:
        importlib.import_module("fairseq_luna.ops.triton.causal")
    except ImportError:
        return "Triton is not installed"
    except Exception as error:  # a release that knows less than the kernels ask for
        return f"Triton does not take the kernels: {type(error).__name__}"
    return None


@functools.lru_cache(maxsize=None)
def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
