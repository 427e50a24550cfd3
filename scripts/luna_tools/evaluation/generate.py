"""Translate a subset of a run's data with its averaged model, or with those of several runs together.

By beam search, or by sampling. The translations come detokenised and in the order of the source, as many as there are
references; of the training set, as many as the pairs in data-bin/. For the training set the sources are written too:
FILE.en beside FILE.de. Does nothing where all is there and was made in the same way. A large subset is translated in
parts: interrupted, the same command goes on after the last whole one. Options after `--` are handed to
fairseq-generate."""

import argparse
import hashlib
import os
from pathlib import Path
from typing import List, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.generation.places import agree
from fairseq_luna.text import recipes
from luna_tools.console import count, entry, go_on_later, quote
from luna_tools.data.testsets import split_of
from luna_tools.evaluation.decoding import add_search_options, search_settings
from luna_tools.evaluation.options import add_options, parse
from luna_tools.evaluation.records import file_name, parts_of, record_of
from luna_tools.evaluation.texts import leave_alone, write_sources
from luna_tools.evaluation.translation import PART, Extras, generate
from luna_tools.run_folder import alone, read_record


def main() -> None:
    args, more = parse_args()
    for folder in (args.run, *more.others):
        if not (folder / "model.pt").exists():
            raise Problem(f"{folder} holds no model.pt: make it by `bash scripts/average.sh {quote([str(folder)])}`")
    agree([recipes.load(data) for data in (args.data, *(folder / "data" for folder in more.others))])
    ours = args.run / "generated"
    out = args.out or ours / file_name(args, args.subset, args.lenpen, *asked_for(args.run, more))
    recipe, split = recipes.load(args.data), split_of(args.data, args.subset)
    if args.subset == "train" and out.suffix != f".{recipe.target}":
        raise Problem(f"--out {out} must end in .{recipe.target}: the sources of the training set go beside it")
    if args.out and not parts_of(out).exists() and "settings" not in read_record(record_of(out)):
        leave_alone(out, record_of(out))
    go_on_later()
    with alone(ours):
        out.parent.mkdir(parents=True, exist_ok=True)
        if args.subset == "train":  # first, as this is quick, and may be refused
            write_sources(args.data, recipe, out.with_suffix(f".{recipe.source}"), ours)
        try:
            generate(args, split, args.lenpen, out, more=more)
        except KeyboardInterrupt as interrupt:
            if any(path.name.isdigit() for path in parts_of(out).glob("*")):
                raise
            word = "stopped before a part was whole; the same command begins anew, and --part N makes smaller parts"
            raise KeyboardInterrupt(word) from interrupt


def parse_args() -> Tuple[argparse.Namespace, Extras]:
    parser = argparse.ArgumentParser(
        prog="generate.sh",
        usage="%(prog)s [options] RUN_DIR [RUN_DIR ...] [-- fairseq-generate options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "others",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="more runs, whose models translate together with the first, an ensemble: their vocabularies must be the "
        "same, their architectures need not",
    )
    parser.add_argument(
        "--subset",
        default="test",
        metavar="NAME",
        help="train, valid, or a test set by its name in the data (default %(default)s, the first test set)",
    )
    parser.add_argument("--lenpen", type=float, default=0.6, metavar="X", help="length penalty (default %(default)s)")
    parser.add_argument(
        "--prefix-size", type=count, metavar="N", help="each hypothesis begins with the first N tokens of its reference"
    )
    parser.add_argument(
        "--constraints",
        type=Path,
        metavar="FILE",
        help="a line for each sentence, empty or with texts that its hypothesis holds, in this order, between tabs",
    )
    parser.add_argument(
        "--part",
        type=count,
        default=PART,
        metavar="N",
        help="sentences after which an interrupted translation can go on (default %(default)s); fewer are one "
        "part, which begins anew",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default RUN_DIR/generated/SUBSET.beamB.lenpenX.LANG, its name longer where more is asked for; with a "
        ".json beside and, where there is one part, a .log. Files of others are not written over",
    )
    add_search_options(parser)
    args = parse(parser)
    search = search_settings(parser, args)
    args.beam = search.pop("beam", args.beam)
    if args.prefix_size:
        search["prefix_size"] = args.prefix_size
    if args.constraints and not args.constraints.is_file():
        raise Problem(f"there is no file {args.constraints}")
    for name in "nbest", "constraints":
        if args.subset == "train" and getattr(args, name):
            parser.error(f"--{name} is for test and valid: the training set gets one translation for each source")
    return args, Extras(args.others, search, bool(args.nbest), args.constraints, args.part)


def asked_for(run: Path, more: Extras) -> List[str]:
    """What is asked for beside the beam and the length penalty, as parts of a file's name."""
    short = {"sampling_topk": "topk", "sampling_topp": "topp", "prefix_size": "prefix"}
    found = {short.get(name, name): value for name, value in more.search.items()}
    if more.constraints:
        found["constraints"] = f"-{found['constraints']}-{more.constraints.stem}-{place(more.constraints, run)}"
    words = [name if value is True else f"{name}{value}" for name, value in found.items()]
    return words + [f"with-{folder.resolve().name}-{place(folder, run)}" for folder in more.others]


def place(path: Path, run: Path) -> str:
    """A few signs for where a file or folder lies, seen from the run: others of the same name have others."""
    return hashlib.sha256(os.path.relpath(str(path.resolve()), str(run.resolve())).encode()).hexdigest()[:6]


if __name__ == "__main__":
    entry("generate", main)
