"""Film reviews (IMDb) to fairseq data, as bytes: download, check, cut. The class is whether the film was liked.

As in the long-range arena, a text is the first --length bytes of a review. 25,000 are to be tested on; of the other
25,000, a tenth of each class is held out for validation, chosen by --seed (the arena validates on the test set). Up to
30 reviews are of one film, so that the validation set knows some films of the training set; the test set has others.
A download that was killed goes on in the middle of the file."""

import argparse
import gzip
import re
import tarfile
import zlib
from pathlib import Path
from random import Random
from typing import Any, Dict, Iterator, List, Optional, Tuple

from luna_tools.console import count, entry, go_on_later, teller
from luna_tools.machine import import_plugin
from luna_tools.progress import bar

from fairseq_luna.errors import Problem
from luna_data.classification.data import Contents, Sample, prepared, write
from luna_data.downloads import Archive, Downloads, add_mirror
from luna_data.folder import taken
from luna_data.options import absolute

say = teller("prepare-imdb")

ARCHIVE = Archive("https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", "7c2ac02c03563afcf9b574c7e56c153a")
CLASSES = "neg", "pos"
REVIEWS = 12_500  # of each class, to train and to test on
HELD_OUT = 10  # one of so many reviews to train on is validated on
MEMBER = re.compile(r"(?:\./)?aclImdb/(train|test)/(neg|pos)/(\d+_\d+)\.txt")

Review = Tuple[str, bytes]  # the name of the file, and its text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-imdb.sh", description=__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", type=absolute)
    parser.add_argument(
        "--length", type=count, default=4000, metavar="N", help="bytes of a text at most (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the validation set (default %(default)s)")
    add_mirror(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    go_on_later()
    prepare(args.out, args.length, args.seed, args.mirror)


def prepare(out: Path, length: int, seed: int, mirror: Optional[str] = None) -> None:
    """Write the reviews in texts of at most so many bytes."""
    settings: Dict[str, Any] = {"length": length, "seed": seed}
    with taken(out, settings):
        downloads = Downloads(out / "downloads", mirror, say)
        archive = downloads.get(ARCHIVE)
        source = {"name": archive.name, **downloads.source(ARCHIVE)}
        settings = {**settings, "sha256": source["sha256"]}
        if prepared(out, settings):
            say(f"{out} holds this already")
            return
        reviews = read(archive, length, REVIEWS if source["official"] else None)
        import_plugin()
        from fairseq_luna.data.byte_text import byte_dictionary, encode_bytes

        dictionary, splits = byte_dictionary(), split_reviews(reviews, seed)

        def encoded(split: str) -> Iterator[Sample]:
            return ((encode_bytes(text, dictionary), name) for name, (_, text) in splits[split])

        facts = {
            "seed": seed,
            "sources": [source],
            "licence": "none is stated; its authors ask to cite Maas et al. 2011, Learning Word Vectors for Sentiment "
            "Analysis",
        }
        made = {split: encoded(split) for split in splits}
        total = sum(map(len, splits.values()))
        write(out, settings, Contents("IMDb reviews", "byte", dictionary, CLASSES, made, total, facts), say)


def read(archive: Path, length: int, wanted: Optional[int] = None) -> Dict[Tuple[str, str], List[Review]]:
    """The beginnings of the reviews by part (train or test) and class, in the order of their names.

    Raises:
        Problem: the archive is broken, has an empty review, or not as many of each kind as wanted.
    """
    reviews: Dict[Tuple[str, str], List[Review]] = {(part, name): [] for part in ("train", "test") for name in CLASSES}
    say(f"reading {archive}")
    progress = bar(wanted and 4 * wanted, "review")
    try:
        # by way of gzip, which tells where a file is cut off
        with gzip.open(archive) as file, tarfile.open(fileobj=file, mode="r|") as members, progress as shown:
            for member in members:
                found = MEMBER.fullmatch(member.name)
                if not found:
                    continue
                text = members.extractfile(member).read(length)  # type: ignore[union-attr]
                if not text:
                    raise Problem(f"{member.name} of {archive} is empty: is it the right archive?")
                reviews[found.group(1), found.group(2)].append((found.group(3), text))
                shown.update()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise Problem(f"{archive} cannot be read ({error}): remove it, and it is fetched again") from None
    for (part, name), held in reviews.items():
        if len(held) != (wanted or len(held) or 1):
            raise Problem(
                f"{archive} has {len(held):,} reviews in aclImdb/{part}/{name}, but should have {wanted or 'some'}"
            )
        held.sort()
    return reviews


def split_reviews(reviews: Dict[Tuple[str, str], List[Review]], seed: int) -> Dict[str, List[Tuple[str, Review]]]:
    """For each split its reviews, with the class before each."""
    splits: Dict[str, List[Tuple[str, Review]]] = {"train": [], "valid": [], "test": []}
    for name in CLASSES:
        held = list(reviews["train", name])
        Random(f"{seed} {name}").shuffle(held)
        size = len(held) // HELD_OUT
        splits["valid"] += [(name, review) for review in held[:size]]
        splits["train"] += [(name, review) for review in held[size:]]
        splits["test"] += [(name, review) for review in reviews["test", name]]
    return splits


if __name__ == "__main__":
    entry("prepare-imdb", main)
