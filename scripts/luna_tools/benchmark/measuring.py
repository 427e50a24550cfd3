"""Measures models in turn: one step of one after the other, round after round, in processes that wait meanwhile."""

import argparse
import contextlib
import multiprocessing
import os
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Dict, Iterator, List, Optional

from luna_tools.benchmark import worker
from luna_tools.paths import USER_DIR

# As scripts/env.sh has it for the other scripts.
REUSE_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
# what all models need, where they are forked from one process
FAIRSEQ = [f"fairseq.{name}" for name in ("options", "sequence_generator", "models", "tasks")]
PRELOADED = ["luna_tools.benchmark.worker", "torch._dynamo", *FAIRSEQ]


class Process:
    """A process in which models of one plugin work. Once it has ended, `error` says how."""

    def __init__(self, args: argparse.Namespace, user_dir: Optional[str]) -> None:
        # at tiny sizes most of the time would go into starting Python
        context: Any = multiprocessing.get_context("forkserver" if args.quick and args.cpu else "spawn")
        if args.quick and args.cpu:
            context.set_forkserver_preload(PRELOADED)
        self.connection, theirs = context.Pipe()
        asked = (theirs, args.command, user_dir, args.cpu, args.threads)
        self.process = context.Process(target=worker.serve, args=asked, daemon=True)
        self.process.start()
        theirs.close()
        self.error: Optional[str] = None

    def ask(self, *request: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone: the answer tells how
            self.connection.send(request)

    def answer(self) -> Dict[str, Any]:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.error = self.error or self.end()
            return {"error": self.error}

    def end(self) -> str:
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return f"killed by signal {-code}: out of memory?" if code < 0 else f"ended with exit code {code}"


class Member:
    """A model in its process. What goes wrong with it stands in `error`."""

    def __init__(self, process: Process, name: str) -> None:
        self.process, self.name = process, name
        self.error: Optional[str] = None

    def ask(self, request: str, *values: Any) -> None:
        self.process.ask(request, self.name, *values)

    def answer(self) -> Dict[str, Any]:
        answer = self.process.answer()
        self.error = answer.get("error")
        return answer

    def do(self, request: str, *values: Any) -> Dict[str, Any]:
        self.ask(request, *values)
        return self.answer()


class Crew:
    """The models of a table, point after point.

    They are timed in some processes. In others, one after the other, their memory is measured and their launches are
    counted: nobody else's memory is there, and a process that has been profiled may launch more slowly ever after. On a
    CPU each model has fresh ones for every point, whose memory begins at nothing. On a GPU they are `shared` by all
    models of a plugin, and stay, since importing takes long and torch's allocator counts anew for each model; those
    that count start only when the first point is timed.
    """

    def __init__(self, args: argparse.Namespace, chosen: List[Dict[str, Any]], shared: bool) -> None:
        self.args, self.chosen, self.shared = args, chosen, shared
        self.timing: Dict[str, Process] = {}
        self.counting: Dict[str, Process] = {}

    def measure(self, sizes: Dict[str, Any], line: Any) -> Dict[str, Any]:
        """Seconds, ratios, bytes and launches of each model at one point; `line` shows the steps."""
        running = self.ready(sizes, line)
        rounds = self.rounds(running, line)
        self.rest(self.timing)
        found: Dict[str, Dict[str, Any]] = {name: {"error": one.error} for name, one in running.items()}
        first = rounds[self.chosen[0]["name"]]
        for spec in self.chosen:
            name = spec["name"]
            if running[name].error is None:
                line.set_description(f"memory and launches of {name}")
                found[name] = {**figures(rounds[name], first, sizes), **self.alone(spec, sizes)}
            line.update()
        base = found[self.chosen[0]["name"]].get("bytes")
        for result in found.values():
            if base and "bytes" in result:
                result["memory"] = result["bytes"] / base
        return found

    def ready(self, sizes: Dict[str, Any], line: Any) -> Dict[str, Member]:
        """All models, built and beyond their first steps, which are not counted."""
        with memory_reused(self.args.allocator == "reuse"):
            running = {spec["name"]: self.member(spec, self.timing) for spec in self.chosen}
        for spec in self.chosen:
            running[spec["name"]].ask("build", spec, sizes)
        for name, one in running.items():
            line.set_description(f"building {name}")
            one.answer()
        for name, one in running.items():
            line.set_description(f"first steps of {name}" + ": kernels are compiled" * self.shared)
            if one.error is None:
                one.do("begin")
            line.update()
        return running

    def member(self, spec: Dict[str, Any], processes: Dict[str, Process]) -> Member:
        """A model in its place among these processes; one is started where none is at work."""
        user_dir = spec.get("user_dir")
        # plugins have one name, and a process one plugin
        place = str(Path(user_dir or USER_DIR).resolve()) if self.shared else spec["name"]
        if place not in processes or not processes[place].process.is_alive():
            processes[place] = Process(self.args, user_dir)
        return Member(processes[place], spec["name"])

    def rounds(self, running: Dict[str, Member], line: Any) -> Dict[str, List[Dict[str, Any]]]:
        """The answers of each model."""
        line.set_description("one step of each in turn")
        rounds: Dict[str, List[Dict[str, Any]]] = {name: [] for name in running}
        for _ in range(self.args.rounds):
            for name, one in running.items():
                answer = one.do("step") if one.error is None else {}
                if one.error is None:
                    rounds[name].append(answer)
                line.update()
        return rounds

    def alone(self, spec: Dict[str, Any], sizes: Dict[str, Any]) -> Dict[str, Any]:
        """Bytes of a model by itself, with the memory that the C library would take, and its launches."""
        one = self.member(spec, self.counting)
        found: Dict[str, Any] = {}
        requests: List[Any] = [("build", spec, sizes), ("begin",), ("memory",), ("count",)]
        for request in requests:
            answer = one.do(*request)
            if one.error is not None:
                found["not counted"] = one.error
                break
            found.update(answer)
        self.rest(self.counting)
        return found

    def rest(self, processes: Dict[str, Process]) -> None:
        """These give back the memory, and stay where they are shared."""
        for process in processes.values():
            if self.shared:
                process.ask("rest")
                process.answer()
            else:
                process.end()
        if not self.shared:
            processes.clear()

    def end(self) -> None:
        for process in (*self.timing.values(), *self.counting.values()):
            process.end()


def figures(steps: List[Dict[str, Any]], first: List[Dict[str, Any]], sizes: Dict[str, Any]) -> Dict[str, Any]:
    """What the steps of a model come to, beside those of the first model where all of these are there."""
    found: Dict[str, Any] = {"seconds": spread([s["seconds"] for s in steps])}
    if len(first) == len(steps):
        found["time"] = spread([s["seconds"] / f["seconds"] for s, f in zip(steps, first)])
    if "encoder" in steps[0]:
        found["seconds a token"] = spread([(s["seconds"] - s["encoder"]) / sizes["out_length"] for s in steps])
    found[f"{steps[0]['unit']} a second"] = steps[0]["amount"] / found["seconds"]["median"]
    return found


@contextlib.contextmanager
def memory_reused(asked: bool) -> Iterator[None]:
    """The processes that are started here keep freed memory, or do as the C library has it."""
    for key in REUSE_MEMORY:
        os.environ.pop(key, None)
    os.environ.update(REUSE_MEMORY if asked else {})
    yield
    for key in REUSE_MEMORY:
        os.environ.pop(key, None)


def spread(values: List[float]) -> Dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "lower quartile": low, "upper quartile": high}
