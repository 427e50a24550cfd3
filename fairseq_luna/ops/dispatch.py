"""The one place that decides whether an operator runs as a fused kernel or in its plain form.

A kernel runs on a CUDA device that has Triton, for the dtypes, head sizes and numbers of slots that it takes; all else
goes the plain way, which is right everywhere. FAIRSEQ_LUNA_FUSED=0 in the environment turns all kernels off; `using`
tells otherwise for a while, `forms` says what ran, and why.
"""

import functools
import importlib
import os
import warnings
from collections import defaultdict
from contextlib import contextmanager
from typing import Any, Callable, Dict, Hashable, Iterator, Optional, Set

import torch
from torch import Tensor

SWITCH = "FAIRSEQ_LUNA_FUSED"
HEAD_SIZES = (16, 32, 64, 128)
MAX_SLOTS = 32  # the kernels take up to 128, which have not been checked on a GPU
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FUSED = "fused"

# Of the device, not of the compiler: the plain form would meet them too, or the device is lost.
_OF_THE_DEVICE = ("out of memory", "illegal memory access", "device-side assert", "unspecified launch failure")

_forced: Optional[bool] = None
_forms: Dict[str, str] = {}
_compiled: Dict[str, Set[Hashable]] = defaultdict(set)
_failed: Dict[Hashable, str] = {}  # by operator where none of its kernels has compiled, else by kernel
_told: Set[str] = set()


def fused(operator: str, x: Tensor, head_size: int, slots: int, dropout: float = 0.0) -> bool:
    """Whether an operator is to run as a kernel here and now.

    Args:
        operator: its name, for `forms`: "causal attention", "pack" or "unpack".
        x: what it reads, (B, n, D), of the dtype and on the device of all that it reads.
        head_size: d.
        slots: l.
        dropout: probability.
    """
    reason = why_plain(operator, x, head_size, slots, dropout)
    _forms[operator] = reason or FUSED
    return reason is None


def why_plain(operator: str, x: Tensor, head_size: int, slots: int, dropout: float = 0.0) -> Optional[str]:
    """What stands against the kernel, in words; None where nothing does. Arguments as in `fused`."""
    if _forced is None:
        if os.environ.get(SWITCH) == "0":
            return f"{SWITCH}=0"
    elif not _forced:
        return "told so"
    device = x.device
    if device.type == "cuda":
        if device.index != torch.cuda.current_device():
            return f"{device} is not the current device"
    elif device.type != "cpu" or not _forced or not _interpreted():
        return f"the device is {device.type}"
    missing = _missing()
    if missing is not None:
        return missing
    if x.dtype not in DTYPES:
        return f"the dtype is {str(x.dtype)[6:]}"
    if head_size not in HEAD_SIZES:
        return f"the head size is {head_size}"
    if not 1 <= slots <= MAX_SLOTS:
        return f"there are {slots} slots"
    if dropout >= 1 or x.numel() == 0:
        return "nothing is left to compute"
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return "the model is exported"
    return _failed.get(operator)


def forms() -> Dict[str, str]:
    """How each operator ran last: "fused", or why in its plain form."""
    return dict(_forms)


@contextmanager
def using(kernels: bool) -> Iterator[None]:
    """Kernels wherever they can run, the environment notwithstanding, or none; on a CPU by Triton's interpreter, where
    TRITON_INTERPRET=1 was set before Triton was imported."""
    global _forced
    before, _forced = _forced, kernels
    try:
        yield
    finally:
        _forced = before


def attempt(operator: str, key: Hashable, call: Callable[..., Tensor], *inputs: Optional[Tensor]) -> Optional[Tensor]:
    """`call(*inputs)`, or None where its kernels do not compile, which is told once.

    Kernels of the backward pass would fail when it is too late for the plain form. So the first call of a kind runs
    forward and backward on copies before its result is trusted.

    Args:
        operator: as in `fused`.
        key: what the kernels are compiled for.
        call: the operator; of equal inputs it makes equal results.
        inputs: of which floating point ones have gradients.
    """
    key = (operator, key, torch.is_grad_enabled())
    if key in _failed:
        _forms[operator] = _failed[key]
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
        _told.add(operator)
    # what has run as a kernel must be one still when activation checkpointing runs it again
    _failed[key if _compiled[operator] else operator] = _forms[operator] = reason


def seed(dropout: float) -> int:
    """Of a kernel's dropout, from torch's generator of the CPU: nothing waits for the device, torch.manual_seed sets
    it, and activation checkpointing draws it again."""
    return int(torch.randint(2**31 - 1, (), device="cpu")) if dropout else 0


def _try(call: Callable[..., Tensor], inputs: Any) -> None:
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
