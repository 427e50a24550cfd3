"""Texts of one class each, as fairseq's sentence classification reads them.

OUT/data-bin/input0 holds the texts and OUT/data-bin/label their classes: dict.txt and {train,valid,test}.{bin,idx}. A
text has no end of sentence, and a class is one token. OUT/manifest.json tells what they are; it comes last, so that
there is none of data that is not whole.
"""

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, NamedTuple, Sequence, Tuple

from luna_tools.progress import bar
from luna_tools.run_folder import differences, read_record

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, remove, sha256, whole, write_json
from fairseq_luna.versions import versions
from luna_data.folder import SPLITS

Sample = Tuple[Any, str]  # the tokens of a text, (n,), and its class
FILES = [
    f"data-bin/{folder}/{split}.{kind}" for folder in ("input0", "label") for split in SPLITS for kind in ("bin", "idx")
]


class Contents(NamedTuple):
    """What is to be written."""

    name: str
    token: str  # what one is: "byte" or "word"
    dictionary: Any  # fairseq's, of the tokens
    classes: Sequence[str]  # in the order of their numbers
    splits: Mapping[str, Iterable[Sample]]  # each read once, one after the other
    total: int  # texts, for the progress
    facts: Dict[str, Any]  # for the manifest: seed, sources, licence


def prepared(out: Path, settings: Dict[str, Any]) -> bool:
    """Whether these data are there, and whole."""
    manifest = read_record(out / "manifest.json")
    return manifest.get("settings") == settings and manifest.get("bytes") == sizes(out)


def sizes(out: Path) -> Dict[str, int]:
    return {name: (out / name).stat().st_size for name in FILES if (out / name).exists()}


def write(out: Path, settings: Dict[str, Any], contents: Contents, say: Callable[[str], None]) -> None:
    """Write the data into a folder, and tell what they are.

    Raises:
        Problem: a text is empty (a model has nothing to attend to there), or a split holds none.
    """
    from fairseq.data import Dictionary

    old, start = read_json(out / "manifest.json", {}), time.time()
    changed = differences(old.get("settings", settings), settings)
    if changed:
        say("preparing again: " + "; ".join(changed))
    remove(out / "manifest.json")
    labels = Dictionary()
    for name in contents.classes:
        labels.add_symbol(name)
    counts = {name: dict.fromkeys(SPLITS, 0) for name in contents.classes}
    longest = 0
    with whole(out / "data-bin") as folder, bar(contents.total, "text") as shown:
        texts, classes = folder / "input0", folder / "label"
        for part, dictionary in (texts, contents.dictionary), (classes, labels):
            part.mkdir(parents=True)
            dictionary.save(str(part / "dict.txt"))
        for split, samples in contents.splits.items():
            with builder(texts / split, contents.dictionary) as text, builder(classes / split, labels) as label:
                for tokens, name in samples:
                    if not len(tokens):
                        number = sum(count[split] for count in counts.values()) + 1
                        raise Problem(f"{split} text {number:,}, of the class {name}, is empty")
                    text.add_item(tokens)
                    label.add_item(tokens.new_tensor([labels.index(name)]))
                    counts[name][split] += 1
                    longest = max(longest, len(tokens))
                    shown.update()
    totals = {split: sum(count[split] for count in counts.values()) for split in SPLITS}
    if not all(totals.values()):
        raise Problem(f"there are no texts for a split: {totals}")
    largest = max(contents.classes, key=lambda name: counts[name]["test"])
    guess = counts[largest]["test"] / totals["test"]
    write_json(
        out / "manifest.json",
        {
            "name": contents.name,
            "settings": settings,
            "token": contents.token,
            "longest text, in tokens": longest,
            "texts": totals,
            "classes": counts,
            "always guessing the largest class gives": {"class": largest, "accuracy": round(guess, 4)},
            **contents.facts,
            "bytes": sizes(out),
            "versions": versions(),
            "seconds": round(time.time() - start, 1),
        },
    )
    for split, total in totals.items():
        say(f"{total:>9,}  {split} texts, of up to {longest:,} {contents.token}s")
    say(f"{guess:>9.1%}  of the test set is right where always the class {largest} is guessed")


@contextmanager
def builder(path: Path, dictionary: Any) -> Iterator[Any]:
    """fairseq's own writer of PATH.bin and PATH.idx."""
    from fairseq.data.indexed_dataset import make_builder

    made = make_builder(f"{path}.bin", impl="mmap", vocab_size=len(dictionary))
    yield made
    made.finalize(f"{path}.idx")


def source(path: Path) -> Dict[str, Any]:
    """What the manifest tells of a file that data are made of."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
