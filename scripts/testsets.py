"""The test sets of prepared data by their names; fairseq calls them test, test1 and so on."""

from pathlib import Path
from typing import Dict

from common import Problem, read_json


def test_sets(data: Path) -> Dict[str, str]:
    """What fairseq calls each test set, by the name that `prepare-corpus.sh --test NAME=PREFIX` gave it."""
    settings = read_json(data / "manifest.json", {}).get("settings", {})
    return settings.get("test sets") or {"test": "test"}


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
