"""Time and memory of Luna beside fairseq's Transformer, measured in turn in one run.

Every arm lives in a process of its own; one after the other makes one step, round after round, and what is reported
is the median of each round's ratio to the first arm, with its quartiles. Peak memory comes from other processes, one
for each arm alone. The first steps are not counted.

What goes into a folder: table.md, results.json (with the machine and all versions), curves.png and curves.svg. The
same command goes on where it was stopped.
"""

import argparse
import multiprocessing
import os
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Dict, List, NamedTuple, Optional

import arms
from common import (
    Problem,
    alone,
    claim,
    differences,
    entry,
    go_on_later,
    machine,
    read_json,
    versions,
    whole,
    write_json,
    write_text,
)
from progress import bar

# As scripts/env.sh has it for the other scripts.
REUSE_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}

BASE = {"dim": 512, "ffn": 2048, "heads": 8, "layers": 6, "vocab": 32000, "dropout": 0.1}
BYTES = {"dim": 256, "ffn": 1024, "heads": 4, "layers": 4, "vocab": 260, "dropout": 0.1}
QUICK = {"dim": 32, "ffn": 64, "heads": 2, "layers": 2, "vocab": 100}


class Command(NamedTuple):
    """What a subcommand measures unless told otherwise."""

    about: str
    sizes: Dict[str, Any]
    arms: List[str]
    points: List[Dict[str, int]]
    quick: List[Dict[str, int]]


def points(**lists: List[int]) -> List[Dict[str, int]]:
    return [dict(zip(lists, values)) for values in zip(*lists.values())]


COMMANDS = {
    "train": Command(
        "a training update of a translation model: forward, label-smoothed loss, backward, clipping, Adam",
        BASE,
        ["transformer", "luna-16"],
        points(length=[30, 1024, 4096], tokens=[2048, 4096, 4096]),
        points(length=[8, 40], tokens=[64, 80]),
    ),
    "decode": Command(
        "beam search by fairseq's generator to an exact number of tokens",
        BASE,
        ["transformer", "luna-16", "luna-16-bf16", "luna-16-int8"],
        points(length=[28, 28, 1000], out_length=[28, 28, 300], batch=[16, 64, 4]),
        points(length=[8, 40], out_length=[5, 8], batch=[2, 2]),
    ),
    "length": Command(
        "forward and backward of a byte-level classifier, encoder alone, after the paper's table of speed and memory",
        BYTES,
        ["softmax", "fused", "luna-16", "luna-128", "luna-256"],
        points(length=[1024, 2048, 3072, 4096], tokens=[8192, 8192, 9216, 8192]),
        points(length=[32, 64], tokens=[64, 64]),
    ),
    "operator": Command(
        "the causal product alone, forward and backward: by chunks against every outer product",
        {**BASE, "slots": 16},
        ["naive", "chunk"],
        points(length=[32, 128, 512, 2048, 8192], tokens=[8192] * 5),
        points(length=[8, 100], tokens=[100, 100]),
    ),
}


def main() -> None:
    args = parse_args()
    command = COMMANDS[args.command]
    sizes = {**command.sizes, **(QUICK if args.quick else {})}
    sizes.update({key: value for key, value in vars(args).items() if key in sizes and value is not None})
    chosen = [arm(name, args) for name in args.arms or command.arms]
    todo = args.points or (command.quick if args.quick else command.points)
    settings = {
        "command": args.command,
        "arms": chosen,
        "points": todo,
        "sizes": {**sizes, "beam": args.beam, "threads": args.threads, "seed": args.seed, "cpu": args.cpu},
        "rounds": args.rounds,
        "allocator": args.allocator,
        "machine": {**machine(args.cpu), "torch threads": args.threads},
        "versions": versions(),
    }
    folder = args.out
    with alone(folder):
        go_on_later()
        begun = read_json(folder / "settings.json", settings)
        if begun != settings:
            told = "; ".join(differences(flat(begun), flat(settings)))
            raise Problem(f"{folder} holds other measurements: {told}: choose another --out")
        claim(folder, settings)
        done = read_json(folder / "results.json", {}).get("points", [])
        # what failed is tried again: its cause may be gone
        sound = [all("error" not in found for found in result["arms"].values()) for result in done] + [False]
        results = done[: sound.index(False)]
        for point in todo[len(results) :]:
            name = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in point.items())
            say(f"{args.command}: {name}")
            results.append({**point, "arms": measure(args, chosen, {**settings["sizes"], **point})})
            write_json(folder / "results.json", {**settings, "points": results})
        table = tabulate(args.command, results)
        write_text(folder / "table.md", table)
        print(table)
        draw(args.command, results, folder)
        say(f"everything is in {folder}")
        failed = [name for result in results for name, found in result["arms"].items() if "error" in found]
        if failed:
            raise Problem(f"could not be measured: {', '.join(dict.fromkeys(failed))}; the reasons stand above")


