"""The options that generate.sh, evaluate.sh and slot-curve.sh share."""

import argparse
import sys
from pathlib import Path

from fairseq_luna.errors import Problem
from luna_tools.console import count

# of fairseq-generate's options, what generate.sh sets itself or has no use for
SET_HERE = {
    *("--beam", "--lenpen", "--length-penalty", "--path", "--gen-subset", "--task", "--results-path", "--post-process"),
    *("--remove-bpe", "--user-dir", "--source-lang", "--target-lang", "-s", "-t", "--fp16", "--bf16", "--cpu"),
    *("--quiet", "--nbest", "--num-shards", "--shard-id", "--distributed-world-size", "--distributed-rank"),
    *("--constraints", "--prefix-size", "--max-tokens"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What generate.sh and evaluate.sh share."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="what train.sh or quickstart.sh wrote")
    parser.add_argument("--data", type=Path, metavar="DIR", help="what data-prep/ made (default RUN_DIR/data)")
    parser.add_argument("--beam", type=count, default=5, metavar="B", help="default %(default)s")
    parser.add_argument(
        "--max-tokens", type=count, default=4096, metavar="N", help="tokens of source in a batch (default %(default)s)"
    )
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--fp16", action="store_true", help="in half precision, on a GPU")
    half.add_argument("--bf16", action="store_true", help="in bfloat16, on a GPU, as a model trained in it")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with what follows `--` as `extra`."""
    words = [*sys.argv[1:], "--"]
    cut = words.index("--")
    args = parser.parse_intermixed_args(words[:cut])
    args.extra, args.data = words[cut + 1 : -1], args.data or args.run / "data"
    for word in args.extra:
        if word.partition("=")[0] in SET_HERE:
            raise Problem(f"{word} cannot be given after --: it is set here, or of no use here; see --help")
    if not args.run.is_dir():
        raise Problem(f"there is no folder {args.run}: give that of a run of train.sh or quickstart.sh")
    if args.fp16 or args.bf16:
        import torch

        if args.cpu or not torch.cuda.is_available():
            raise Problem(f"--{'fp16' if args.fp16 else 'bf16'} needs a GPU: leave it out")
    return args
