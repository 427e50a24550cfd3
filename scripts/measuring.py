"""Measures arms in turn: each at work in a process of its own, one step of one after the other, round after round."""

import argparse
import contextlib
import multiprocessing
import os
from statistics import median, quantiles
from typing import Any, Dict, Iterator, List, Optional

import arms

# As scripts/env.sh has it for the other scripts.
REUSE_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
# what all arms need, where they are forked from one process
FAIRSEQ = [f"fairseq.{name}" for name in ("options", "sequence_generator", "models", "tasks")]
PRELOADED = ["arms", "torch._dynamo", *FAIRSEQ]


class Arm:
    """An arm at work in a process of its own. What goes wrong there stands in `error` until it is built anew."""

    def __init__(self, args: argparse.Namespace, arm: Dict[str, Any]) -> None:
        # at tiny sizes most of the time would go into starting Python
        context: Any = multiprocessing.get_context("forkserver" if args.quick and args.cpu else "spawn")
        if args.quick and args.cpu:
            context.set_forkserver_preload(PRELOADED)
        self.connection, theirs = context.Pipe()
        asked = (theirs, args.command, arm, args.cpu, args.threads)
        self.process = context.Process(target=arms.serve, args=asked, daemon=True)
        self.process.start()
        theirs.close()
        self.error: Optional[str] = None

    def ask(self, *request: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone: the answer tells how
            self.connection.send(request)

    def answer(self) -> Dict[str, Any]:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            answer = {"error": self.error or self.end()}
        self.error = answer.get("error")
        return answer

    def do(self, *request: Any) -> Dict[str, Any]:
        self.ask(*request)
        return self.answer()

    def end(self) -> str:
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return f"killed by signal {-code}: out of memory?" if code < 0 else f"ended with exit code {code}"


class Crew:
    """The arms of a table, point after point.

    On a CPU each point has fresh processes, whose memory begins at nothing, and each arm's memory is measured in
    another one, alone (not with --quick). On a GPU the processes stay, and torch's allocator counts what each of them
    has: whoever works beside it does not show there. Launches are counted by others, since a process that has been
    profiled may launch more slowly ever after.
    """

    def __init__(self, args: argparse.Namespace, chosen: List[Dict[str, Any]], gpu: bool) -> None:
        self.args, self.chosen = args, chosen
        self.stays = gpu
        self.running: Dict[str, Arm] = {}
        self.counting: Dict[str, Arm] = {}

    def measure(self, sizes: Dict[str, Any], line: Any) -> Dict[str, Any]:
        """Seconds, ratios, bytes and launches of each arm at one point; `line` shows the steps."""
        running = self.built(sizes)
        ready = {name: one.answer() for name, one in running.items()}
        for one in self.counting.values():
            one.do("rest")  # it is not to be still starting beside what is timed
        rounds = self.rounds(running, line)
        found: Dict[str, Dict[str, Any]] = {name: {"error": one.error} for name, one in running.items()}
        sound = [spec for spec in self.chosen if running[spec["name"]].error is None]
        first = rounds[self.chosen[0]["name"]]
        for name in (spec["name"] for spec in sound):
            found[name] = figures(rounds[name], first, ready[name], sizes)
        if self.stays:
            for one in running.values():
                one.do("rest")
        for spec in sound:
            name = spec["name"]
            found[name].update(counted(self.counting[name], sizes) if self.stays else counted(running[name]))
        if not self.stays:
            self.end()
        if not self.stays and not self.args.quick:
            for spec in sound:
                found[spec["name"]].update(self.alone(spec, sizes))
        base = found[self.chosen[0]["name"]].get("bytes")
        for result in found.values():
            if base and "bytes" in result:
                result["memory"] = result["bytes"] / base
        return found

    def built(self, sizes: Dict[str, Any]) -> Dict[str, Arm]:
        """All arms, asked to be ready for a point."""
        with memory_reused(self.args.allocator == "reuse"):
            for spec in self.chosen:
                for processes in [self.running, self.counting][: 1 + self.stays]:
                    one = processes.get(spec["name"])
                    if one is None or not one.process.is_alive():
                        processes[spec["name"]] = Arm(self.args, spec)
        for one in self.running.values():
            one.ask("build", sizes)
        return self.running

    def rounds(self, running: Dict[str, Arm], line: Any) -> Dict[str, List[Dict[str, Any]]]:
        """The answers of each arm; the first step, which is not counted, is left out."""
        self.first_steps(running)
        line.update(len(running))
        rounds: Dict[str, List[Dict[str, Any]]] = {name: [] for name in running}
        for _ in range(self.args.rounds):
            for name, one in running.items():
                answer = one.do("step") if one.error is None else {}
                if one.error is None:
                    rounds[name].append(answer)
                line.update()
        return rounds

    def first_steps(self, running: Dict[str, Arm]) -> None:
        """All at once on a GPU, since most of their time goes into compiling kernels; but one after the other where
        these are tuned by timing them."""
        sound = [one for one in running.values() if one.error is None]
        if self.stays and self.args.command != "operator":
            for one in sound:
                one.ask("step")
            for one in sound:
                one.answer()
        else:
            for one in sound:
                one.do("step")

    def alone(self, spec: Dict[str, Any], sizes: Dict[str, Any]) -> Dict[str, int]:
        """Bytes of an arm by itself, with the memory that the C library would take."""
        single = Arm(self.args, spec)
        single.do("build", sizes)
        for _ in range(2):
            answer = single.do("step") if single.error is None else {}
        single.end()
        if single.error is not None:
            return {}
        return {"bytes": answer["memory"], "bytes of the process": answer["whole"]}

    def end(self) -> None:
        for one in (*self.running.values(), *self.counting.values()):
            one.end()
        self.running, self.counting = {}, {}


def figures(
    steps: List[Dict[str, Any]], first: List[Dict[str, Any]], ready: Dict[str, Any], sizes: Dict[str, Any]
) -> Dict[str, Any]:
    """What the steps of an arm come to, beside those of the first arm where all of these are there."""
    found: Dict[str, Any] = {"seconds": spread([s["seconds"] for s in steps])}
    if len(first) == len(steps):
        found["time"] = spread([s["seconds"] / f["seconds"] for s, f in zip(steps, first)])
    if "encoder" in steps[0]:
        found["seconds a token"] = spread([(s["seconds"] - s["encoder"]) / sizes["out_length"] for s in steps])
    found[f"{ready['unit']} a second"] = ready["amount"] / found["seconds"]["median"]
    found["bytes"], found["bytes of the process"] = steps[-1]["memory"], steps[-1]["whole"]
    return found


def counted(one: Arm, sizes: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
    """What an arm launches, and in which forms, where it is or built anew for a point."""
    requests: List[Any] = [("count",)] if sizes is None else [("build", sizes), ("step",), ("count",)]
    answer: Dict[str, Any] = {}
    for request in requests:
        answer = one.do(*request)
        if one.error is not None:
            answer = {"not counted": one.error}
            break
    one.do("rest")
    return answer


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
