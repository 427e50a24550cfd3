"""Pages of the LibreOffice help, as bytes, with the application that they are of; embedded, nothing is downloaded.

The classes are Writer, Calc, Impress and Draw (which share much), Math, Base, Chart, Basic, and what is common to all.
A text is --length bytes, cut from pages of one application that are joined one after the other: most are shorter. Of
each class, pages of a tenth of the text are held out for testing and others for validation, and no sentence of theirs
is trained on. Pages often name their application: a model must find such words, anywhere in the text."""

import argparse
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Dict, Iterator, List, Set, Tuple

from luna_tools.console import count, entry, teller
from luna_tools.machine import import_plugin

from luna_data.classification.data import Contents, Sample, prepared, source, write
from luna_data.folder import SPLITS, taken
from luna_data.help import pages as help_pages
from luna_data.options import absolute

say = teller("prepare-help-pages")

# the folders of the help
APPLICATIONS = {
    "swriter": "writer",
    "scalc": "calc",
    "simpress": "impress-draw",
    "sdraw": "impress-draw",
    "smath": "math",
    "sdatabase": "base",
    "schart": "chart",
    "sbasic": "basic",
    "shared": "common",
}
CLASSES = list(dict.fromkeys(APPLICATIONS.values()))
HELD_OUT = 10  # a part of so many is tested on, another validated on

Page = Tuple[str, List[int]]  # its name, and the numbers of its sentences


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-help-pages.sh", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", type=absolute)
    parser.add_argument(
        "--length",
        type=count,
        default=1000,
        metavar="N",
        help="bytes of a text; the last of a class has at least half of it (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the choice of pages (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare(args.out, args.length, args.seed)


def prepare(out: Path, length: int, seed: int) -> None:
    """Write the pages in texts of so many bytes."""
    sources = [source(help_pages.CORPUS), source(help_pages.INDEX)]
    settings = {"length": length, "seed": seed, "sha256": [each["sha256"] for each in sources]}
    with taken(out, settings):
        if prepared(out, settings):
            say(f"{out} holds this already")
            return
        import_plugin()
        from fairseq_luna.data.byte_text import byte_dictionary, encode_bytes

        dictionary, sentences = byte_dictionary(), help_pages.sentences()
        texts = {
            split: [(text, name) for name, held in classes.items() for text in cut(joined(held, sentences), length)]
            for split, classes in split_pages(help_pages.pages(), sentences, seed).items()
        }

        def encoded(split: str) -> Iterator[Sample]:
            return ((encode_bytes(text, dictionary), name) for text, name in texts[split])

        facts = {"seed": seed, "sources": sources, "licence": "Mozilla Public License 2.0 (LibreOffice contributors)"}
        splits = {split: encoded(split) for split in texts}
        total = sum(map(len, texts.values()))
        write(out, settings, Contents("LibreOffice help", "byte", dictionary, CLASSES, splits, total, facts), say)


def split_pages(pages: Dict[str, List[int]], sentences: List[str], seed: int) -> Dict[str, Dict[str, List[Page]]]:
    """For each split and class its pages, without sentences that the validation or test set has.

    The validation set has none of the test set's either. Pages are dealt out by their size, for some are fifty times
    as long as others: one that is too long for what is left of a tenth is trained on.
    """
    by_class: Dict[str, List[Page]] = defaultdict(list)
    for page, numbers in sorted(pages.items()):
        by_class[APPLICATIONS[page.split("/")[0]]].append((page, numbers))
    splits: Dict[str, Dict[str, List[Page]]] = {split: {name: [] for name in CLASSES} for split in SPLITS}
    for name in CLASSES:
        size = {page: sum(len(sentences[number]) for number in numbers) for page, numbers in by_class[name]}
        room = dict.fromkeys(("test", "valid"), sum(size.values()) / HELD_OUT)
        Random(f"{seed} {name}").shuffle(by_class[name])
        for page, numbers in by_class[name]:
            split = next((split for split in room if size[page] <= room[split]), "train")
            if split != "train":
                room[split] -= size[page]
            splits[split][name].append((page, numbers))
    known: Set[int] = set()
    for split in "test", "valid", "train":
        for name, held in splits[split].items():
            left = [(page, [number for number in numbers if number not in known]) for page, numbers in held]
            splits[split][name] = [(page, numbers) for page, numbers in left if numbers]
        known.update(number for held in splits[split].values() for _, numbers in held for number in numbers)
    return splits


def joined(pages: List[Page], sentences: List[str]) -> bytes:
    """A sentence a line, and a blank line between pages."""
    return "\n\n".join("\n".join(sentences[number] for number in numbers) for _, numbers in pages).encode()


def cut(text: bytes, length: int) -> Iterator[bytes]:
    """Pieces of this length, wherever that falls, and the rest where that is half as long."""
    for start in range(0, len(text), length):
        piece = text[start : start + length]
        if 2 * len(piece) >= length:
            yield piece


if __name__ == "__main__":
    entry("prepare-help-pages", main)
