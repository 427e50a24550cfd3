"""What translate.sh and generate.sh share: the options of the search, and what it prints."""

import argparse
import math
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

from fairseq_luna.files import read_lines
from luna_tools.console import count

SCORE = (
    "SCORE is fairseq's, as its H- lines have it: the sum of the base 2 logarithms of the probabilities of all tokens "
    "and the end of the sentence, over their number to the power of --lenpen"
)


class Hypothesis(NamedTuple):
    """A translation and its score; see SCORE."""

    score: float
    text: str


def rows(number: int, hypotheses: Sequence[Hypothesis], tab: str = " ") -> str:
    """The lines that --nbest gives for line `number` of the source, the best first; `tab` for tabs in the text."""
    texts = [
        (score, text.replace("\t", tab)) for score, text in hypotheses
    ]  # a model that can spell bytes can spell it
    return "".join(f"{number}\t{score:.4f}\t{text}\n" for score, text in texts)


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Those that both have; what --constraints and a prefix are given as differs."""
    parser.add_argument("--unordered", action="store_true", help="with --constraints, in any order")
    parser.add_argument(
        "--nbest",
        type=count,
        metavar="N",
        help="the N best translations of each line, one a line as NUMBER<tab>SCORE<tab>TEXT, NUMBER that of the line "
        f"of the source, from 1. {SCORE}",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--sampling",
        action="store_true",
        help="draw each token by its probability in place of the beam search: one translation, or the N of --nbest",
    )
    few = sampling.add_mutually_exclusive_group()
    few.add_argument("--sampling-topk", type=count, metavar="K", help="only from the K likeliest tokens")
    few.add_argument(
        "--sampling-topp", type=share, metavar="P", help="only from the likeliest tokens that have P of the probability"
    )
    sampling.add_argument(
        "--temperature", type=temperature, metavar="T", help="below 1 likely tokens are drawn more often (default 1)"
    )
    sampling.add_argument("--seed", type=int, metavar="N", help="another seed draws others (default 1)")


def share(text: str) -> float:
    """A number above 0 and at most 1, for argparse."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, but is {text}")
    return number


def temperature(text: str) -> float:
    """A number above 0, for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, but is {text}")
    return number


def search_settings(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Dict[str, Any]:
    """What the options ask of the search, by the names that fairseq's flags have; nothing where they ask nothing."""
    found: Dict[str, Any] = {}
    if args.unordered and not args.constraints:
        parser.error("--unordered is for --constraints: give that too")
    if args.constraints:
        for name in "sampling", "prefix", "prefix_size":
            if getattr(args, name, None):
                parser.error(f"--constraints and --{name.replace('_', '-')} do not go together: give one of them")
        found["constraints"] = "unordered" if args.unordered else "ordered"
    if args.sampling:
        drawn = args.nbest or 1
        chosen = {"sampling_topk": args.sampling_topk, "sampling_topp": args.sampling_topp}
        chosen.update(temperature=args.temperature, seed=1 if args.seed is None else args.seed)
        found.update(beam=drawn, nbest=drawn, sampling=True)
        found.update((name, value) for name, value in chosen.items() if value is not None)
        return found
    for name in "sampling_topk", "sampling_topp", "temperature", "seed":
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for --sampling: give that too")
    if args.nbest and args.nbest > args.beam:
        parser.error(
            f"--nbest {args.nbest} is more than --beam {args.beam}, the most that a search finds: raise --beam"
        )
    if args.nbest:
        found["nbest"] = args.nbest
    return found


def possible(settings: Dict[str, Any], dictionary: Path) -> Dict[str, Any]:
    """Settings of the search that draw from no more tokens than the dictionary of the target has."""
    few = settings.get("sampling_topk")
    if few is None:
        return settings
    special = 4  # that fairseq adds: for beginning, padding, end and unknown
    return {**settings, "sampling_topk": min(few, special + sum(1 for _ in read_lines(dictionary)))}


def flags(settings: Dict[str, Any]) -> List[str]:
    """Settings of the search as flags of fairseq."""
    found: List[str] = []
    for name, value in settings.items():
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found
