"""Functions in fixed memory as CUDA graphs, where torch has what they need."""

import inspect
import os
from typing import Any, Callable, List, Sequence

import torch

SWITCH = "FAIRSEQ_LUNA_GRAPHS"


def can_capture(device: torch.device) -> bool:
    """Whether graphs can be captured on a device, and are not turned off."""
    return (
        device.type == "cuda"
        and device.index == torch.cuda.current_device()
        and os.environ.get(SWITCH) != "0"
        and "capture_error_mode" in inspect.signature(torch.cuda.graph.__init__).parameters  # torch >= 2.1
        and not torch.cuda.is_current_stream_capturing()  # by somebody else
    )


def record(function: Callable[[], Any], parts: Sequence[Callable[[], Any]], pool: Any) -> List[Callable[[], None]]:
    """Graphs of the parts of a function; they replay in the same memory, in this order.

    Args:
        function: all parts one after the other: what torch and Triton prepare in their first calls is done by it.
        parts: without arguments and results.
        pool: of memory, which graphs share that never replay at the same time.

    Raises:
        RuntimeError: if something in them cannot be captured, or the memory does not reach.
    """
    before = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(before)
    with torch.cuda.stream(aside):
        for _ in range(2):
            function()
    before.wait_stream(aside)
    graphs = [torch.cuda.CUDAGraph() for _ in parts]
    try:
        for graph, part in zip(graphs, parts):
            # only of this thread: another one may be putting the next batches into pinned memory
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                part()
    except RuntimeError:
        _recover(before)
        raise
    return [graph.replay for graph in graphs]


def _recover(stream: Any) -> None:
    """torch leaves a capture that fails on its stream, and its generator waiting for the end of it."""
    torch.cuda.set_stream(stream)
    generator = torch.cuda.default_generators[stream.device_index]
    if hasattr(generator, "graphsafe_set_state"):  # torch >= 2.4
        other = torch.Generator(stream.device)
        other.manual_seed(int(torch.randint(2**31 - 1, (), device="cpu")))
        generator.graphsafe_set_state(other.graphsafe_get_state())
