"""Translate text with a trained model, or with several together.

One line comes out for each line that goes in, on stdout; anything else goes to stderr. Blank lines stay blank. With
--nbest each line of the source gives N lines, and a blank one a single line."""

import argparse
import math
import sys
from pathlib import Path

from fairseq_luna.errors import Problem
from fairseq_luna.generation.inputs import lines_of
from fairseq_luna.generation.options import Search
from fairseq_luna.generation.results import Source
from luna_tools.console import count, entry
from luna_tools.evaluation.decoding import Hypothesis, add_search_options, rows, search_settings
from luna_tools.machine import import_plugin


def main() -> None:
    args = parse_args()
    for file in args.files:
        if file != "-" and not Path(file).is_file():
            raise Problem(f"there is no file {file}")
    import_plugin()
    from fairseq_luna import Translator

    device = "cpu" if args.cpu else None
    translator = Translator(
        args.models,
        device=device,
        precision=args.precision,
        batch_size=args.batch_size,
        tokens_per_slot=args.tokens_per_slot,
    )
    lines = lines_of(args.files)
    if args.constraints:
        lines = map(constrained, lines)
    typing = args.files == ["-"] and sys.stdin.isatty()
    if typing:
        warn("type a sentence and press return; Ctrl-D ends")
    buffer = args.buffer or (1 if typing else 256)
    for number, found in enumerate(translator.stream(lines, details=True, buffer=buffer, **args.search), 1):
        best = found if isinstance(found, list) else [found]
        hypotheses = [Hypothesis(each.score / math.log(2), each.text) for each in best]
        shown = rows(number, hypotheses) if args.nbest else hypotheses[0].text + "\n"
        sys.stdout.buffer.write(shown.encode("utf-8"))
        sys.stdout.buffer.flush()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="translate.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="text to translate (default: standard input)"
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        type=Path,
        dest="models",
        metavar="MODEL",
        help="the folder that quickstart.sh or train.sh wrote, or the file that pack.sh wrote; given several times, "
        "these translate together, an ensemble: their vocabularies must be the same, their architectures need not",
    )
    parser.add_argument("--beam", type=count, default=Search.beam, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--lenpen",
        type=float,
        default=Search.lenpen,
        metavar="X",
        help="above 1 for longer translations (default %(default)s)",
    )
    parser.add_argument("--prefix", metavar="TEXT", help="each translation begins with this text")
    parser.add_argument(
        "--constraints",
        action="store_true",
        help="each line is SOURCE<tab>TEXT<tab>TEXT ..., and its translation holds these texts, in this order",
    )
    parser.add_argument(
        "--batch-size", type=count, default=64, metavar="N", help="sentences at once (default %(default)s)"
    )
    parser.add_argument(
        "--buffer", type=count, metavar="N", help="lines read before any is translated (default 256; 1 on a terminal)"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", "int8"),
        help="lower is faster: bf16 or int8 of the products with a Luna's weights on a CPU, fp16 or bf16 of the whole "
        "model on a GPU (default: the model's own, fp32)",
    )
    parser.add_argument(
        "--tokens-per-slot",
        type=float,
        metavar="R",
        help="pack R tokens of the source into a slot; a source uses --projection-length slots at most. More tokens a "
        "slot translate worse unless the model was trained so (default: the model's own, which is 1 by default)",
    )
    add_search_options(parser)
    args = parser.parse_intermixed_args()
    args.search = {"beam": args.beam, "lenpen": args.lenpen, **search_settings(parser, args)}
    args.search.update(unordered=args.search.pop("constraints", "") == "unordered", prefix=args.prefix or "")
    return args


def warn(message: str) -> None:
    print(f"translate: {message}", file=sys.stderr, flush=True)


def constrained(line: Source) -> Source:
    """A line with what comes after its tabs as constraints."""
    text, *constraints = line.text.split("\t")
    return line._replace(text=text, constraints=constraints)


if __name__ == "__main__":
    entry("translate", main)
