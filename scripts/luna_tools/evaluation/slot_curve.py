"""Translate with one model at several numbers of tokens per slot: quality and speed of each, in a table and a picture.

Fewer slots make a Luna faster on long sources, and lose quality. Where that begins depends on what the model has met in
training: see --tokens-per-slot and --most-tokens-per-slot in docs/settings.md. RUN_DIR/slots/ holds report.md,
report.json and slots.png. What is there already is not translated again."""

import argparse
import re
from pathlib import Path
from typing import Any, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, write_json, write_text
from fairseq_luna.text import recipes
from fairseq_luna.versions import versions
from luna_tools.console import entry, go_on_later, teller
from luna_tools.data.testsets import split_of
from luna_tools.evaluation.options import add_options, parse
from luna_tools.evaluation.records import file_name, record_of
from luna_tools.evaluation.scores import score
from luna_tools.evaluation.translation import generate
from luna_tools.machine import import_plugin, machine
from luna_tools.plots import figure_for, save
from luna_tools.run_folder import alone, fingerprint
from luna_tools.tables import table_of

say = teller("slot-curve")

RATIOS = [1.0, 1.5, 2.0, 3.0, 4.0]
SCORES = "BLEU", "chrF"


def main() -> None:
    args = parse_args()
    if not (args.run / "model.pt").exists():
        raise Problem(f"{args.run} holds no model.pt: make it by `bash scripts/average.sh {args.run}`")
    import_plugin()
    check_packs(args.run / "model.pt")
    go_on_later()
    out = args.run / "slots"
    with alone(out):
        curve(args, out)
    print("\n" + (out / "report.md").read_text(encoding="utf-8"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="slot-curve.sh",
        usage="%(prog)s [options] RUN_DIR [-- fairseq-generate options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--tokens-per-slot",
        nargs="+",
        type=ratio,
        default=RATIOS,
        metavar="R",
        help=f"default {' '.join(f'{r:g}' for r in RATIOS)}",
    )
    parser.add_argument("--subset", default="test", metavar="NAME", help="test, valid, or a test set by its name")
    parser.add_argument("--lenpen", type=float, default=1.0, metavar="X", help="length penalty (default %(default)s)")
    args = parse(parser)
    args.tokens_per_slot = sorted(set(args.tokens_per_slot))
    if any(word.partition("=")[0] == "--model-overrides" for word in args.extra):
        parser.error("--model-overrides cannot be given after --: it is set here, for each number of tokens per slot")
    return args


def ratio(word: str) -> float:
    number = float(word)
    if not number >= 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {word}")
    return number


def check_packs(model: Path) -> None:
    """Refuse a model without slots."""
    from fairseq.checkpoint_utils import load_checkpoint_to_cpu

    cfg = load_checkpoint_to_cpu(str(model))["cfg"]["model"]
    name = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
    if not hasattr(cfg, "projection_length"):
        raise Problem(f"{model} is of {name}, which has no slots: give the run of a Luna")
    if getattr(cfg, "fix_projection_length", False):
        raise Problem(f"{model} was trained with --fix-projection-length: its slots do not follow the source")


def curve(args: argparse.Namespace, out: Path) -> None:
    """Translate and score at each ratio; the report is written anew after each."""
    recipe, extra, split = recipes.load(args.data), args.extra, split_of(args.data, args.subset)
    references = list(read_lines(args.data / "raw" / f"{split}.{recipe.target}"))
    known = {point["sha256"]: point for point in read_json(out / "report.json", {}).get("points", [])}
    points: List[Dict[str, Any]] = []
    for r in args.tokens_per_slot:
        args.extra = [*extra, "--model-overrides", f"{{'tokens_per_slot': {r:g}}}"]
        file = out / file_name(args, args.subset, args.lenpen, f"tokens-per-slot{r:g}")
        there = fingerprint(file) if file.exists() else None
        generate(args, split, args.lenpen, file)
        made = fingerprint(file)
        speed = known[made]["speed"] if made == there and made in known else measured(args, file)
        points.append({"tokens per slot": r, "file": file.name, "sha256": made, "speed": speed})
        points[-1].update(score(list(read_lines(file)), references, recipe.target, SCORES))
        say(f"{r:g} tokens per slot: BLEU {points[-1]['BLEU']['score']:.2f}")
        report(args, out, points)


def measured(args: argparse.Namespace, file: Path) -> Dict[str, Any]:
    """The speed of the search that was just made, and where; None for one in several parts, which leaves no log."""
    log = file.with_name(file.name + ".log")
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    found = re.findall(r"Translated [\d,]+ sentences .* \(([\d.]+) sentences/s", text)
    here, half = machine(args.cpu), [name for name in ("fp16", "bf16") if getattr(args, name, False)]
    where = f"{here['gpu'] or here['cpu']}, {half[0] if half else 'fp32'}"
    return {"sentences a second": float(found[-1]) if found else None, "where": where}


def report(args: argparse.Namespace, out: Path, points: List[Dict[str, Any]]) -> None:
    rows = [["tokens per slot", *SCORES, "sentences a second"]]
    for point in points:
        figures = [f"{point[name]['score']:.2f}" for name in SCORES]
        speed = point["speed"]["sentences a second"]
        rows.append([f"{point['tokens per slot']:g}", *figures, "" if speed is None else f"{speed:.1f}"])
    places = " or ".join(sorted({point["speed"]["where"] for point in points}))
    notes = [
        f"The {args.subset} set, beam {args.beam}, length penalty {args.lenpen:g}, one model. A sentence of n tokens "
        "has n slots over the tokens per slot, rounded up, and at most the model's projection length. Speed is that of "
        f"fairseq-generate's search, one after the other, on {places}.",
        *(f"{name}: `{points[0][name]['signature']}`" for name in SCORES),
        "![BLEU and speed by tokens per slot](slots.png)",
    ]
    draw(points, out / "slots.png")
    write_text(out / "report.md", "\n\n".join([table_of(rows), *notes]) + "\n")
    commands = [read_json(record_of(out / point["file"]), {}).get("command") for point in points]
    facts = {"run": str(args.run), "subset": args.subset, "versions": versions()}
    write_json(out / "report.json", {**facts, "points": points, "commands": commands})


def draw(points: List[Dict[str, Any]], path: Path) -> None:
    """BLEU over the tokens per slot, and the speed on an axis of its own."""
    figure, axes = figure_for(path, 7)
    if not figure:
        return
    ratios = [point["tokens per slot"] for point in points]
    axes.plot(ratios, [point["BLEU"]["score"] for point in points], marker="o", label="BLEU")
    axes.set(xlabel="tokens per slot", ylabel="BLEU (sacreBLEU)")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, [f"{r:g}" for r in ratios])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    speeds = [point["speed"]["sentences a second"] for point in points]
    if None not in speeds and len({point["speed"]["where"] for point in points}) == 1:
        other = axes.twinx()
        other.plot(ratios, speeds, "s--", color="tab:gray", label="speed")
        other.set(ylabel="sentences a second")
        other.set_ylim(bottom=0)
        figure.legend(loc="outside lower center", ncols=2)
    save(figure, path)


if __name__ == "__main__":
    entry("slot-curve", main)
