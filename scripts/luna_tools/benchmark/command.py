"""Time and memory of Luna beside fairseq's Transformer, measured in turn in one run.

One model after the other makes one step, round after round. The first steps are not counted. What is reported is the
median of each round's ratio to the first model, with its quartiles. On a CPU every model lives in a process of its own,
on a GPU with the others of its plugin. Peak memory is that of a model alone in another process, on a GPU by torch's
allocator. There one more step is profiled: its kernels are counted, or its operators where there is no GPU. The models
of `operator` are operators.

What goes into a folder: table.md (after every point), results.json (with the machine, all versions and the forms that
the operators took), dispatch.md with --dispatch, curves.png and curves.svg. The same command goes on where it was
stopped.
"""

import argparse
import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Any, ContextManager, Dict, List, NamedTuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, write_json, write_text
from fairseq_luna.versions import versions
from luna_tools.benchmark.measuring import Crew
from luna_tools.benchmark.model_names import KNOWN, PRECISIONS, spec_of
from luna_tools.benchmark.reporting import draw, say, show_forms, show_point, tabulate
from luna_tools.console import Former, go_on_later
from luna_tools.machine import machine
from luna_tools.paths import USER_DIR
from luna_tools.progress import bar
from luna_tools.run_folder import alone, claim, differences

BASE = {"dim": 512, "ffn": 2048, "heads": 8, "layers": 6, "vocab": 32000, "dropout": 0.1}
BYTES = {"dim": 256, "ffn": 1024, "heads": 4, "layers": 4, "vocab": 260, "dropout": 0.1}
QUICK = {"dim": 32, "ffn": 64, "heads": 2, "layers": 2, "vocab": 100}
FAIRSEQS_LOSS = "label_smoothed_cross_entropy"
CRITERIONS = f"chunked_{FAIRSEQS_LOSS}", FAIRSEQS_LOSS
IN_FEWER_BITS = tuple(f"-{word}" for word in PRECISIONS)


