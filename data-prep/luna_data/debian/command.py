"""Parallel text out of Debian's packages, as plain files for prepare-corpus.sh: OUT/{train,valid,test}.{LANG,en}.

  sentences   everyday German and English sentences: the examples of the dictionary trans-de-en (GPL)
  documents   pages of the LibreOffice help (MPL) in English and another language, consecutive paragraphs joined up to
              --words English words. For training also up to a half, a quarter and so on, down to single paragraphs,
              for testing as long as they get. Pages are held out whole, and so is what they share with others.

The packages are downloaded by apt-get, where they are not given."""

import argparse
import tempfile
from pathlib import Path
from typing import List

from luna_tools.console import entry, go_on_later, quote
from luna_tools.run_folder import claim

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, write_json, write_text
from luna_data.debian.documents import pages, split_documents
from luna_data.debian.packages import download, find, unpacked
from luna_data.debian.sentences import sentences, split_sentences


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
        prog="debian-text.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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


if __name__ == "__main__":
    entry("debian-text", main)