def flat(settings: Dict[str, Any]) -> Dict[str, Any]:
    return {**{key: value for key, value in settings.items() if key != "sizes"}, **settings["sizes"]}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,decode,length,operator}")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.about, description=command.about[0].upper() + command.about[1:])
        sub.add_argument(
            "--arms", nargs="+", metavar="ARM", help=f"the first is 1 (default {' '.join(command.arms)}); {ARMS[name]}"
        )
        if name != "operator":
            sub.add_argument(
                "--user-dir", metavar="DIR", help="plugin of the arms that are called mine:ARCH, for a model of yours"
            )
        keys = list(command.points[0])
        sub.add_argument(
            "--points",
            nargs="+",
            type=lambda text, keys=keys: point(text, keys),
            metavar=":".join(key.upper() for key in keys),
            help=f"where to measure (default {' '.join(':'.join(map(str, p.values())) for p in command.points)})",
        )
        for key, value in command.sizes.items():
            sub.add_argument(f"--{key}", type=type(value), metavar="N", help=f"default {value}")
        sub.add_argument("--beam", type=int, default=5, metavar="N", help="default %(default)s")
        sub.add_argument("--rounds", type=int, metavar="N", help="counted steps of each arm (default 5; --quick: 2)")
        sub.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="default: all cores")
        sub.add_argument("--seed", type=int, default=1, metavar="N", help="default %(default)s")
        sub.add_argument("--cpu", action="store_true", help="leave a GPU alone")
        sub.add_argument(
            "--allocator",
            choices=("reuse", "system"),
            default="reuse",
            help="reuse: on a CPU all arms keep freed memory, as the scripts here do; system: as the C library has it",
        )
        sub.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
        sub.add_argument("--out", type=Path, metavar="DIR", help=f"default runs/benchmark/{name}")
    args = parser.parse_args()
    if args.rounds is None:
        args.rounds = 2 if args.quick else 5
    args.out = args.out or Path("runs/benchmark") / (args.command + "-quick" * args.quick)
    for key in ("rounds", "threads", "beam", "dim", "ffn", "heads", "layers", "vocab", "slots"):
        value = getattr(args, key, None)
        if value is not None and value < 1:
            parser.error(f"--{key} must be at least 1, but is {value}")
    if (getattr(args, "vocab", None) or 5) < 5:
        parser.error(f"--vocab must be at least 5, of which four are special, but is {args.vocab}")
    names = args.arms or []
    if len(set(names)) < len(names):
        parser.error(f"--arms names an arm twice: {' '.join(names)}")
    return args


