"""The process of an arm of scripts/benchmark.py: it builds what is asked for, and then works on request."""

import contextlib
import gc
import logging
import resource
import signal
import sys
import time
import traceback
from typing import Any, Dict, Optional

from common import Problem, die_with_parent, import_plugin
from counting import count
from operators import operator
from workloads import Job, decoding, encoding, synchronise, training

WORKLOADS = {"train": training, "decode": decoding, "length": encoding, "operator": operator}


def serve(connection: Any, workload: str, arm: Dict[str, Any], cpu: bool, threads: int) -> None:
    """Answer requests until the other end closes.

    ("build", sizes) makes the arm ready, in place of what it was before; ("step",) does a step and gives seconds and
    bytes; ("count",) does one more and gives what it launches, and the forms of the plugin's operators; ("rest",) gives
    back the memory.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's concern
    del sys.argv[1:]  # fairseq looks for a --user-dir there
    worker: Optional[Worker] = None
    while True:
        try:
            request, *values = connection.recv()
        except (EOFError, OSError):
            return
        try:
            worker = worker or Worker(workload, arm, cpu, threads)
            answer = getattr(worker, request)(*values)
        except (Problem, MemoryError, ValueError, OSError) as error:
            answer = {"error": str(error) or "out of memory"}
        except Exception:
            answer = {"error": traceback.format_exc()}
        with contextlib.suppress(OSError):  # nobody is there any more
            connection.send(answer)


class Worker:
    """An arm on its device."""

    def __init__(self, workload: str, arm: Dict[str, Any], cpu: bool, threads: int) -> None:
        import torch

        logging.disable(logging.WARNING)
        torch.set_num_threads(threads)
        self.workload, self.arm = WORKLOADS[workload], arm
        self.device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        import_plugin(arm.get("user_dir"))
        torch.zeros(1, device=self.device)
        self.job: Optional[Job] = None
        self.before = self.steps = 0

    def build(self, sizes: Dict[str, Any]) -> Dict[str, Any]:
        import torch

        self.rest()
        self.forget_peak()
        self.before = peak_memory(self.device)
        torch.manual_seed(sizes["seed"])
        self.job = self.workload(self.arm, sizes, self.device)
        return {"amount": self.job.amount, "unit": self.job.unit}

    def rest(self) -> Dict[str, Any]:
        """Nothing is kept but what Python has."""
        import torch

        self.job, self.steps = None, 0
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def step(self) -> Dict[str, Any]:
        """Memory is what came on top of the process as it was before the arm was built: parameters, gradients, the
        optimiser's state and activations, not the libraries. On a GPU it is the most that torch's
        allocator has reserved, with the memory of CUDA graphs."""
        assert self.job
        if self.steps == 1:
            self.forget_peak()  # of what is made or tried out at the first use
        for _ in range(0 if self.steps else self.job.first - 1):
            self.job.step()
        self.steps += 1
        synchronise(self.device)
        start = time.perf_counter()
        parts = self.job.step() or {}
        synchronise(self.device)
        seconds = time.perf_counter() - start
        peak = peak_memory(self.device)
        return {"seconds": seconds, **parts, "memory": peak - self.before, "whole": peak}

    def count(self) -> Dict[str, Any]:
        """Of a search, what a token more launches."""
        assert self.job
        job, forms = self.job, chosen_forms()
        if job.search is None:
            return {"launched": count(job.step, self.device), "forms": forms}
        search, short, long = job.search, 4, 12
        runs = [(lambda tokens=tokens: search(tokens)) for tokens in (short, long)]
        for run in runs:
            run()  # what is made for a length is made now
        few, many = (count(run, self.device) for run in runs)
        return {"launched": {key: (many[key] - few[key]) / (long - short) for key in few}, "forms": forms}

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def peak_memory(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def chosen_forms() -> Dict[str, Dict[str, Optional[str]]]:
    """In which form each operator of the plugin ran last, and why in no kernel; nothing of a plugin that has no such
    choice."""
    dispatch = sys.modules.get("fairseq_luna.ops.dispatch")
    forms = getattr(dispatch, "forms", dict)()
    return {name: {"form": chosen.form, "why": chosen.unfused} for name, chosen in forms.items()}
