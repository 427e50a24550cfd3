"""The options of a preparation of parallel text, and what of them decides the result."""

import argparse
import math
from pathlib import Path
from typing import Any, Dict, Optional

from luna_tools.console import count

from fairseq_luna.files import read_json, sha256
from fairseq_luna.text.recipes import RECIPES
from luna_data.options import absolute, add_workers


def ratio(text: str) -> float:
    value = float(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {text}")
    return value


def add_options(parser: argparse.ArgumentParser, max_length: int, max_ratio: float) -> None:
    """The options that all kinds of text have in common, with these defaults for the lengths."""
    parser.add_argument("--out", required=True, metavar="DIR", type=absolute)
    parser.add_argument("--recipe", choices=RECIPES, default="sentencepiece", help="default %(default)s")
    parser.add_argument(
        "--max-characters",
        type=count,
        default=5000,
        metavar="N",
        help="drop training pairs with a longer side, before they are cut into tokens (default %(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=count,
        default=max_length,
        metavar="N",
        help="drop training pairs with more tokens on a side (default %(default)s)",
    )
    parser.add_argument(
        "--max-ratio",
        type=ratio,
        default=max_ratio,
        metavar="X",
        help="drop training pairs with over X times as many tokens on one side (default %(default)s)",
    )
    add_workers(parser)


def settings_of(args: argparse.Namespace) -> Dict[str, Any]:
    names = "source", "target", "recipe", "vocab_size", "max_characters", "max_length", "max_ratio"
    settings: Dict[str, Any] = {name: getattr(args, name) for name in names}
    if getattr(args, "test_sets", None):
        settings["test sets"] = args.test_sets
    vocabulary, dictionary = vocabulary_of(args), dictionary_of(args)
    if vocabulary:
        del settings["vocab_size"]  # the other data's
        settings["vocabulary"] = sha256(vocabulary)
    if dictionary:
        settings["dictionary"] = sha256(dictionary)
    return settings


def vocabulary_of(args: argparse.Namespace) -> Optional[Path]:
    """The model of data prepared before, where its pieces are to be those of this text."""
    folder = getattr(args, "vocabulary_of", None)
    return folder / RECIPES[args.recipe].model if folder else None


def dictionary_of(args: argparse.Namespace) -> Optional[Path]:
    """The dictionary of those data, where their model does not tell it."""
    folder = getattr(args, "vocabulary_of", None)
    if not folder or args.recipe == "sentencepiece":
        return None
    source = read_json(folder / "manifest.json")["settings"]["source"]
    return folder / "data-bin" / f"dict.{source}.txt"
