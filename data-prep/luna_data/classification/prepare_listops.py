"""ListOps of the long-range arena to fairseq data, made anew by its published specification.

A text is a nested operation on lists of digits, such as [MAX 4 3 [MIN 2 3 ] 1 0 ], of 501 to 1,999 words, and its class
the result, a digit: 96,000 texts to train on, 2,000 to validate and 2,000 to test, none twice. Each result is found in
two ways, which must agree. Killed, it begins again; data that are whole stay as they are."""

import argparse
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Dict, Iterator

from luna_tools.console import entry, teller

from luna_data.classification.data import Contents, Sample, prepared, write
from luna_data.classification.listops import FULL, SHORT, WORDS, Shape, samples
from luna_data.folder import taken
from luna_data.options import absolute, add_workers

say = teller("prepare-listops")

SIZES = {
    False: {"train": 96_000, "valid": 2_000, "test": 2_000},
    True: {"train": 20_000, "valid": 1_000, "test": 1_000},
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-listops.sh", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", type=absolute)
    parser.add_argument(
        "--short",
        action="store_true",
        help=f"texts of {SHORT.shortest} to {SHORT.longest} words and {SHORT.levels} levels instead of {FULL.levels}: "
        "20,000, 1,000 and 1,000 of them, for a CPU",
    )
    parser.add_argument("--seed", type=int, default=1, help="default %(default)s")
    add_workers(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare(args.out, SHORT if args.short else FULL, SIZES[args.short], args.seed, args.workers)


def prepare(out: Path, shape: Shape, sizes: Dict[str, int], seed: int, workers: int) -> None:
    """Write so many texts of a shape for each split."""
    settings = {"shape": shape._asdict(), "sizes": sizes, "seed": seed}
    with taken(out, settings):
        if prepared(out, settings):
            say(f"{out} holds this already")
            return
        import torch
        from fairseq.data import Dictionary

        dictionary = Dictionary()
        for word in WORDS:
            dictionary.add_symbol(word)
        with closing(samples(shape, seed, workers)) as stream:

            def split(size: int) -> Iterator[Sample]:
                for text, value in islice(stream, size):
                    numbers = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
                    yield numbers + dictionary.nspecial, str(value)

            facts = {
                "seed": seed,
                "sources": [],
                "licence": "that of the program, which makes the texts from random numbers",
            }
            splits = {name: split(size) for name, size in sizes.items()}
            classes = [str(digit) for digit in range(10)]
            contents = Contents("ListOps", "word", dictionary, classes, splits, sum(sizes.values()), facts)
            write(out, settings, contents, say)


if __name__ == "__main__":
    entry("prepare-listops", main)
