"""WMT14 English-German from the archives to the table: data, training, averaging, beam search, scores.

Interrupted, the same command goes on where it was. Several trainings may share one DIR, and its data: each is
in DIR/NAME."""

import argparse
import subprocess
from pathlib import Path
from typing import List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json
from luna_tools.console import entry, go_on_later, quote
from luna_tools.processes import python, start
from luna_tools.run_folder import claim, differences

# What --smoke makes of it: all steps at a size for a CPU, with figures that mean nothing.
SMOKE = {
    "data": ["--vocab-size", "1000", "--limit", "2000", "--max-ratio", "3"],
    "training": ["layout=smoke"],
    "evaluation": ["--last", "3", "--beam", "2", "--lenpens", "0.6", "1.0", "--cpu"],
}


def main() -> None:
    args = parse_args()
    go_on_later()
    run = args.out / (args.name or Path(args.config).stem)
    if run.name == "data":
        raise Problem("--name data is the name of the folder of the data: choose another")

    given = {name: getattr(args, name) for name in ("recipe", "vocab_size", "limit")}
    keep_data_settings(args.out, {"smoke": args.smoke, **given})
    data = ["--out", args.out / "data", *(SMOKE["data"] if args.smoke else [])]
    for name, value in {**given, "mirror": args.mirror, "workers": args.workers}.items():
        if value is not None:
            data += [f"--{name.replace('_', '-')}", value]
    step("[1/3] data", "data-prep/prepare-wmt14-en-de.sh", python("luna_data.parallel.prepare_wmt14"), data)

    training = [args.config, "--data", args.out / "data", "--out", run, *(SMOKE["training"] if args.smoke else [])]
    training += args.overrides
    step("[2/3] training", "scripts/train.sh", python("luna_tools.training.command"), training)

    evaluation = [run, "--sweep", *(SMOKE["evaluation"] if args.smoke else [])]
    if args.against:
        evaluation += ["--against", args.against]
    step("[3/3] evaluation", "scripts/evaluate.sh", python("luna_tools.evaluation.evaluate"), evaluation)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="replicate-wmt14.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for train.sh: model.projection_length=16")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--name", help="of the training, a folder in DIR (default: that of --config)")
    parser.add_argument("--config", default="wmt14_paper", help="or wmt14_adam (default %(default)s)")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a training to test the difference to")
    parser.add_argument("--smoke", action="store_true", help="try all of it on a CPU: tiny model, little data")
    data = parser.add_argument_group("data, as in prepare-wmt14-en-de.sh")
    data.add_argument("--recipe", choices=("sentencepiece", "moses-bpe"))
    data.add_argument("--vocab-size", metavar="N")
    data.add_argument("--limit", metavar="N", help="take the first N pairs of each archive alone")
    data.add_argument("--mirror", metavar="URL", help="download from URL/NAME, with the sums in URL/SHA256SUMS")
    data.add_argument("--workers", metavar="N")
    args = parser.parse_intermixed_args()
    for word in args.overrides:
        if "=" not in word:
            parser.error(f"{word} is no KEY=VALUE")
    return args


def keep_data_settings(folder: Path, settings: dict) -> None:
    """Trainings that share a folder share its data: others would take the place of what the first was trained on."""
    begun = read_json(folder / "settings.json")
    if begun is None:
        claim(folder, settings)
    elif begun != settings:
        raise Problem(
            f"{folder} was begun with other data: {'; '.join(differences(begun, settings))}. "
            "Say the same again, or choose another --out"
        )


def step(name: str, script: str, command: List[str], options: List) -> None:
    """Run one of our scripts by the command that it stands for, its output ours."""
    words = list(map(str, options))
    print(f"replicate-wmt14: {name}", flush=True)
    process = start([*command, *words], stdin=subprocess.DEVNULL)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise Problem(f"{name} failed, for the reason above. The command was:\n\n  {quote(['bash', script, *words])}")


if __name__ == "__main__":
    entry("replicate-wmt14", main)
