"""Train a model on the embedded English-German corpus, then translate and score its test set.

It is trained by configs/quickstart.yaml, as train.sh does it; KEY=VALUE overrides any key of that. Interrupted, the
same command goes on where it was."""

import argparse
from pathlib import Path

from luna_tools.console import count, entry, go_on_later
from luna_tools.quickstart.stages import Quickstart
from luna_tools.run_folder import alone

SET_BY = {"model": "--arch", "optimization.max_update": "--updates", "common.seed": "--seed", "common.cpu": "--cpu"}


def main() -> None:
    args = parse_args()
    go_on_later()
    with alone(args.out):
        Quickstart(args).run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quickstart.sh", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model.projection_length=64")
    parser.add_argument(
        "--arch",
        default="luna_transformer_tiny_local",
        help="a file of configs/model/, such as luna_transformer_tiny (the paper's Luna); or transformer (fairseq's, "
        "of the same size) (default %(default)s)",
    )
    parser.add_argument("--updates", type=count, metavar="N", help="length of training (default: that of the YAML)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="time for training: sets the updates, or limits those of --updates"
    )
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    args = parser.parse_intermixed_args()
    for word in args.overrides:
        if "=" not in word:
            parser.error(f"{word} is no KEY=VALUE")
        option = SET_BY.get(word.partition("=")[0])
        if option:
            parser.error(f"{word} is set by {option}: give that")
    if args.minutes is not None and args.minutes <= 0:
        parser.error(f"--minutes must be above 0, but is {args.minutes}")
    return args


if __name__ == "__main__":
    entry("quickstart", main)
