"""WMT14 English-German to fairseq data: download, clean, cut into pieces of a joint vocabulary, binarise.

The training text is Europarl v7, Common Crawl and News Commentary v9 (about 4.5 million pairs); the validation set is
newstest2013 and the test set newstest2014, both as sacrebleu's own data sets give them. Run again, only what changed is
done again; a run that was killed goes on, a download in the middle of its file."""

import argparse
import os
from pathlib import Path
from typing import Dict

from luna_tools.console import count, entry, go_on_later, teller

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, whole, write_json
from luna_data.downloads import Archive, Downloads, add_mirror
from luna_data.folder import stamp, taken
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.options import add_options, settings_of
from luna_data.parallel.steps import prepare
from luna_data.parallel.text import Text
from luna_data.workers import apart

say = teller("prepare-wmt14-en-de")

SOURCE, TARGET = "en", "de"

TRAINING = (
    Archive(
        "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
        "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        "training/europarl-v7.de-en",
    ),
    Archive(
        "https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
        "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        "commoncrawl.de-en",
    ),
    Archive(
        "https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
        "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        "training/news-commentary-v9.de-en",
    ),
)

# sacrebleu's data set of each held-out split, and its number of lines
HELD_OUT = {"valid": ("wmt13", 3000), "test": ("wmt14/full", 3003)}
VOCABULARY = {"sentencepiece": 32000, "moses-bpe": 40000}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-wmt14-en-de.sh", description=__doc__)
    parser.add_argument(
        "--vocab-size",
        type=count,
        metavar="N",
        help="joint sentencepiece vocabulary, or merges of moses-bpe (default: "
        f"{VOCABULARY['sentencepiece']:,} or {VOCABULARY['moses-bpe']:,})",
    )
    add_mirror(parser)
    parser.add_argument(
        "--limit", type=count, metavar="N", help="the first N pairs of each training archive alone, for a trial"
    )
    add_options(parser, max_length=250, max_ratio=1.5)
    args = parser.parse_args()
    args.source, args.target = SOURCE, TARGET
    args.vocab_size = args.vocab_size or VOCABULARY[args.recipe]
    return args


def main() -> None:
    args = parse_args()
    go_on_later()
    with taken(args.out, {**settings_of(args), "limit": args.limit}):
        downloads = Downloads(args.out / "downloads", args.mirror, say)
        tests = datasets()
        paths = {archive: downloads.get(archive) for archive in (*TRAINING, *tests.values())}
        sources = {archive.name: downloads.source(archive) for archive in paths}
        cache = unpack_tests(downloads.folder, {split: paths[archive] for split, archive in tests.items()})

        texts = {
            "train": [
                (Text(paths[archive], f"{archive.prefix}.{SOURCE}"), Text(paths[archive], f"{archive.prefix}.{TARGET}"))
                for archive in TRAINING
            ]
        }
        held_out = {}
        for split, (name, lines) in HELD_OUT.items():
            official = sources[tests[split].name]["official"]
            held_out[split] = {"sacrebleu": name, "official": official}
            pair = Text(cached(cache, name, "src")), Text(cached(cache, name, "ref"))
            if official:
                check_lines(pair, lines)
            texts[split] = [pair]
        sums = {name: source["sha256"] for name, source in sources.items()}
        facts = {"corpus": "wmt14-en-de", "sources": sources, "held out": held_out}
        prepare(Corpus("prepare-wmt14-en-de", args, texts, sums, args.limit, facts))


# ---- validation and test ---------------------------------------------------------------------------------------------


def datasets() -> Dict[str, Archive]:
    """The archives of sacrebleu's own tables."""
    from sacrebleu.dataset import DATASETS

    sets = {split: DATASETS[name] for split, (name, _) in HELD_OUT.items()}
    return {split: Archive(each.data[0], each.md5[0]) for split, each in sets.items()}  # type: ignore[index]


def unpack_tests(folder: Path, archives: Dict[str, Path]) -> Path:
    """Have sacrebleu unpack its data sets into a cache of ours, which `SACREBLEU=FOLDER sacrebleu -t ...` can use."""
    cache = folder / "sacrebleu"
    known = {name: stamp(archives[split]) for split, (name, _) in HELD_OUT.items()}
    if read_json(cache / "made-of.json") != known:
        with whole(cache) as beside:
            beside.mkdir()
            apart(run_sacrebleu, beside, {HELD_OUT[split][0]: path.resolve() for split, path in archives.items()})
            write_json(beside / "made-of.json", known)
    return cache


def run_sacrebleu(cache: Path, archives: Dict[str, Path]) -> None:
    os.environ["SACREBLEU"] = str(cache)  # read once, when it is imported
    from sacrebleu.dataset import DATASETS

    for name, archive in archives.items():
        dataset = DATASETS[name]
        try:
            type(dataset)(name, data=[archive.as_uri()], langpairs=dataset.langpairs).process_to_text(
                f"{SOURCE}-{TARGET}"
            )
        except Exception as error:
            raise Problem(f"sacrebleu cannot make {name} of {archive} ({type(error).__name__}: {error})") from None


def cached(cache: Path, name: str, side: str) -> Path:
    return cache / name / f"{name.replace('/', '_')}.{SOURCE}-{TARGET}.{side}"


def check_lines(texts: tuple, wanted: int) -> None:
    for text in texts:
        lines = sum(1 for _ in read_lines(text.path))
        if lines != wanted:
            raise Problem(f"{text} has {lines:,} lines, but the official set has {wanted:,}")


if __name__ == "__main__":
    entry("prepare-wmt14-en-de", main)