def point(text: str, keys: List[str]) -> Dict[str, int]:
    values = text.split(":")
    if len(values) != len(keys) or not all(v.isdigit() and int(v) > 0 for v in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not {':'.join(key.upper() for key in keys)}")
    return {key: int(value) for key, value in zip(keys, values)}


# words behind luna-L, and the options that they stand for
VARIANTS = {
    "untied": ["--untie-luna-kv"],
    "gaussian": ["--pack-bias", "gaussian"],
    "gaussianunpack": ["--encoder-unpack-bias", "gaussian"],
    "plain": ["--pack-values", "plain"],
    "decaying": ["--causal-mean", "decaying"],
    "fullcross": ["--cross-attention", "full"],
    "softmaxencoder": ["--encoder-self-attention", "softmax"],
    "softmaxdecoder": ["--decoder-self-attention", "softmax"],
}
PRECISIONS = {word: ["--inference-precision", word] for word in ("bf16", "int8")}
MODELS = f"luna-L, with any of -{', -'.join(VARIANTS)} behind, transformer, mine:ARCH (with its own feed-forward)"
ARMS = {
    "train": MODELS,
    "decode": f"{MODELS}, any luna also with -bf16 or -int8, ctranslate2-float32, ctranslate2-int8",
    "length": f"{MODELS}, softmax (with the n x n matrix), fused (torch's fused attention)",
    "operator": "naive, chunk, recurrent, each also with -decaying",
}


def arm(name: str, args: argparse.Namespace) -> Dict[str, Any]:
    """What the process of an arm needs to know."""
    kind, _, rest = name.partition("-")
    if args.command == "operator" and kind in ("naive", "chunk", "recurrent") and rest in ("", "decaying"):
        return {"name": name, "form": kind, "decaying": bool(rest)}
    if args.command == "decode" and kind == "ctranslate2" and rest in ("float32", "int8"):
        return {"name": name, "arch": "ctranslate2", "quantization": rest, "options": []}
    if name == "transformer" or (args.command == "length" and name in ("softmax", "fused")):
        return {"name": name, "arch": "transformer", "fused": name != "softmax", "options": []}
    if name.startswith("mine:") and args.command != "operator":
        if not args.user_dir:
            raise Problem(f"{name} needs --user-dir, the folder of the plugin")
        return {"name": name, "arch": name[5:], "user_dir": args.user_dir, "options": []}
    words = rest.split("-")
    known = {**VARIANTS, **(PRECISIONS if args.command == "decode" else {})}
    if args.command != "operator" and kind == "luna" and words[0].isdigit() and set(known).issuperset(words[1:]):
        options = ["--projection-length", words[0], *(option for word in words[1:] for option in known[word])]
        return {"name": name, "arch": "luna_transformer", "options": options}
    raise Problem(f"there is no arm {name} here: {ARMS[args.command]}")


def say(message: str) -> None:
    print(f"benchmark: {message}", flush=True)


# ---- measuring


class Arm:
    """An arm at work in a process of its own."""

    def __init__(self, command: str, arm: Dict[str, Any], sizes: Dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=arms.serve, args=(theirs, command, arm, sizes), daemon=True)
        self.process.start()
        theirs.close()
        self.error: Optional[str] = None
        self.answer()

    def answer(self) -> Dict[str, Any]:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            answer = {"error": self.end()}
        self.error = answer.get("error")
        return answer

    def step(self) -> Dict[str, Any]:
        try:
            self.connection.send(True)
        except OSError:
            pass  # it is gone: the answer tells how
        return self.answer()

    def end(self) -> str:
        self.connection.close()
        self.process.join()
        code = self.process.exitcode or 0
        return f"killed by signal {-code}: out of memory?" if code < 0 else f"ended with exit code {code}"


def measure(args: argparse.Namespace, chosen: List[Dict[str, Any]], sizes: Dict[str, Any]) -> Dict[str, Any]:
    """Seconds, ratios and bytes of each arm at one point."""
    found: Dict[str, Any] = {}
    for key in REUSE_MEMORY:
        os.environ.pop(key, None)
    os.environ.update(REUSE_MEMORY if args.allocator == "reuse" else {})
    running = {spec["name"]: Arm(args.command, spec, sizes) for spec in chosen}
    for key in REUSE_MEMORY:
        os.environ.pop(key, None)
    rounds: Dict[str, List[Dict[str, Any]]] = {name: [] for name in running}
    with bar((args.rounds + 1) * len(running), "step") as line:
        for number in range(args.rounds + 1):
            for name, one in running.items():
                answer = one.step() if one.error is None else {}
                if number and one.error is None:
                    rounds[name].append(answer)
                line.update()
    for one in running.values():
        one.end()
    first = rounds[chosen[0]["name"]]
    for spec in chosen:
        name, steps = spec["name"], rounds[spec["name"]]
        if running[name].error is not None:
            found[name] = {"error": running[name].error}
            say(f"{name}: {running[name].error}")
            continue
        found[name] = {"seconds": spread([s["seconds"] for s in steps])}
        if len(first) == len(steps):
            found[name]["time"] = spread([s["seconds"] / f["seconds"] for s, f in zip(steps, first)])
        if "encoder" in steps[0]:
            tokens = [(s["seconds"] - s["encoder"]) / sizes["out_length"] for s in steps]
            found[name]["seconds a token"] = spread(tokens)
        # alone, and with the memory that the C library would take
        single = Arm(args.command, spec, sizes)
        for _ in range(2):
            answer = single.step() if single.error is None else {}
        single.end()
        if single.error is None:
            found[name]["bytes"], found[name]["bytes of the process"] = answer["memory"], answer["whole"]
    base = found[chosen[0]["name"]].get("bytes")
    for result in found.values():
        if base and "bytes" in result:
            result["memory"] = result["bytes"] / base
    return found


def spread(values: List[float]) -> Dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median(values), "lower quartile": low, "upper quartile": high}


