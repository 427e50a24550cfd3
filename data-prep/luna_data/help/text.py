"""Write the embedded LibreOffice help as running text: its pages in the order of their names, a blank line after each.

Neighbouring pages are about one subject. So the validation and the test set are whole runs of pages, where what comes
before helps. A sentence that one of them has is not trained on."""

import argparse
from pathlib import Path
from typing import Dict, List

from luna_tools.console import entry

from fairseq_luna.errors import Problem
from fairseq_luna.files import whole, write_text
from luna_data.folder import SPLITS
from luna_data.help import pages
from luna_data.options import absolute

RUN = 20  # pages that stay together
EVERY = 12  # of so many runs, one is validated on and one tested on
HELD_OUT = {EVERY // 2: "valid", EVERY - 1: "test"}  # by the place of the run among these


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m luna_data.help.text", description=__doc__)
    parser.add_argument("--lang", choices=("en", "de"), default="en", help="language (default %(default)s)")
    parser.add_argument("--out", required=True, metavar="DIR", type=absolute)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    write(args.out, args.lang)


def write(out: Path, lang: str) -> None:
    """Write {train,valid,test}.LANG into `out`, which is there whole or not at all."""
    names = {f"{split}.{lang}" for split in SPLITS}
    if out.exists() and not (out.is_dir() and names.issuperset(path.name for path in out.iterdir())):
        raise Problem(f"{out} holds other files: choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as beside:
        beside.mkdir()
        for split, held in split_pages(pages.sentences(lang)).items():
            text = "".join("".join(f"{sentence}\n" for sentence in page) + "\n" for page in held)
            write_text(beside / f"{split}.{lang}", text)


def split_pages(sentences: List[str]) -> Dict[str, List[List[str]]]:
    """The pages of each split, as sentences. sentences: all of the corpus, in the order of its files."""
    splits: Dict[str, List[List[str]]] = {split: [] for split in SPLITS}
    for place, (_, page) in enumerate(sorted(pages.pages().items())):
        splits[HELD_OUT.get(place // RUN % EVERY, "train")].append([sentences[number] for number in page])
    held_out = {sentence for split in HELD_OUT.values() for page in splits[split] for sentence in page}
    left = ([sentence for sentence in page if sentence not in held_out] for page in splits["train"])
    return {**splits, "train": [page for page in left if page]}


if __name__ == "__main__":
    entry("help-text", main)
