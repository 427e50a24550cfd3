"""Train by a YAML of configs/, with one process per GPU.

It shows progress, writes tensorboard's files, and continues from the last checkpoint.

CONFIG is the name of a file in configs/, or the path of one of your own, with the folders that it uses (model/, layout/
and so on) beside it. KEY=VALUE overrides any key of it. It can also set any other that fairseq has for the task, the
model, the criterion and so on, such as task.eval_bleu=true.

On several machines give the same command on each, with torchrun's options for meeting (--nnodes and either --node-rank,
--master-addr, --master-port or --rdzv-backend, --rdzv-endpoint, --rdzv-id), and a folder --out that all of them see."""

import argparse
from pathlib import Path

from luna_tools.console import entry, go_on_later
from luna_tools.training.run import MEETING, Training


def main() -> None:
    args = parse_args()
    go_on_later()
    Training(args).run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG", help="such as wmt14_paper, wmt14_adam")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model.projection_length=16")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="what data-prep/ made")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/CONFIG")
    parser.add_argument("--processes", type=int, metavar="N", help="on this machine (default: one per GPU, else 1)")
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    several = parser.add_argument_group("several machines, as torchrun has them")
    for name in MEETING:
        several.add_argument(f"--{name}", metavar=name.rpartition("-")[2].upper())
    args = parser.parse_intermixed_args()
    for word in args.overrides:
        if "=" not in word:
            parser.error(f"{word} is no KEY=VALUE")
    if args.processes is not None and args.processes < 1:
        parser.error(f"--processes must be at least 1, but is {args.processes}")
    return args


if __name__ == "__main__":
    entry("train", main)
