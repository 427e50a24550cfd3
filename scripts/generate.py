"""Translate a subset of a run's data by beam search with its averaged model.

The hypotheses come detokenised and in the order of the source, as many as there are references. Does nothing where
they are there and were made in the same way. Options after `--` are handed to fairseq-generate."""

import argparse
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, List, Optional

import recipes
from average_checkpoints import count
from common import (
    REPO,
    USER_DIR,
    Problem,
    alone,
    entry,
    quote,
    read_json,
    read_lines,
    remove,
    run,
    sha256,
    write_json,
    write_text,
)
from progress import bar

LENGTHS = ["--max-len-a", "1.5", "--max-len-b", "10"]  # of a hypothesis at most, in pieces: 1.5 n + 10
# beside the model's positions fairseq asks for those of the task, whose default of 1,024 is of no model
NO_LIMITS = ["--max-source-positions", "1000000", "--max-target-positions", "1000000"]

SET_HERE = {
    *("--beam", "--lenpen", "--length-penalty", "--path", "--gen-subset", "--task", "--results-path", "--post-process"),
    *("--remove-bpe", "--user-dir", "--source-lang", "--target-lang", "-s", "-t", "--fp16", "--cpu", "--max-tokens"),
    *("--quiet", "--nbest", "--num-shards", "--shard-id"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="generate.sh",
        usage="%(prog)s [options] RUN_DIR [-- fairseq-generate options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--subset", choices=("test", "valid"), default="test", help="default %(default)s")
    parser.add_argument("--lenpen", type=float, default=0.6, metavar="X", help="length penalty (default %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default RUN_DIR/generated/SUBSET.beamB.lenpenX.LANG, with a .json and a .log beside",
    )
    args = parse(parser)
    if not (args.run / "model.pt").exists():
        raise Problem(f"{args.run} holds no model.pt: make it by `bash scripts/average.sh {quote([str(args.run)])}`")
    out = args.out or args.run / "generated" / file_name(args, args.subset, args.lenpen)
    with alone(args.run / "generated"):
        out.parent.mkdir(parents=True, exist_ok=True)
        generate(args, args.subset, args.lenpen, out)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What generate.sh and evaluate.sh share."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="what train.sh or quickstart.sh wrote")
    parser.add_argument("--data", type=Path, metavar="DIR", help="what data-prep/ made (default RUN_DIR/data)")
    parser.add_argument("--beam", type=count, default=5, metavar="B", help="default %(default)s")
    parser.add_argument(
        "--max-tokens", type=count, default=4096, metavar="N", help="pieces of source in a batch (default %(default)s)"
    )
    parser.add_argument("--fp16", action="store_true", help="in half precision, on a GPU")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with what follows `--` as `extra`."""
    own, extra = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    args = parser.parse_args(own)
    args.extra, args.data = extra, args.data or args.run / "data"
    for word in extra:
        if word.partition("=")[0] in SET_HERE:
            raise Problem(f"{word} cannot be given after --: it is set here; see --help")
    if not args.run.is_dir():
        raise Problem(f"there is no folder {args.run}: give that of a run of train.sh or quickstart.sh")
    if args.fp16:
        import torch

        if args.cpu or not torch.cuda.is_available():
            raise Problem("--fp16 needs a GPU: leave it out")
    return args


def say(message: str) -> None:
    print(f"generate: {message}", flush=True)


def file_name(args: argparse.Namespace, subset: str, lenpen: float) -> str:
    return f"{subset}.beam{args.beam}.lenpen{lenpen:g}.{recipes.load(args.data).target}"


def generate(
    args: argparse.Namespace, subset: str, lenpen: float, out: Path, environment: Optional[Dict[str, str]] = None
) -> List[str]:
    """The translations of a subset by RUN/model.pt, out of the file `out` where they are there already."""
    model, record = args.run / "model.pt", out.with_name(out.name + ".json")
    options = ["--beam", str(args.beam), "--lenpen", str(lenpen), *LENGTHS, "--max-tokens", str(args.max_tokens)]
    options += ["--fp16"] * args.fp16 + args.extra
    settings = {"model": fingerprint(model), "data": fingerprint(args.data / "manifest.json"), "subset": subset}
    settings["options"] = quote(options)
    before = read_json(record, {}) if out.exists() else {}
    if before.get("settings") == settings:
        say(f"{out} is there already")
        return list(read_lines(out))

    say(f"translating {subset}, beam {args.beam}, length penalty {lenpen:g}")
    remove(record)  # so that it never stands beside a file that it is not of
    start, typed = time.time(), []

    def note(command: List[str], on_line: Callable[[str], None]) -> None:
        # as one would type it in the checkout: a record tells nobody where that is
        typed.append(quote(["python", *command[1:]]).replace(f"{REPO}/", ""))
        run(command, out.with_name(out.name + ".log"), on_line, environment)

    found = search(args.data, model, subset, options + ["--cpu"] * args.cpu, note)
    write_text(out, "".join(line + "\n" for line in found))
    seconds = round(time.time() - start, 1)
    write_json(record, {"settings": settings, "command": typed[0], "seconds": seconds})
    say(f"wrote {out}: {len(found):,} sentences in {seconds:,} s")
    return found


def search(data: Path, model: Path, subset: str, options: List[str], runner: Callable) -> List[str]:
    """One detokenised hypothesis for each sentence of a subset, in their order, through fairseq-generate.

    `runner` runs a command and hands on its lines, as `common.run` does.
    """
    recipe = recipes.load(data)
    total = lines(data, subset)
    command = [sys.executable, "-m", "fairseq_cli.generate", str(data / "data-bin"), "--user-dir", str(USER_DIR)]
    command += ["--path", str(model), "--gen-subset", subset, "--task", "translation"]
    command += ["--source-lang", recipe.source, "--target-lang", recipe.target, *NO_LIMITS, *options]
    found: Dict[int, List[str]] = {}
    too_long: List[str] = []
    with bar(total, "sentence") as line:

        def collect(text: str) -> None:
            if text.startswith("H-"):
                number, _, pieces = text[2:].rstrip("\n").split("\t")
                found[int(number)] = pieces.split(" ") if pieces else []
                line.update()
            elif "max_positions=" in text and "invalid" in text:
                too_long.append(text.strip())

        try:
            runner(command, collect)
        except Problem:
            if not too_long:
                raise
    if sorted(found) != list(range(total)):
        advice = "data-bin/ and raw/ are not of the same text: prepare the data again"
        if too_long:
            advice = (
                f"some sentence is longer than the model's positions ({too_long[0]}). With sinusoidal positions the "
                "option `-- --model-overrides \"{'max_source_positions': N, 'max_target_positions': N}\"` makes room "
                "for it"
            )
        raise Problem(f"{len(found):,} hypotheses came for the {total:,} references of {subset}: {advice}")
    return recipe.decode([found[i] for i in range(total)])


def lines(data: Path, subset: str) -> int:
    """How many sentences a subset has, the same on both sides."""
    recipe = recipes.load(data)
    paths = [data / "raw" / f"{subset}.{lang}" for lang in (recipe.source, recipe.target)]
    counts = [sum(1 for _ in read_lines(path)) for path in paths]
    if counts[0] != counts[1]:
        raise Problem(f"{paths[0]} has {counts[0]:,} lines and {paths[1]} has {counts[1]:,}: prepare the data again")
    return counts[0]


def fingerprint(path: Path) -> str:
    """The sha256 of a file, taken once as long as it does not change."""
    facts = path.stat()
    return digest(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=None)
def digest(path: Path, *_) -> str:
    return sha256(path)


if __name__ == "__main__":
    entry("generate", main)