# ---- what is left of it


def tabulate(command: str, results: List[Dict[str, Any]]) -> str:
    """A table with a line for each arm at each point."""
    keys = [key for key in results[0] if key != "arms"]
    per_token = command == "decode"
    head = [*(key.replace("_", " ") for key in keys), "arm", "time", "time, the first = 1 (quartiles)", "speed"]
    head += ["ms a token"] * per_token + ["memory", "memory, the first = 1"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        for name, found in result["arms"].items():
            row = [*(f"{result[key]:,}" for key in keys), name]
            if "error" in found:
                row += [found["error"].strip().splitlines()[-1][:80]]
                row += [""] * (len(head) - len(row))
            else:
                time = found.get("time")
                row.append(show_seconds(found["seconds"]["median"]))
                row += (
                    [f"{time['median']:.2f} ({time['lower quartile']:.2f}-{time['upper quartile']:.2f})"]
                    + [f"{1 / time['median']:.2f}x"]
                    if time
                    else ["", ""]
                )
                if per_token:
                    token = found.get("seconds a token")
                    row.append(f"{1000 * token['median']:.1f}" if token else "")
                row.append(f"{found['bytes'] / 2**20:,.0f} MB" if "bytes" in found else "")
                row.append(f"{found['memory']:.2f}" if "memory" in found else "")
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def show_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def draw(command: str, results: List[Dict[str, Any]], folder: Path) -> None:
    """Time and memory by length, or bars where the points differ in more than that."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("matplotlib is not installed: no curves.png")
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    names = list(results[0]["arms"])
    labels = [":".join(str(v) for k, v in result.items() if k != "arms") for result in results]
    lengths = [result["length"] for result in results]
    curves = command != "decode" and len(results) > 1
    for index, (key, title) in enumerate((("time", "time of a step"), ("memory", "peak memory")), 1):
        axes = figure.add_subplot(1, 2, index)
        for number, name in enumerate(names):
            values = [value_of(result["arms"][name], key) for result in results]
            if curves:
                axes.plot(lengths, values, marker="o", label=name)
            else:
                width = 0.8 / len(names)
                axes.bar([i + number * width for i in range(len(values))], values, width, label=name)
        if curves:
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
            axes.minorticks_off()
            axes.set_xlabel("length in tokens")
            axes.set_ylim(bottom=0)
        else:
            axes.set_xticks([i + 0.4 - 0.4 / len(names) for i in range(len(labels))], labels)
            axes.set_xlabel(":".join(k.replace("_", " ") for k in results[0] if k != "arms"))
        axes.set_ylabel(f"{title}, {names[0]} = 1")
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.legend()
    for suffix in "png", "svg":
        with whole(folder / f"curves.{suffix}") as file:
            figure.savefig(file, format=suffix, dpi=120)


def value_of(found: Dict[str, Any], key: str) -> float:
    value = found.get(key, float("nan"))
    return value["median"] if isinstance(value, dict) else value


if __name__ == "__main__":
    entry("benchmark", main)
