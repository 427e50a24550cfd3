"""A process of scripts/benchmark.py: it builds the models that are asked for, which then work on request."""

import contextlib
import gc
import logging
import resource
import signal
import sys
import time
import traceback
from typing import Any, Dict, Optional

from fairseq_luna.errors import Problem
from luna_tools.benchmark.counting import count
from luna_tools.benchmark.operators import operator
from luna_tools.benchmark.workloads import Job, decoding, encoding, synchronise, training
from luna_tools.machine import import_plugin
from luna_tools.processes import die_with_parent

WORKLOADS = {"train": training, "decode": decoding, "length": encoding, "operator": operator}


def serve(connection: Any, workload: str, user_dir: Optional[str], cpu: bool, threads: int) -> None:
    """Answer requests until the other end closes; each is a method of Worker's and what it takes. A model that fails is
    forgotten, for the sake of those beside it."""
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
            worker = worker or Worker(workload, user_dir, cpu, threads)
            answer = getattr(worker, request)(*values)
        except (Problem, MemoryError, ValueError, OSError) as error:
            answer = {"error": str(error) or "out of memory"}
        except Exception:
            answer = {"error": traceback.format_exc()}
        with contextlib.suppress(OSError):  # nobody is there any more
            connection.send(answer)
        if worker and "error" in answer:
            worker.rest(*values[:1])


class Worker:
    """Models of one plugin on a device, by name."""

    def __init__(self, workload: str, user_dir: Optional[str], cpu: bool, threads: int) -> None:
        import torch

        logging.disable(logging.WARNING)
        torch.set_num_threads(threads)
        self.workload = WORKLOADS[workload]
        self.device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        import_plugin(user_dir)
        # cuBLAS keeps memory from its first use on, in this thread and in that of gradients: it is no model's
        x = torch.zeros(8, 8, device=self.device, requires_grad=True)
        torch.mm(x, x).sum().backward()
        self.jobs: Dict[str, Job] = {}
        self.before = 0

    def build(self, name: str, spec: Dict[str, Any], sizes: Dict[str, Any]) -> Dict[str, Any]:
        """Make a model ready, in place of what it was before."""
        import torch

        self.rest(name)
        self.forget_peak()
        self.before = peak_memory(self.device)
        torch.manual_seed(sizes["seed"])
        self.jobs[name] = self.workload(spec, sizes, self.device)
        return {}

    def rest(self, *names: str) -> Dict[str, Any]:
        """Nothing is kept of these models, or of all, but what Python has."""
        import torch

        for name in names or list(self.jobs):
            self.jobs.pop(name, None)
        forget_forms()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def begin(self, name: str) -> Dict[str, Any]:
        """The first steps, in which things are made and tried out."""
        for _ in range(self.jobs[name].first):
            self.jobs[name].step()
        synchronise(self.device)
        return {}

    def step(self, name: str) -> Dict[str, Any]:
        """Seconds of a step, and of its parts, and how much it did."""
        job = self.jobs[name]
        synchronise(self.device)
        start = time.perf_counter()
        parts = job.step() or {}
        synchronise(self.device)
        return {"seconds": time.perf_counter() - start, **parts, "amount": job.amount, "unit": job.unit}

    def memory(self, name: str) -> Dict[str, Any]:
        """Of a model that is here alone, what came on top of the process as it was before the model was built:
        parameters, gradients, the optimiser's state and activations, not the libraries. On a GPU it is the most that
        torch's allocator has reserved, with the memory of CUDA graphs."""
        self.forget_peak()  # of the first steps
        self.jobs[name].step()
        synchronise(self.device)
        peak = peak_memory(self.device)
        return {"bytes": peak - self.before, "bytes of the process": peak}

    def count(self, name: str) -> Dict[str, Any]:
        """What a step launches, of a search what a token more does, and the forms of the plugin's operators."""
        job, forms = self.jobs[name], chosen_forms()
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
    forms: Dict[str, Any] = getattr(sys.modules.get("fairseq_luna.ops.dispatch"), "forms", dict)()
    return {name: {"form": chosen.form, "why": chosen.unfused} for name, chosen in forms.items()}


def forget_forms() -> None:
    getattr(sys.modules.get("fairseq_luna.ops.dispatch"), "forget_forms", dict)()
