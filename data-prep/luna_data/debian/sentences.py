"""Everyday sentences: the examples of the dictionary trans-de-en."""

import re
from pathlib import Path
from typing import Dict, List

from fairseq_luna.files import read_lines
from luna_data.debian.splits import Pair, part

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
