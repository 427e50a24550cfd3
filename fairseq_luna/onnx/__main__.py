"""Translate text with a model that scripts/export.sh wrote.

One line comes out for each line that goes in, on stdout; anything else goes to stderr. Blank lines stay blank. With
--nbest each line of the source gives N lines, and a blank one a single line.
"""

import argparse
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any, Dict

from ..errors import Problem
from ..generation.inputs import lines_of
from ..generation.options import Search

NAME = "onnx"


def main() -> int:
    args = parse_args()
    logging.basicConfig(format=f"{NAME}: %(message)s")
    try:
        translate(args)
        sys.stdout.flush()
    except ImportError as error:
        print(f"{NAME}: {error}: pip install onnxruntime numpy sentencepiece", file=sys.stderr)
        return 1
    except (Problem, OSError) as error:
        if isinstance(error, BrokenPipeError):  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        print(f"{NAME}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{NAME}: interrupted", file=sys.stderr)
        return 130
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fairseq_luna.onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that scripts/export.sh wrote")
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="text to translate (default: standard input)"
    )
    search = parser.add_argument_group("search", "defaults are those of the model, else those that are named")
    search.add_argument("--beam", type=int, metavar="N", help=f"hypotheses at a time ({Search.beam})")
    search.add_argument("--lenpen", type=float, metavar="X", help=f"above 1 for longer translations ({Search.lenpen})")
    search.add_argument(
        "--max-len-a",
        type=float,
        metavar="A",
        help="a translation has at most A n + B tokens, n being those of the longest source in its batch "
        f"({Search.max_len_a})",
    )
    search.add_argument("--max-len-b", type=int, metavar="B", help=f"see --max-len-a ({Search.max_len_b})")
    search.add_argument(
        "--nbest",
        type=int,
        metavar="N",
        help="the N best translations of each line, as NUMBER<tab>SCORE<tab>TEXT, like translate.sh",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="that compute (default: one on each core)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="sentences at once (%(default)s)")
    parser.add_argument(
        "--buffer", type=int, metavar="N", help="lines read before any is translated (256; 1 on a terminal)"
    )
    return parser.parse_intermixed_args()


def translate(args: argparse.Namespace) -> None:
    from .translator import OPTIONS, Translator

    for file in args.files:
        if file != "-" and not Path(file).is_file():
            raise Problem(f"there is no file {file}")
    translator = Translator(args.folder, args.threads, args.batch_size)
    search: Dict[str, Any] = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    buffer = args.buffer
    if buffer is None:
        buffer = 1 if args.files == ["-"] and sys.stdin.isatty() else 256
    found = translator.stream(lines_of(args.files), details=True, buffer=buffer, **search)
    for number, best in enumerate(found, 1):
        several = best if isinstance(best, list) else [best]
        shown = "".join(row(number, each) for each in several) if args.nbest else several[0].text + "\n"
        sys.stdout.buffer.write(shown.encode("utf-8"))
        sys.stdout.buffer.flush()


def row(number: int, found: Any) -> str:
    """A line of --nbest, with fairseq's base 2 logarithms."""
    text = found.text.replace("\t", " ")  # a model that can spell bytes can spell it
    return f"{number}\t{found.score / math.log(2):.4f}\t{text}\n"


if __name__ == "__main__":
    sys.exit(main())
