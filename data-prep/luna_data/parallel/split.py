"""The step that cuts the text into pieces: pieces/."""

import shutil
from collections import Counter
from functools import partial
from typing import Counter as Counts
from typing import Dict, List, NamedTuple, Tuple

from luna_tools.progress import bar

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_lines, whole
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.options import dictionary_of
from luna_data.parallel.rules import EMPTY, LONG, UNEVEN, listing
from luna_data.parallel.text import columns, create, written
from luna_data.workers import blocks, here, spread


class Split(NamedTuple):
    """A block of pairs in pieces."""

    texts: Tuple[str, str]
    read: int
    kept: int
    pieces: List[int]
    out_of_bounds: Dict[str, int]
    lossy: int


def split(corpus: Corpus, texts: Dict[str, int]) -> dict:
    """Write pieces/, without the training pairs whose lengths are out of bounds.

    Args:
        texts: the lines of each file of raw/.
    """
    corpus.say(f"cutting the text into pieces with {corpus.args.workers} processes")
    pieces: Counts[str] = Counter()
    dropped: Counts[str] = Counter()
    kept: Counts[str] = Counter()
    lossy = 0
    long = dict.fromkeys(corpus.held_out, 0)
    with whole(corpus.out / "pieces") as folder, bar(sum(texts.values()) // 2, "pair") as shown:
        folder.mkdir()
        for name in corpus.texts:
            pairs = zip(*(read_lines(corpus.tokenised / f"{name}.{lang}") for lang in corpus.languages))
            work = partial(split_block, corpus.args.max_length, corpus.args.max_ratio, name == "train")
            results = spread(work, blocks(pairs), corpus.args.workers, corpus.recipe)
            for found in written(corpus.both(folder, name), results, shown):
                if name == "train":
                    dropped.update(found.out_of_bounds)
                else:
                    long[name] += found.out_of_bounds[LONG]
                lossy += found.lossy
                for i, lang in enumerate(corpus.languages):
                    pieces[f"{name}.{lang}"] += found.pieces[i]
                    kept[f"{name}.{lang}"] += found.kept
            if not kept[f"{name}.{corpus.args.source}"]:
                raise Problem(f"no {name} pair is left: {listing(dropped)}")
        symbols, given = corpus.recipe.symbols(), dictionary_of(corpus.args)
        if given:
            shutil.copyfile(given, folder / "dict.txt")
        elif symbols:
            with create(folder / "dict.txt") as file:
                file.writelines(f"{symbol} 1\n" for symbol in symbols)
    return {
        "lines": sum(texts.values()),
        "pieces": {name: pieces[name] for name in corpus.files()},
        "kept": {name: kept[name] for name in corpus.files()},
        "dropped": dropped,
        "long": long,
        "lossy": lossy if corpus.recipe.lossless else None,
    }


def split_block(max_length: int, max_ratio: float, training: bool, block: List[Tuple[str, str]]) -> Split:
    """The pairs of a block in pieces; where it is no training text, those out of bounds are counted but stay."""
    recipe = here["recipe"]
    sides = [list(side) for side in zip(*block)]
    pieces = [recipe.split(side) for side in sides]
    lossy = 0
    if recipe.lossless:
        lossy = sum(a != b for side, cut in zip(sides, pieces) for a, b in zip(side, recipe.decode(cut)))
    kept: List[tuple] = []
    found: Counts[str] = Counter()
    for pair in zip(*pieces):
        rule = out_of_bounds(max_length, max_ratio, *map(len, pair))
        if rule:
            found[rule] += 1
        if not (rule and training):
            kept.append(tuple(map(" ".join, pair)))
    texts = columns(kept)
    return Split(texts, len(block), len(kept), [count_pieces(text) for text in texts], found, lossy)


def out_of_bounds(max_length: int, max_ratio: float, *lengths: int) -> str:
    """The rule by which a pair of so many pieces is dropped, if any."""
    if not min(lengths):
        return EMPTY  # of what does not print, which tokenising takes away
    if max(lengths) > max_length:
        return LONG
    return UNEVEN if max(lengths) > max_ratio * min(lengths) else ""


def count_pieces(text: str) -> int:
    return len(text.split())
