"""How much a step launches, by torch.profiler: kernels of a GPU, or operators of a CPU where none is at hand."""

import os
import re
from typing import Any, Callable, Dict

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read as torch is imported: the profiler tells of its work on stderr

# of a CPU: what moves no numbers, and so would launch nothing on a GPU
IDLE = set(
    "alias as_strided broadcast_to chunk contiguous data detach detach_ diagonal empty empty_like empty_strided "
    "expand expand_as flatten is_nonzero item lift_fresh movedim narrow new_empty new_empty_strided permute "
    "pin_memory positive ravel real requires_grad_ reshape reshape_as resize_ resolve_conj resolve_neg result_type "
    "select set_ slice split split_with_sizes squeeze squeeze_ swapaxes t t_ tensor_split transpose transpose_ "
    "unbind unflatten unfold unsqueeze unsqueeze_ view view_as _reshape_alias _unsafe_view "
    "numpy_T mT to type_as".split()
)
LAUNCH = re.compile(r"cu(da)?(LaunchKernel|LaunchCooperativeKernel|GraphLaunch)")
OPTIMISER = "## optimiser"  # the name of the span in which one is at work


def count(step: Callable[[], Any], device: Any) -> Dict[str, float]:
    """What one step launches.

    Returns:
        On a GPU `kernels` (all that runs there but copies from the host), `launches` (calls that start a kernel or
        a whole graph of them) and `gpu ms`, the time in which it works; on a CPU `operators`, the leaves, and of them
        those `without the optimiser`, which in fp16 updates all parameters as one, elsewhere each by itself.
    """
    from torch.profiler import ProfilerActivity, profile

    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as profiler:
        step()
        if gpu:
            import torch

            torch.cuda.synchronize()
    events = profiler.events()
    return of_gpu(events) if gpu else of_cpu(events)


def of_gpu(events: Any) -> Dict[str, float]:
    there = [event for event in events if event.device_type.name == "CUDA" and not is_label(event)]
    if not there:
        raise RuntimeError("the profiler saw no kernel: is there another profiler at work, or no right to profile?")
    return {
        "kernels": sum(not event.name.startswith("Memcpy HtoD") for event in there),
        "launches": sum(event.device_type.name == "CPU" and bool(LAUNCH.match(event.name)) for event in events),
        "gpu ms": sum(event.time_range.elapsed_us() for event in there) / 1000,
    }


def of_cpu(events: Any) -> Dict[str, float]:
    leaves = [event for event in events if is_leaf(event)]
    return {"operators": len(leaves), "without the optimiser": sum(not is_optimisers(event) for event in leaves)}


def is_label(event: Any) -> bool:
    """Whether it is a span that somebody has named, which covers the kernels within."""
    named = event.name.startswith(("Optimizer.", "ProfilerStep", OPTIMISER))
    return named or getattr(event, "is_user_annotation", False)


def is_leaf(event: Any) -> bool:
    """Whether it is an operator of torch's that works and calls none that does."""
    return works(event) and not any(map(works, event.cpu_children))


def is_optimisers(event: Any) -> bool:
    while event is not None and event.name != OPTIMISER:
        event = event.cpu_parent
    return event is not None


def works(event: Any) -> bool:
    return event.name.startswith("aten::") and event.name[6:] not in IDLE
