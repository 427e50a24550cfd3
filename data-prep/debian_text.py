"""Parallel text out of Debian's packages, as plain files for prepare-corpus.sh: OUT/{train,valid,test}.{LANG,en}.

  sentences   everyday German and English sentences: the examples of the dictionary trans-de-en (GPL)
  documents   pages of the LibreOffice help (MPL) in English and another language, consecutive paragraphs joined up to
              --words English words. For training also up to a half, a quarter and so on, down to single paragraphs,
              for testing as long as they get. Pages are held out whole, and so is what they share with others.

The packages are downloaded by apt-get, where they are not given."""

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from luna_tools.console import entry, go_on_later, quote
from luna_tools.run_folder import claim

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, write_json, write_text

Pair = Tuple[str, str]  # English, and the other language
HELD_OUT = 20  # one of so many goes to the test set, another to the validation set


def main() -> None:
    args = parse_args()
    go_on_later()
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "debs")}
    if args.out.exists() and read_json(args.out / "settings.json") != settings:
        claim_free(args.out)
    with tempfile.TemporaryDirectory() as folder:
        roots = [unpacked(deb, Path(folder)) for deb in args.debs or download(packages(args), Path(folder))]
        if args.kind == "sentences":
            lang, splits = "de", split_sentences(sentences(find(roots, "trans/de-en")))
        else:
            lang, splits = args.lang, split_documents(pages(roots, args.lang), args.words)
    for split, pairs in splits.items():
        if not pairs:
            long = " For validation and test texts must be longer than half of --words." * (args.kind == "documents")
            raise Problem(f"no text was found for {split}: are these the packages that --help names?{long}")
    claim(args.out, settings)
    for split, pairs in splits.items():
        for side, name in enumerate(("en", lang)):
            write_text(args.out / f"{split}.{name}", "".join(f"{pair[side]}\n" for pair in pairs))
    counts = {split: len(pairs) for split, pairs in splits.items()}
    words = {split: sum(len(en.split()) for en, _ in pairs) for split, pairs in splits.items()}
    write_json(args.out / "counts.json", {"pairs": counts, "English words": words})
    for split in splits:
        each = words[split] / counts[split]
        print(f"debian-text: {split}: {counts[split]:,} pairs, {each:.1f} English words each", flush=True)
    prefixes = [word for split in splits for word in (f"--{split}", str(args.out / split))]
    command = quote(["bash", "data-prep/prepare-corpus.sh", *prefixes, "--source", "en", "--target", lang])
    print(f"debian-text: now: {command} --out DIR")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="debian_text.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("sentences", "documents"))
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--lang", default="de", help="of documents, beside English (default %(default)s)")
    parser.add_argument("--words", type=int, default=300, metavar="N", help="of a document at most (%(default)s)")
    parser.add_argument("--debs", nargs="+", type=Path, metavar="FILE", help="the packages, where they are at hand")
    args = parser.parse_args()
    if args.kind == "sentences" and args.lang != "de":
        parser.error(f"the dictionary is of German and English, but --lang is {args.lang}")
    if args.words < 1:
        parser.error(f"--words must be at least 1, but is {args.words}")
    return args


def claim_free(out: Path) -> None:
    if any(out.iterdir()):
        raise Problem(f"{out} holds other text than asked for: choose another --out")


def packages(args: argparse.Namespace) -> List[str]:
    if args.kind == "sentences":
        return ["trans-de-en"]
    return ["libreoffice-help-en-us", f"libreoffice-help-{args.lang.lower()}"]


def download(names: List[str], folder: Path) -> List[Path]:
    try:
        done = subprocess.run(["apt-get", "download", *names], cwd=str(folder), capture_output=True, encoding="utf-8")
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        problem = str(error)
    if problem:
        raise Problem(
            f"apt-get cannot download {' and '.join(names)}: {problem}\n"
            "Where there is no Debian, get the packages elsewhere and give them by --debs"
        )
    return sorted(folder.glob("*.deb"))


def unpacked(deb: Path, folder: Path) -> Path:
    root = folder / deb.stem
    if not shutil.which("dpkg-deb"):
        raise Problem("there is no dpkg-deb to unpack the packages with: install it (most systems have a package dpkg)")
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(root)], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise Problem(f"{deb} is no package that dpkg-deb can unpack: {done.stderr.strip()}")
    return root


def find(roots: List[Path], end: str) -> Path:
    for root in roots:
        for path in sorted(root.rglob(Path(end).name)):
            if path.as_posix().endswith(end):
                return path
    raise Problem(f"no package holds .../{end}: are these the packages that --help names?")


def part(key: str) -> str:
    """Which set a sentence or a page goes to, whatever else there is."""
    number = int(hashlib.sha256(key.encode("utf-8")).hexdigest(), 16) % HELD_OUT
    return {0: "test", 1: "valid"}.get(number, "train")


# ---- sentences

SENTENCE = re.compile(r'["“„»(]?[A-ZÄÖÜ].*[.!?]["”“«)]?$')
NOTES = re.compile(r"\s*(\[[^\]]*\]|\{[^}]*\}|<[^>]*>)")  # [coll.], {pl}, <forms>


def sentences(path: Path) -> List[Pair]:
    """The examples of the dictionary that are whole sentences, without those that offer alternatives."""
    found: Dict[str, str] = {}
    for line in read_lines(path):
        german, there, english = line.partition(" :: ")
        if line.startswith("#") or not there:
            continue
        sides = [[NOTES.sub("", entry).strip() for entry in side.split(" | ")] for side in (english, german)]
        if len(sides[0]) != len(sides[1]):
            continue
        for pair in zip(*sides):
            if all(SENTENCE.match(text) and len(text.split()) > 2 and not set(text) & set("/;()") for text in pair):
                found.setdefault(*pair)
    return list(found.items())


def split_sentences(pairs: List[Pair]) -> Dict[str, List[Pair]]:
    splits: Dict[str, List[Pair]] = {"train": [], "valid": [], "test": []}
    for english, other in pairs:
        # like sentences, differing in case or in marks after a word, stay together
        splits[part(re.sub(r"\W+", " ", english.lower()))].append((english, other))
    return splits


# ---- documents


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


if __name__ == "__main__":
    entry("debian-text", main)
