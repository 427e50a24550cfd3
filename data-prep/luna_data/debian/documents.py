"""Long texts: pages of the LibreOffice help in two languages, paragraphs joined."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Set

from luna_data.debian.packages import find
from luna_data.debian.splits import Pair, part


class Paragraph(NamedTuple):
    id: str
    text: str


class Paragraphs(HTMLParser):
    """The paragraphs and headings of a help page, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: List[Paragraph] = []
        self.id: Optional[str] = None
        self.text: List[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag == "p" or re.fullmatch(r"h\d", tag):
            name = dict(attrs).get("id") or ""
            self.id, self.text = (name if re.match(r"(par|hd)_", name) else None), []

    def handle_endtag(self, tag: str) -> None:
        if self.id and (tag == "p" or re.fullmatch(r"h\d", tag)):
            text = " ".join("".join(self.text).split())
            if text:
                self.found.append(Paragraph(self.id, text))
            self.id = None

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def pages(roots: List[Path], lang: str) -> Dict[str, List[Pair]]:
    """By name, the pages that are there in both languages: paragraphs of the same id."""
    english = find(roots, "help/en-US/contents.js").parent / "text"
    other = find(roots, f"help/{lang}/contents.js").parent / "text"
    found = {}
    for path in sorted(english.rglob("*.html")):
        name = path.relative_to(english)
        if (other / name).exists():
            found[name.as_posix()] = aligned(paragraphs(path), paragraphs(other / name))
    return found


def aligned(english: List[Paragraph], other: List[Paragraph]) -> List[Pair]:
    """Paragraphs of the same id, which stands more than once where a page takes in parts of another.

    What is the same in both languages, such as program text, is no translation.
    """
    ours, theirs = by_id(english), by_id(other)
    place: Dict[str, int] = {}
    pairs = []
    for key, text in english:
        number = place[key] = place.get(key, -1) + 1
        if len(ours[key]) == len(theirs.get(key, [])) and theirs[key][number] != text:
            pairs.append((text, theirs[key][number]))
    return pairs


def by_id(paragraphs: List[Paragraph]) -> Dict[str, List[str]]:
    texts: Dict[str, List[str]] = {}
    for key, text in paragraphs:
        texts.setdefault(key, []).append(text)
    return texts


def paragraphs(path: Path) -> List[Paragraph]:
    parser = Paragraphs()
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    return parser.found


def split_documents(pages: Dict[str, List[Pair]], words: int) -> Dict[str, List[Pair]]:
    held_out: Set[str] = {english for name, pairs in pages.items() if part(name) != "train" for english, _ in pairs}
    tested: Set[str] = {english for name, pairs in pages.items() if part(name) == "test" for english, _ in pairs}
    splits: Dict[str, List[Pair]] = {"train": [], "valid": [], "test": []}
    for name, pairs in pages.items():
        split = part(name)
        if split == "test":
            splits[split] += joined(pairs, words)
        elif split == "valid":
            splits[split] += joined([pair for pair in pairs if pair[0] not in tested], words)
        else:
            pairs = [pair for pair in pairs if pair[0] not in held_out]
            size = words
            while size >= 10:
                splits[split] += joined(pairs, size)
                size //= 2
            splits[split] += pairs
    for split in splits:
        splits[split] = list(dict.fromkeys(splits[split]))
    # a page that is shorter is no long document
    for split in "valid", "test":
        splits[split] = [pair for pair in splits[split] if len(pair[0].split()) > words // 2]
    return splits


def joined(pairs: List[Pair], words: int) -> Iterator[Pair]:
    """Consecutive paragraphs, as many as fit in so many English words; a longer paragraph stands alone."""
    group: List[Pair] = []
    size = 0
    for pair in pairs:
        length = len(pair[0].split())
        if group and size + length > words:
            yield tuple(" ".join(side) for side in zip(*group))  # type: ignore[misc]
            group, size = [], 0
        group.append(pair)
        size += length
    if group:
        yield tuple(" ".join(side) for side in zip(*group))  # type: ignore[misc]
