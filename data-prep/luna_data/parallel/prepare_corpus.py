"""Parallel text of any language pair to fairseq data: cleaned, cut into pieces of a joint vocabulary, binarised.

Training pairs that cannot be used are dropped and counted; the validation and test sets keep every line. Run again,
only what changed is done again; a run that was killed goes on."""

import argparse
from pathlib import Path
from typing import Dict, List

from luna_tools.console import count, entry, go_on_later
from luna_tools.data.testsets import can_name

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, sha256, write_json
from fairseq_luna.text import recipes
from luna_data.folder import stamp, taken
from luna_data.options import absolute
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.options import add_options, settings_of
from luna_data.parallel.steps import prepare
from luna_data.parallel.text import Text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-corpus.sh", description=__doc__)
    for split in "train", "valid":
        parser.add_argument(
            f"--{split}", required=True, metavar="PREFIX", help=f"the {split} text is PREFIX.SOURCE and PREFIX.TARGET"
        )
    parser.add_argument(
        "--test",
        required=True,
        action="append",
        metavar="PREFIX",
        help="the test text, or NAME=PREFIX; give it several times for several test sets",
    )
    parser.add_argument("--source", required=True, metavar="LANG")
    parser.add_argument("--target", required=True, metavar="LANG")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--vocab-size",
        type=count,
        default=8000,
        metavar="N",
        help="joint sentencepiece vocabulary, or merges of moses-bpe (default %(default)s)",
    )
    vocabulary.add_argument(
        "--vocabulary-of",
        type=absolute,
        metavar="DIR",
        help="the vocabulary of data prepared before, of the same --recipe. A model trained on that data can go on "
        "with this",
    )
    add_options(parser, max_length=1000, max_ratio=9.0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    go_on_later()
    if args.source == args.target:
        raise Problem(f"--source and --target are both {args.source}")
    if args.vocabulary_of:
        given = recipes.load(args.vocabulary_of)
        if given.name != args.recipe:
            raise Problem(
                f"{args.vocabulary_of} is of --recipe {given.name}, but here it is {args.recipe}: give the same"
            )
    languages = args.source, args.target
    tests = named(args.test, args.source)
    splits = {"train": args.train, "valid": args.valid}
    # as fairseq calls them
    numbered = {name: f"test{number or ''}" for number, name in enumerate(tests)}
    splits.update((numbered[name], prefix) for name, prefix in tests.items())
    args.test_sets = numbered if list(numbered) != ["test"] else None
    paths = {f"{split}.{lang}": Path(f"{prefix}.{lang}") for split, prefix in splits.items() for lang in languages}
    for path in paths.values():
        if not path.is_file():
            raise Problem(f"there is no file {path}")
    texts = {
        split: [(Text(paths[f"{split}.{args.source}"]), Text(paths[f"{split}.{args.target}"]))] for split in splits
    }
    with taken(args.out, settings_of(args)):
        sums = {name: known_sha256(path, args.out / "inputs.json") for name, path in paths.items()}
        prepare(Corpus("prepare-corpus", args, texts, sums))


def named(words: List[str], source: str) -> Dict[str, str]:
    """The prefix of each test set by its name."""
    found: Dict[str, str] = {}
    for word in words:
        name, _, prefix = word.partition("=")
        if not prefix or Path(f"{word}.{source}").is_file():  # a path may hold a = too
            name, prefix = "test", word
        if not can_name(name):
            raise Problem(
                f"--test {word}: {name} cannot name a test set; take letters, digits and .+-_, but not train, valid or "
                "test1, which fairseq uses itself"
            )
        if name in found:
            raise Problem(f"two test sets have the name {name}: give each its own by --test NAME=PREFIX")
        found[name] = prefix
    if "test" in list(found)[1:]:
        raise Problem("the test set with the name test must be the first: give the others after it, or name it too")
    return found


def known_sha256(path: Path, notes: Path) -> str:
    """The SHA-256 of a file, noted with its size and time of change, so that a large one is read but once."""
    known, name = read_json(notes, {}), str(path.resolve())
    if known.get(name, {}).get("stamp") != stamp(path):
        known[name] = {"stamp": stamp(path), "sha256": sha256(path)}
        write_json(notes, known)
    return known[name]["sha256"]


if __name__ == "__main__":
    entry("prepare-corpus", main)
