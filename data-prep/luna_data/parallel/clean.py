"""The first step: raw/, the text in clean lines."""

import re
from collections import Counter
from functools import partial
from typing import Counter as Counts
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from luna_tools.progress import bar

from fairseq_luna.errors import Problem
from fairseq_luna.files import whole
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.rules import EMPTY, HUGE, NOT_UTF8, listing
from luna_data.parallel.text import Text, columns, pairs, written
from luna_data.workers import blocks, spread

# control characters, and what some programs take for the end of a line
BREAKING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Cleaned(NamedTuple):
    """A block of pairs, cleaned: the two texts, and counts by rule or by side."""

    texts: Tuple[str, str]
    read: int
    kept: int
    dropped: Dict[str, int]
    blank: List[int]
    changed: List[int]
    broken: Optional[Tuple[int, int, str]] = None  # the first line that is not UTF-8: its number, side and defect


def clean(corpus: Corpus) -> dict:
    """Write raw/: every line normalised; training pairs that cannot be used left out, the rest kept in step."""
    corpus.say("cleaning the text")
    read: Dict[str, int] = {}
    dropped: Counts[str] = Counter()
    lines: Counts[str] = Counter()
    blank: Counts[str] = Counter()
    changed: Counts[str] = Counter()
    with whole(corpus.out / "raw") as folder, bar(None, "pair") as shown:
        folder.mkdir()
        for split, texts in corpus.texts.items():
            results = (found for pair in texts for found in cleaned(corpus, split, *pair, read))
            for found in written(corpus.both(folder, split), results, shown):
                dropped.update(found.dropped)
                for i, lang in enumerate(corpus.languages):
                    lines[f"{split}.{lang}"] += found.kept
                    blank[f"{split}.{lang}"] += found.blank[i]
                    changed[f"{split}.{lang}"] += found.changed[i]
            if not lines[f"{split}.{corpus.args.source}"]:
                raise Problem(f"none of {sum(read.values()):,} {split} pairs is left: {listing(dropped)}")
    return {
        "lines": 2 * sum(read.values()),
        "texts": {name: lines[name] for name in corpus.files()},
        "read": read,
        "dropped": dropped,
        "blank lines kept": {name: blank[name] for name in corpus.files() if not name.startswith("train.")},
        "lines that normalising changed": {name: changed[name] for name in corpus.files()},
    }


def cleaned(corpus: Corpus, split: str, source: Text, target: Text, read: Dict[str, int]) -> Iterator[Cleaned]:
    """The blocks of a part of a split; the number of its pairs goes into `read`."""
    training = split == "train"
    rules = partial(clean_training, corpus.args.max_characters) if training else clean_held_out
    lines, number = pairs(source, target, corpus.limit if training else None), 0
    for found in spread(rules, blocks(lines), corpus.args.workers):
        if found.broken:
            line, side, reason = found.broken
            raise Problem(
                f"{(source, target)[side]}, line {number + line} is not UTF-8 ({reason}): "
                "convert the file, or remove the line from both sides"
            )
        number += found.read
        yield found
    if not number:
        raise Problem(f"{source} is empty")
    read[f"{split}: {source.member or source.path.name}"] = number


def normalise(line: bytes) -> str:
    """The line with single spaces for control characters, line ends and runs of spaces, and none at its ends."""
    return " ".join(word for word in BREAKING.sub(" ", line.decode("utf-8")).split(" ") if word)


def clean_training(max_characters: int, block: List[Tuple[bytes, bytes]]) -> Cleaned:
    kept: List[tuple] = []
    dropped: Counts[str] = Counter()
    changed = [0, 0]
    for pair in block:
        if max(map(len, pair)) > 4 * max_characters + 2:  # in bytes, of which a character has up to four
            dropped[HUGE] += 1
            continue
        try:
            texts = normalise(pair[0]), normalise(pair[1])
        except UnicodeDecodeError:
            dropped[NOT_UTF8] += 1
            continue
        if not all(text.strip() for text in texts):
            dropped[EMPTY] += 1
        elif max(map(len, texts)) > max_characters:
            dropped[HUGE] += 1
        else:
            kept.append(texts)
            for side in 0, 1:
                changed[side] += texts[side].encode() != pair[side].rstrip(b"\r\n")
    return Cleaned(columns(kept), len(block), len(kept), dropped, [0, 0], changed)


def clean_held_out(block: List[Tuple[bytes, bytes]]) -> Cleaned:
    """Nothing of a validation or test set is dropped."""
    kept, blank, changed, side = [], [0, 0], [0, 0], 0
    for number, pair in enumerate(block, 1):
        texts = []
        for side in 0, 1:
            try:
                text = normalise(pair[side])
            except UnicodeDecodeError as error:
                reason = f"{error.reason} at byte {error.start + 1} of the line"
                return Cleaned(("", ""), 0, 0, {}, [0, 0], [0, 0], (number, side, reason))
            texts.append(text)
            blank[side] += not text.strip()
            changed[side] += text.encode() != pair[side].rstrip(b"\r\n")
        kept.append(tuple(texts))
    return Cleaned(columns(kept), len(block), len(kept), {}, blank, changed)
