"""Which sentences of the embedded corpus make up which page of the English help: libreoffice-help/pages.txt.xz.

The corpus is shuffled; its sentences are found again in the pages of the package that it was made of, which apt-get
downloads where it is not given. prepare-help-pages.sh reads the result, which is here already."""

import argparse
import lzma
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterator, List, Set

from luna_tools.console import entry

from fairseq_luna.files import whole
from luna_data.debian.documents import paragraphs
from luna_data.debian.packages import download, find, unpacked
from luna_data.help.pages import INDEX, sentences

# as the corpus has them
PLAIN = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "−": "-"})
END = re.compile(r'[.!?:;)"]$')


def main() -> None:
    parser = argparse.ArgumentParser(prog="help-page-index.sh", description=__doc__)
    parser.add_argument("--deb", type=Path, metavar="FILE", help="the package libreoffice-help-en-us, where at hand")
    args = parser.parse_args()
    numbers: Dict[str, int] = {}
    lengths: Dict[str, Set[int]] = defaultdict(set)  # of the sentences by their first word, in words
    for number, sentence in enumerate(sentences()):
        numbers.setdefault(sentence, number)
        words = sentence.split(" ")
        lengths[words[0]].add(len(words))
    with tempfile.TemporaryDirectory() as folder:
        deb = args.deb or download(["libreoffice-help-en-us"], Path(folder))[0]
        root = find([unpacked(deb, Path(folder))], "help/en-US/contents.js").parent / "text"
        pages = {
            path.relative_to(root).as_posix(): [
                number for _, text in paragraphs(path) for number in found(text, numbers, lengths)
            ]
            for path in sorted(root.rglob("*.html"))
        }
    pages = {page: held for page, held in pages.items() if held}
    lines = (f"{page} {' '.join(map(str, held))}\n" for page, held in pages.items())
    with whole(INDEX) as beside:
        beside.write_bytes(lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))
    used = {number for held in pages.values() for number in held}
    print(f"help-page-index: {len(used):,} of {len(numbers):,} sentences are on {len(pages):,} pages")


def found(text: str, numbers: Dict[str, int], lengths: Dict[str, Set[int]]) -> Iterator[int]:
    """The numbers of the sentences of a paragraph: the longest that begins and ends where one may."""
    words: List[str] = text.translate(PLAIN).split()
    place, begins = 0, True
    while place < len(words):
        for size in sorted(lengths.get(words[place], ()), reverse=True) if begins else ():
            last = place + size - 1
            number = numbers.get(" ".join(words[place : last + 1]))
            if number is not None and last < len(words) and (last + 1 == len(words) or END.search(words[last])):
                yield number
                place = last + 1
                break
        else:
            place += 1
            begins = bool(END.search(words[place - 1]))


if __name__ == "__main__":
    entry("help-page-index", main)
