"""The test sets of prepared data by their names; fairseq calls them test, test1 and so on."""

import re
from pathlib import Path
from typing import Dict

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json


def test_sets(data: Path) -> Dict[str, str]:
    """What fairseq calls each test set, by the name that `prepare-corpus.sh --test NAME=PREFIX` gave it.

    Raises:
        Problem: if a name is none that it gives: files are named after it.
    """
    settings = read_json(data / "manifest.json", {}).get("settings", {})
    found = settings.get("test sets") or {"test": "test"}
    for name, split in found.items():
        if not can_name(name) or not isinstance(split, str) or not re.fullmatch(r"test\d*", split):
            raise Problem(f"{data / 'manifest.json'} names a test set {name!r} ({split!r}): prepare the data again")
    return found


def can_name(name: str) -> bool:
    """Whether a test set can have this name: fairseq does not use it itself, and it leads to no other folder."""
    return bool(re.fullmatch(r"[\w+-][\w.+-]*", name)) and not re.fullmatch(r"train|valid|test\d+", name)


def split_of(data: Path, name: str) -> str:
    """What fairseq calls a subset: train, valid, or a test set by its name.

    Raises:
        Problem: if there is no such subset.
    """
    tests = test_sets(data)
    splits = {"train": "train", "valid": "valid", **{split: split for split in tests.values()}, **tests}
    if name not in splits:
        raise Problem(f"{data} has no subset {name}; possible are {', '.join(['train', 'valid', *tests])}")
    return splits[name]


def name_of(data: Path, split: str) -> str:
    """The name of a test set, by what fairseq calls it."""
    return next((name for name, known in test_sets(data).items() if known == split), split)
