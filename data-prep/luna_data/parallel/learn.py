"""The step that learns the vocabulary of both languages from the training text."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List

from luna_tools.progress import bar

from fairseq_luna.files import read_lines, whole
from fairseq_luna.text.recipes import MosesBPE, SentencePiece
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.options import vocabulary_of
from luna_data.workers import BLOCK, apart, blocks, spread

SAMPLE = 1_000_000  # lines, of both languages together, that a sentencepiece model is learnt from
WORDS = 1_000_000  # words, the most frequent ones, that a byte pair encoding is learnt from


def learn(corpus: Corpus, texts: Dict[str, int]) -> dict:
    """Learn the vocabulary of both languages together from the training text, or take that which is given.

    Args:
        texts: the lines of each file of raw/.
    """
    given = vocabulary_of(corpus.args)
    if given:
        with whole(corpus.recipe.path) as beside:
            shutil.copyfile(given, beside)
        return {"lines": 0, "learnt from": "other data"}
    corpus.say(f"learning a joint vocabulary of {corpus.args.vocab_size:,} {corpus.recipe.kind}")
    paths = [corpus.tokenised / f"train.{lang}" for lang in corpus.languages]
    lines = texts[f"train.{corpus.args.source}"]
    if corpus.recipe.name == "sentencepiece":
        used = min(lines, SAMPLE // 2)
        apart(learn_pieces, corpus.recipe.path, corpus.args.vocab_size, paths, lines, used)
        return {"lines": 2 * used, "learnt from": {"lines": 2 * used, "of": 2 * lines}}
    counts: Counter = Counter()
    with bar(2 * lines, "line") as shown:
        for path in paths:
            for found in spread(count_words, blocks(read_lines(path)), corpus.args.workers):
                counts.update(found)
                shown.update(min(BLOCK, 2 * lines - shown.n))
    words = len(counts)
    frequent = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS])
    del counts
    apart(learn_merges, corpus.recipe.path, corpus.args.vocab_size, frequent)
    return {"lines": 2 * lines, "learnt from": {"words": len(frequent), "of": words}}


def count_words(block: List[str]) -> Dict[str, int]:
    return dict(Counter(word for line in block for word in line.split(" ") if word))


def learn_pieces(path: Path, size: int, paths: List[Path], lines: int, taken: int) -> None:
    """From `taken` of the `lines` lines of each text, evenly spread."""

    def sample() -> Iterator[str]:
        with bar(taken * len(paths), "line") as shown:
            for path in paths:
                for number, line in enumerate(read_lines(path)):
                    if number * taken // lines != (number - 1) * taken // lines:
                        shown.update()
                        yield line

    SentencePiece.learn(sample(), path, size)


def learn_merges(path: Path, size: int, counts: Dict[str, int]) -> None:
    MosesBPE.learn(counts, path, size)