class Command(NamedTuple):
    """What a subcommand measures unless told otherwise."""

    about: str
    sizes: Dict[str, Any]
    models: List[str]
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
        ["softmax", "fused", "linformer-128", "linformer-256", "luna-16", "luna-128", "luna-256"],
        points(length=[1024, 2048, 3072, 4096], tokens=[8192, 8192, 9216, 8192]),
        points(length=[32, 64], tokens=[64, 64]),
    ),
    "operator": Command(
        "the causal product or the causal attention alone, forward and backward",
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
    device = machine(args.cpu)
    gpu = device["gpu"] is not None
    cores = os.cpu_count() or 1
    args.threads = args.threads or (min(4, cores) if gpu else cores)
    # these are for a CPU, and from float32
    plain = gpu or args.precision != "fp32"
    names = [name for name in command.models if not plain or not name.endswith(IN_FEWER_BITS)]
    chosen = [spec_of(name, args) for name in args.models or names]
    todo = args.points or (command.quick if args.quick else command.points)
    asked = {key: getattr(args, key) for key in ("beam", "threads", "seed", "cpu", "precision")}
    if args.command == "train":
        asked["criterion"] = args.criterion or criterion_for(chosen)
    settings = {
        "command": args.command,
        "arms": chosen,  # as earlier versions call them, here and in results.json
        "points": todo,
        "sizes": {**sizes, **asked},
        "rounds": args.rounds,
        "allocator": args.allocator,
        "machine": {**device, "torch threads": args.threads},
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
        crew = Crew(args, chosen, shared=gpu)
        for point in todo[len(results) :]:
            say(f"{args.command}: {show_point(point)}")
            with steps((args.rounds + 2) * len(chosen)) as line:
                found = crew.measure({**settings["sizes"], **point}, line)
            for name, one in found.items():
                for key in "error", "not counted":
                    if key in one:
                        say(f"{name}: {'' if key == 'error' else 'what it launches: '}{one[key]}")
            results.append({**point, "arms": found})
            write_json(folder / "results.json", {**settings, "points": results})
            write_text(folder / "table.md", tabulate(args.command, results, gpu))
        crew.end()
        print(tabulate(args.command, results, gpu))
        if args.dispatch:
            write_text(folder / "dispatch.md", show_forms(results))
            print(show_forms(results))
        draw(args.command, results, folder)
        say(f"everything is in {folder}")
        failed = [name for result in results for name, found in result["arms"].items() if "error" in found]
        if failed:
            raise Problem(f"could not be measured: {', '.join(dict.fromkeys(failed))}; the reasons stand above")


def criterion_for(chosen: List[Dict[str, Any]]) -> str:
    """The loss that all models can have: where another plugin is imported, ours is not."""
    ours = all(Path(spec.get("user_dir", USER_DIR)).resolve() == USER_DIR.resolve() for spec in chosen)
    return CRITERIONS[0] if ours else FAIRSEQS_LOSS


def steps(total: int) -> ContextManager[Any]:
    """A line that shows how many steps are done, and what goes on, where tqdm is installed."""
    try:
        return bar(total, "step")
    except ImportError:
        return contextlib.nullcontext(
            argparse.Namespace(update=lambda steps=1: None, set_description=lambda text: None)
        )


def flat(settings: Dict[str, Any]) -> Dict[str, Any]:
    """Settings as a message names them."""
    names = {"arms": "models"}
    return {**{names.get(key, key): value for key, value in settings.items() if key != "sizes"}, **settings["sizes"]}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,decode,length,operator}")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.about, description=command.about[0].upper() + command.about[1:])
        models = sub.add_argument(
            "--models",
            nargs="+",
            metavar="MODEL",
            help=f"the first is 1 (default {' '.join(command.models)}); {KNOWN[name]}",
        )
        sub.add_argument("--arms", action=Former, now=models)
        if name != "operator":
            sub.add_argument(
                "--user-dir",
                metavar="DIR",
                help="folder of the plugin that arch:ARCH takes ARCH from, such as yours",
            )
        keys = list(command.points[0])
        sub.add_argument(
            "--points",
            nargs="+",
            type=partial(point, keys=keys),
            metavar=":".join(key.upper() for key in keys),
            help=f"where to measure (default {' '.join(':'.join(map(str, p.values())) for p in command.points)})",
        )
        for key, value in command.sizes.items():
            sub.add_argument(f"--{key}", type=type(value), metavar="N", help=f"default {value}")
        sub.add_argument("--beam", type=int, default=5, metavar="N", help="default %(default)s")
        sub.add_argument("--rounds", type=int, metavar="N", help="counted steps of each model (default 5; --quick: 2)")
        sub.add_argument("--threads", type=int, metavar="N", help="default: all cores; beside a GPU at most 4")
        sub.add_argument(
            "--precision",
            choices=("fp32", "fp16", "bf16"),
            default="fp32",
            help="of parameters and activations, as fairseq has it; in training with its own FP16Optimizer, whose "
            "parameters are in float32 (default %(default)s)",
        )
        if name == "train":
            sub.add_argument(
                "--criterion",
                choices=CRITERIONS,
                help=f"loss of all models (default {CRITERIONS[0]}; beside another plugin's models fairseq's)",
            )
        sub.add_argument("--seed", type=int, default=1, metavar="N", help="default %(default)s")
        sub.add_argument("--cpu", action="store_true", help="leave a GPU alone")
        sub.add_argument(
            "--allocator",
            choices=("reuse", "system"),
            default="reuse",
            help="reuse: on a CPU models keep freed memory, as the scripts here do; system: as the C library has it",
        )
        sub.add_argument(
            "--dispatch",
            action="store_true",
            help="show which form each operator of the plugin took, and why it was no kernel",
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
    names = args.models or []
    if len(set(names)) < len(names):
        parser.error(f"--models names a model twice: {' '.join(names)}")
    return args


def point(text: str, keys: List[str]) -> Dict[str, int]:
    values = text.split(":")
    if len(values) != len(keys) or not all(v.isdigit() and int(v) > 0 for v in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not {':'.join(key.upper() for key in keys)}")
    return {key: int(value) for key, value in zip(keys, values)}
