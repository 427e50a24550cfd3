"""Train several models on the same data with the same updates, batches and seeds, translate, score, and report.

STUDY is a YAML of configs/compare/, or the path of one of your own: the models by name, what they share and the seeds.
OUT/report.md holds the table (parameters, speed, memory, loss, scores with their signatures, paired test against the
baseline), learning-curves.png and bleu-by-length.png the pictures, report.json every figure. It is written anew after
each validation and each translation. The same command continues where it was.

With --minutes all of it takes about so long: the models are tried first, and all make as many updates as fit."""

import argparse
import time
from pathlib import Path

from fairseq_luna.errors import Problem
from luna_tools.console import Former, count, entry, go_on_later
from luna_tools.data.packed import pack, unpacked
from luna_tools.run_folder import alone
from luna_tools.study.definition import read_study
from luna_tools.study.pace import SET_BY_MINUTES
from luna_tools.study.run import Study, say


def main() -> None:
    begun = time.time()
    args = parse_args()
    go_on_later()
    if args.pack_data:
        return pack_data(args.data, args.pack_data)
    study = read_study(args.study)
    if args.data.is_file():
        with alone(args.out):
            args.data = unpacked(args.data, args.out)
    runs = Study(study, args, begun)
    with alone(args.out):
        runs.run()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help="such as quickstart")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="for all models, right after STUDY: optimization.max_update=1000",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("runs/quickstart/data"),
        metavar="DIR",
        help="what data-prep/ or quickstart.sh made, or a file of --pack-data, which is unpacked into OUT/data "
        "(default %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/compare-STUDY")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="DIR",
        help="the --out of another study: each training begins with the trained model of the same name and seed",
    )
    models = parser.add_argument("--models", nargs="+", metavar="NAME", help="only these, and the baseline")
    parser.add_argument("--arms", action=Former, now=models)
    parser.add_argument("--seeds", nargs="+", type=seed, metavar="N", help="default: those of the study")
    parser.add_argument(
        "--at-once",
        type=count,
        default=1,
        metavar="N",
        help="trainings side by side on each GPU, or on the CPU (default %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="time for everything, trials and translations too. It sets one number of updates for all trainings. Each "
        "validates and saves ten times. A warm-up takes at most a quarter of the updates. At most three checkpoints "
        "are averaged",
    )
    parser.add_argument("--cpu", action="store_true", help="leave GPUs alone")
    parser.add_argument(
        "--pack-data",
        type=Path,
        metavar="FILE",
        help="write the folder --data as one file, such as data.tar.xz, and do nothing else",
    )
    args = parser.parse_intermixed_args()
    if not args.study and not args.pack_data:
        parser.error("the following arguments are required: STUDY")
    for word in args.overrides:
        if "=" not in word:
            parser.error(f"{word} is no KEY=VALUE")
    if args.minutes is not None and args.minutes <= 0:
        parser.error(f"--minutes must be above 0, but is {args.minutes:g}")
    for key in SET_BY_MINUTES:
        if args.minutes and any(word.startswith(f"{key}=") for word in args.overrides):
            parser.error(f"--minutes sets {key}: give one of them")
    args.out = args.out or Path("runs") / f"compare-{Path(args.study or '').stem}"
    return args


def seed(word: str) -> int:
    if "=" in word:
        raise argparse.ArgumentTypeError(f"{word} is no seed: each KEY=VALUE stands right after STUDY")
    return int(word)


def pack_data(data: Path, file: Path) -> None:
    if file.is_dir():
        raise Problem(f"{file} is a folder: give --pack-data the name of a file, such as {file / 'data.tar.xz'}")
    pack(data, file)
    say(f"wrote {file}, {file.stat().st_size / 1e6:,.2f} MB: give it by --data where the study runs")


if __name__ == "__main__":
    entry("compare", main)
