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
    has: whoever works beside it does not show there.
    """

    def __init__(self, args: argparse.Namespace, chosen: List[Dict[str, Any]], gpu: bool) -> None:
        self.args, self.chosen = args, chosen
        self.stays = gpu
        self.running: Dict[str, Arm] = {}

    def measure(self, sizes: Dict[str, Any], line: Any) -> Dict[str, Any]:
        """Seconds, ratios, bytes and launches of each arm at one point; `line` shows the steps."""
        running = self.built(sizes)
        ready = {name: one.answer() for name, one in running.items()}
        rounds = self.rounds(running, line)
        first = rounds[self.chosen[0]["name"]]
        found: Dict[str, Any] = {}
        for spec in self.chosen:
            name, one = spec["name"], running[spec["name"]]
            steps = rounds[name]
            if one.error is not None:
                found[name] = {"error": one.error}
                continue
            result = found[name] = {"seconds": spread([s["seconds"] for s in steps])}
            if len(first) == len(steps):
                result["time"] = spread([s["seconds"] / f["seconds"] for s, f in zip(steps, first)])
            if "encoder" in steps[0]:
                tokens = [(s["seconds"] - s["encoder"]) / sizes["out_length"] for s in steps]
                result["seconds a token"] = spread(tokens)
            result[f"{ready[name]['unit']} a second"] = ready[name]["amount"] / result["seconds"]["median"]
            result["bytes"], result["bytes of the process"] = steps[-1]["memory"], steps[-1]["whole"]
            counted = one.do("count")
            result.update(counted if one.error is None else {"not counted": one.error})
        if not self.stays:
            self.end()
            for spec in self.chosen:
                if not self.args.quick and "error" not in found[spec["name"]]:
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
                one = self.running.get(spec["name"])
                if one is None or not one.process.is_alive():
                    self.running[spec["name"]] = Arm(self.args, spec)
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
        for one in self.running.values():
            one.end()
        self.running = {}


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
