"""Train a model on the embedded English-German corpus, then translate and score its test set.

Interrupted, the same command goes on where it was. Options after `--` are handed to fairseq-train."""

import argparse
from pathlib import Path

from luna_tools.console import entry, go_on_later, split_words
from luna_tools.quickstart.settings import RUN
from luna_tools.quickstart.stages import Quickstart
from luna_tools.run_folder import alone


def main() -> None:
    args = parse_args()
    go_on_later()
    with alone(args.out):
        Quickstart(args).run()


def parse_args() -> argparse.Namespace:
    own, extra = split_words()
    parser = argparse.ArgumentParser(
        prog="quickstart.sh", usage="%(prog)s [options] [-- fairseq-train options]", description=__doc__
    )
    parser.add_argument(
        "--arch",
        default="luna_transformer_tiny_plain_packs",
        help="any fairseq architecture, at the dimensions of the quick start: luna_transformer_tiny is the paper's, "
        "transformer fairseq's Transformer (default %(default)s)",
    )
    parser.add_argument("--updates", type=int, metavar="N", help=f"length of training (default {RUN['updates']})")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="time for training: sets the updates, or limits those of --updates"
    )
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_args(own)
    for flag in "updates", "minutes":
        value = getattr(args, flag)
        if value is not None and value <= 0:
            parser.error(f"--{flag} must be above 0, but is {value}")
    args.extra = extra
    return args


if __name__ == "__main__":
    entry("quickstart", main)
