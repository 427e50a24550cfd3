"""Parallel text to fairseq data: clean text, tokens, vocabulary, pieces, binarised splits, a manifest.

Each step leaves its output whole or not at all, with a note in steps.json of what it was made of; it is passed over
where that is still the same. Blocks of lines go to all processes and come back in order: memory does not grow with
the text, and nothing depends on the number of processes.
"""

import argparse
import errno
import hashlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tarfile
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import metadata
from itertools import islice, zip_longest
from pathlib import Path
from threading import Event, Thread
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from luna_tools.paths import USER_DIR
from luna_tools.processes import die_with_parent, run
from luna_tools.progress import bar
from luna_tools.run_folder import alone, claim, differences

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, remove, sha256, whole, write_json
from fairseq_luna.text.recipes import RECIPES, MosesBPE, Recipe, SentencePiece
from fairseq_luna.versions import versions

SPLITS = "train", "valid", "test"
BLOCK = 2_000  # lines that go to a process at once, unless these have so many
BLOCK_LENGTH = 4_000_000  # characters or bytes
SAMPLE = 1_000_000  # lines, of both languages together, that a sentencepiece model is learnt from
WORDS = 1_000_000  # words, the most frequent ones, that a byte pair encoding is learnt from

# why a training pair is dropped; the first rule that holds counts
NOT_UTF8, EMPTY, HUGE, LONG, UNEVEN = RULES = (
    "not UTF-8",
    "a side is empty",
    "a side has too many characters",
    "a side has too many pieces",
    "one side has too many times the pieces of the other",
)

Pairs = Iterator[Tuple[Any, Any]]


class Text(NamedTuple):
    """One side of some parallel text: a file, or a member of a tar archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.member} of {self.path}" if self.member else str(self.path)

    def lines(self) -> Iterator[bytes]:
        if not self.member:
            with open(self.path, "rb") as file:
                yield from file
            return
        try:
            with tarfile.open(str(self.path), "r|gz") as archive:  # as a stream: nothing is unpacked to the disk
                for entry in archive:
                    if entry.name.lstrip("./") == self.member:
                        yield from archive.extractfile(entry)  # type: ignore[misc]
                        return
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Problem(f"{self.path} cannot be read ({error}): remove it, and it is fetched again") from None
        raise Problem(f"{self.path} holds no {self.member}: is it the right archive?")


# ---- the command line ------------------------------------------------------------------------------------------------


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {value}")
    return value


def absolute(text: str) -> Path:
    return Path(text).absolute()


def ratio(text: str) -> float:
    value = float(text)
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {text}")
    return value


def add_options(parser: argparse.ArgumentParser, max_length: int, max_ratio: float) -> None:
    """The options that all kinds of text have in common, with these defaults for the lengths."""
    parser.add_argument("--out", required=True, metavar="DIR", type=absolute)
    parser.add_argument("--recipe", choices=RECIPES, default="sentencepiece", help="default %(default)s")
    parser.add_argument(
        "--max-characters",
        type=positive,
        default=5000,
        metavar="N",
        help="drop training pairs with a longer side, before they are cut into pieces (default %(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        default=max_length,
        metavar="N",
        help="drop training pairs with more pieces on a side (default %(default)s)",
    )
    parser.add_argument(
        "--max-ratio",
        type=ratio,
        default=max_ratio,
        metavar="X",
        help="drop training pairs with over X times as many pieces on one side (default %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="processes; the result does not depend on it (default: all %(default)s)",
    )


def settings_of(args: argparse.Namespace) -> Dict[str, Any]:
    names = "source", "target", "recipe", "vocab_size", "max_characters", "max_length", "max_ratio"
    settings = {name: getattr(args, name) for name in names}
    if getattr(args, "test_sets", None):
        settings["test sets"] = args.test_sets
    if vocabulary_of(args):
        del settings["vocab_size"]  # the other data's
        settings["vocabulary"] = sha256(vocabulary_of(args))
    if dictionary_of(args):
        settings["dictionary"] = sha256(dictionary_of(args))
    return settings


def vocabulary_of(args: argparse.Namespace) -> Optional[Path]:
    """The model of data prepared before, where its pieces are to be those of this text."""
    folder = getattr(args, "vocabulary_of", None)
    return folder / RECIPES[args.recipe].model if folder else None


def dictionary_of(args: argparse.Namespace) -> Optional[Path]:
    """The dictionary of those data, where their model does not tell it."""
    folder = getattr(args, "vocabulary_of", None)
    if not folder or args.recipe == "sentencepiece":
        return None
    source = read_json(folder / "manifest.json")["settings"]["source"]
    return folder / "data-bin" / f"dict.{source}.txt"


@contextmanager
def taken(folder: Path, settings: dict) -> Iterator[None]:
    """The folder is ours, and no other run's, meanwhile; what a full disk does is told in a sentence."""
    try:
        with alone(folder):
            if read_json(folder / "settings.json") != settings:
                claim(folder, settings)
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise Problem(
            f"{folder} cannot take more ({error.strerror}): make room; the same command then goes on from there"
        ) from None


# ---- the steps -------------------------------------------------------------------------------------------------------


class Corpus:
    """The steps from parallel text to fairseq data in a folder."""

    def __init__(
        self,
        name: str,
        args: argparse.Namespace,
        texts: Dict[str, List[Tuple[Text, Text]]],
        sums: Dict[str, str],
        limit: Optional[int] = None,
        facts: Optional[dict] = None,
    ) -> None:
        """
        Args:
            name: of the command, for what it says.
            texts: for each split, the parts it is made of, source and target: train, valid, test and, where there
                are more test sets, test1 and so on.
            sums: the SHA-256 of all they are read from, each under its name.
            limit: take no more than the first so many pairs of each part of the training text.
            facts: more for the manifest.
        """
        self.name, self.args, self.texts, self.limit, self.facts = name, args, texts, limit, facts or {}
        self.held_out = [split for split in texts if split != "train"]
        self.out, self.languages = args.out, (args.source, args.target)
        self.settings = {**settings_of(args), "limit": limit}
        self.settings.update((f"sha256 of {name}", value) for name, value in sums.items())
        self.recipe = RECIPES[args.recipe](self.out, args.source, args.target)
        self.tokenised = self.out / ("tokens" if args.recipe == "moses-bpe" else "raw")
        self.manifest = self.out / "manifest.json"
        self.notes = self.out / "steps.json"
        self.steps: Dict[str, dict] = read_json(self.notes, {})
        self.order: List[str] = []  # the steps of this recipe

    def prepare(self) -> None:
        old = read_json(self.manifest, {})
        changed = differences(old.get("settings", {}), self.settings)
        if changed:
            remove(self.manifest)
            if old:
                self.say("preparing again: " + "; ".join(changed))
        sums = {name: value for name, value in self.settings.items() if name.startswith("sha256 of ")}
        text = {**self.pick("source", "target", "max_characters", "limit"), **sums}
        self.step("text", "", text, [f"raw/{name}" for name in self.files()], self.clean)
        before = "text"
        if self.tokenised.name == "tokens":
            self.step(
                "tokens", before, self.tools("sacremoses"), [f"tokens/{name}" for name in self.files()], self.tokenise
            )
            before = "tokens"
        if "vocabulary" in self.settings:
            learning = self.pick("vocabulary")
        else:
            learning = {**self.pick("recipe", "vocab_size"), **self.tools(self.recipe.tool)}
        self.step("vocabulary", before, learning, [self.recipe.model], self.learn)
        outputs = [f"pieces/{name}" for name in self.files()]
        cutting = {**self.pick("max_length", "max_ratio"), "model": sha256(self.out / self.recipe.model)}
        if "dictionary" in self.settings:
            cutting.update(self.pick("dictionary"))
        self.step("pieces", "vocabulary", cutting, outputs, self.split)
        pair = "-".join(self.languages)
        outputs = [f"data-bin/{split}.{pair}.{lang}.{kind}" for split, lang in self.sides() for kind in ("bin", "idx")]
        self.step(
            "data-bin",
            "pieces",
            self.tools("fairseq"),
            [*outputs, f"data-bin/dict.{self.args.source}.txt"],
            self.binarise,
        )
        if self.manifest.exists():
            self.say(f"{self.out} holds this already")
        else:
            self.write_manifest()
            self.show_table()

    def say(self, message: str) -> None:
        print(f"{self.name}: {message}", flush=True)

    def pick(self, *names: str) -> dict:
        return {name: self.settings[name] for name in names}

    @staticmethod
    def tools(*names: str) -> dict:
        """Versions of what a step is done with: by another the result might be another."""
        known = all_versions()
        return {f"version of {name}": known[name] for name in names}

    def sides(self) -> List[Tuple[str, str]]:
        return [(split, lang) for split in self.texts for lang in self.languages]

    def files(self) -> List[str]:
        return [f"{split}.{lang}" for split, lang in self.sides()]

    def step(self, name: str, before: str, settings: dict, outputs: List[str], work: Callable[[], dict]) -> None:
        """Do `work`, which gives what is to be known of it, unless its outputs are there and were made of the same."""
        self.order.append(name)
        origin = json.dumps([settings, self.steps[before]["origin"] if before else ""], sort_keys=True)
        origin = hashlib.sha256(origin.encode()).hexdigest()
        done = self.steps.get(name, {})
        if done.get("origin") == origin and done["outputs"] == self.stamps(outputs):
            return
        remove(self.manifest)
        if self.steps.pop(name, None):
            write_json(self.notes, self.steps)
        with Meter() as meter:
            result = work()
        figures = {
            "seconds": round(meter.seconds, 2),
            "lines per second": round(result.pop("lines") / meter.seconds),
            "peak memory MB": round(meter.peak / 1e6),
        }
        note = {"origin": origin, "settings": settings, "outputs": self.stamps(outputs)}
        self.steps[name] = {**note, "figures": figures, "result": result}
        write_json(self.notes, self.steps)

    def stamps(self, outputs: List[str]) -> dict:
        """Size and time of change of each output; None for one that is missing."""
        paths = {name: self.out / name for name in outputs}
        return {name: stamp(path) if path.exists() else None for name, path in paths.items()}

    def clean(self) -> dict:
        """Write raw/: every line normalised; training pairs that cannot be used left out, the rest kept in step."""
        self.say("cleaning the text")
        read: Dict[str, int] = {}
        dropped, lines, blank, changed = Counter(), Counter(), Counter(), Counter()
        with whole(self.out / "raw") as folder, bar(None, "pair") as shown:  # type: ignore[arg-type]
            folder.mkdir()
            for split, texts in self.texts.items():
                results = (found for pair in texts for found in self.cleaned(split, *pair, read))
                for found in self.written(folder, split, results, shown):
                    dropped.update(found.dropped)
                    for i, lang in enumerate(self.languages):
                        lines[f"{split}.{lang}"] += found.kept
                        blank[f"{split}.{lang}"] += found.blank[i]
                        changed[f"{split}.{lang}"] += found.changed[i]
                if not lines[f"{split}.{self.args.source}"]:
                    raise Problem(f"none of {sum(read.values()):,} {split} pairs is left: {listing(dropped)}")
        return {
            "lines": 2 * sum(read.values()),
            "texts": {name: lines[name] for name in self.files()},
            "read": read,
            "dropped": dropped,
            "blank lines kept": {name: blank[name] for name in self.files() if not name.startswith("train.")},
            "lines that normalising changed": {name: changed[name] for name in self.files()},
        }

    def cleaned(self, split: str, source: Text, target: Text, read: Dict[str, int]) -> Iterator["Cleaned"]:
        """The blocks of a part of a split; the number of its pairs goes into `read`."""
        training = split == "train"
        rules = partial(clean_training, self.args.max_characters) if training else clean_held_out
        pairs, number = self.pairs(source, target, self.limit if training else None), 0
        for found in spread(rules, blocks(pairs), self.args.workers):
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

    def written(self, folder: Path, split: str, results: Iterable, shown: Any) -> Iterator:
        """Write both texts of each result, and hand it on."""
        with ExitStack() as files:
            outputs = [files.enter_context(create(folder / f"{split}.{lang}")) for lang in self.languages]
            for found in results:
                for output, text in zip(outputs, found.texts):
                    output.write(text)
                shown.update(found.read)
                yield found

    @staticmethod
    def pairs(source: Text, target: Text, limit: Optional[int]) -> Pairs:
        """The pairs of lines; a Problem once one side ends before the other."""
        sides = source.lines(), target.lines()
        for number, pair in enumerate(islice(zip_longest(*sides), limit)):
            if None in pair:
                counts = [number + (line is not None) + sum(1 for _ in side) for line, side in zip(pair, sides)]
                raise Problem(
                    f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}: "
                    "they must be translations of each other, line for line"
                )
            yield pair

    def tokenise(self) -> dict:
        """Write tokens/: raw/ as the recipe tokenises it."""
        self.say("tokenising")
        texts = self.steps["text"]["result"]["texts"]
        with whole(self.out / "tokens") as folder, bar(sum(texts.values()), "line") as shown:
            folder.mkdir()
            for split, lang in self.sides():
                name = f"{split}.{lang}"
                work = partial(tokenise_block, lang)
                with create(folder / name) as file:
                    for block in spread(
                        work, blocks(read_lines(self.out / "raw" / name)), self.args.workers, self.recipe
                    ):
                        file.write("".join(text + "\n" for text in block))
                        shown.update(len(block))
        return {"lines": sum(texts.values())}

    def learn(self) -> dict:
        """Learn the vocabulary of both languages together from the training text, or take that which is given."""
        given = vocabulary_of(self.args)
        if given:
            with whole(self.recipe.path) as beside:
                shutil.copyfile(given, beside)
            return {"lines": 0, "learnt from": "other data"}
        self.say(f"learning a joint vocabulary of {self.args.vocab_size:,} {self.recipe.kind}")
        texts = self.steps["text"]["result"]["texts"]
        paths = [self.tokenised / f"train.{lang}" for lang in self.languages]
        lines = texts[f"train.{self.args.source}"]
        if self.recipe.name == "sentencepiece":
            used = min(lines, SAMPLE // 2)
            apart(learn_pieces, self.recipe.path, self.args.vocab_size, paths, lines, used)
            return {"lines": 2 * used, "learnt from": {"lines": 2 * used, "of": 2 * lines}}
        counts: Counter = Counter()
        with bar(2 * lines, "line") as shown:
            for path in paths:
                for found in spread(count_words, blocks(read_lines(path)), self.args.workers):
                    counts.update(found)
                    shown.update(min(BLOCK, 2 * lines - shown.n))
        words = len(counts)
        frequent = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WORDS])
        del counts
        apart(learn_merges, self.recipe.path, self.args.vocab_size, frequent)
        return {"lines": 2 * lines, "learnt from": {"words": len(frequent), "of": words}}

    def split(self) -> dict:
        """Write pieces/, without the training pairs whose lengths are out of bounds."""
        self.say(f"cutting the text into pieces with {self.args.workers} processes")
        texts = self.steps["text"]["result"]["texts"]
        pieces, lossy, dropped, kept = Counter(), 0, Counter(), Counter()
        long = dict.fromkeys(self.held_out, 0)
        with whole(self.out / "pieces") as folder, bar(sum(texts.values()) // 2, "pair") as shown:
            folder.mkdir()
            for split in self.texts:
                pairs = zip(*(read_lines(self.tokenised / f"{split}.{lang}") for lang in self.languages))
                work = partial(split_block, self.args.max_length, self.args.max_ratio, split == "train")
                results = spread(work, blocks(pairs), self.args.workers, self.recipe)
                for found in self.written(folder, split, results, shown):
                    if split == "train":
                        dropped.update(found.out_of_bounds)
                    else:
                        long[split] += found.out_of_bounds[LONG]
                    lossy += found.lossy
                    for i, lang in enumerate(self.languages):
                        pieces[f"{split}.{lang}"] += found.pieces[i]
                        kept[f"{split}.{lang}"] += found.kept
                if not kept[f"{split}.{self.args.source}"]:
                    raise Problem(f"no {split} pair is left: {listing(dropped)}")
            symbols, given = self.recipe.symbols(), dictionary_of(self.args)
            if given:
                shutil.copyfile(given, folder / "dict.txt")
            elif symbols:
                with create(folder / "dict.txt") as file:
                    file.writelines(f"{symbol} 1\n" for symbol in symbols)
        return {
            "lines": sum(texts.values()),
            "pieces": {name: pieces[name] for name in self.files()},
            "kept": {name: kept[name] for name in self.files()},
            "dropped": dropped,
            "long": long,
            "lossy": lossy if self.recipe.lossless else None,
        }

    def binarise(self) -> dict:
        self.say("binarising with fairseq-preprocess")
        lines = sum(self.steps["pieces"]["result"]["kept"].values())
        with whole(self.out / "data-bin") as folder, bar(lines, "line") as shown:
            command = [sys.executable, str(Path(__file__).parent / "preprocess.py"), "--joined-dictionary"]
            command += ["--source-lang", self.args.source, "--target-lang", self.args.target]
            command += ["--user-dir", str(USER_DIR)]  # for index_large_data of fairseq_luna/compat/data.py
            if (self.out / "pieces" / "dict.txt").exists():
                command += ["--srcdict", str(self.out / "pieces" / "dict.txt")]
            for kind in SPLITS:
                alike = [str(self.out / "pieces" / split) for split in self.texts if split.startswith(kind)]
                command += [f"--{kind}pref", ",".join(alike)]
            command += ["--destdir", str(folder), "--workers", str(self.args.workers)]
            found: Dict[str, Dict[str, int]] = {}

            def watch(said: str) -> None:
                """Take the counts of a file that is done from the log."""
                counts = re.search(r"/pieces/([^/\s]+): (\d+) sents, (\d+) tokens, (\S+)% replaced", said)
                if counts:
                    number, tokens = int(counts.group(2)), int(counts.group(3))
                    unknown = round(tokens * float(counts.group(4)) / 100)
                    found[counts.group(1)] = {"lines": number, "tokens": tokens, "unknown (about)": unknown}
                    shown.update(number)

            run(command, self.out / "preprocess.log", watch)
        written = {name: counts["lines"] for name, counts in found.items()}
        if written != self.steps["pieces"]["result"]["kept"]:
            raise Problem(
                f"fairseq-preprocess made {written} lines of {self.steps['pieces']['result']['kept']}: "
                f"see {self.out / 'preprocess.log'}"
            )
        dictionary = sum(1 for _ in read_lines(self.out / "data-bin" / f"dict.{self.args.source}.txt"))
        return {"lines": lines, "binarised": found, "dictionary": dictionary + 4}

    # ---- what is told of it

    def write_manifest(self) -> None:
        results = {name: step["result"] for name, step in self.steps.items()}
        text, pieces, data = results["text"], results["pieces"], results["data-bin"]
        symbols = self.recipe.symbols()
        lossy = {} if pieces["lossy"] is None else {"lines that do not survive pieces and back": pieces["lossy"]}
        write_json(
            self.manifest,
            {
                "settings": self.settings,
                **self.facts,
                "lines": text["texts"],
                "pairs read": text["read"],
                "training pairs": self.pairs_table(),
                "blank lines kept": text["blank lines kept"],
                "lines that normalising changed": text["lines that normalising changed"],
                "pieces": pieces["pieces"],
                "pairs over the length, kept": pieces["long"],
                **lossy,
                "vocabulary": len(symbols) + 3 if symbols else data["dictionary"],  # sentencepiece has 3 special ones
                "learnt from": results["vocabulary"]["learnt from"],
                "dictionary of fairseq": data["dictionary"],
                "binarised": data["binarised"],
                f"sha256 of {self.recipe.model}": sha256(self.out / self.recipe.model),
                "versions": all_versions(),
                "workers": self.args.workers,
                "steps": {name: self.steps[name]["figures"] for name in self.order},
            },
        )

    def pairs_table(self) -> dict:
        """Training pairs read, dropped by each rule, and kept."""
        text, pieces = (self.steps[name]["result"] for name in ("text", "pieces"))
        read = sum(number for name, number in text["read"].items() if name.startswith("train: "))
        kept = pieces["kept"][f"train.{self.args.source}"]
        dropped = {rule: text["dropped"].get(rule, 0) + pieces["dropped"].get(rule, 0) for rule in RULES}
        return {"read": read, "dropped": dropped, "kept": kept}

    def show_table(self) -> None:
        table = self.pairs_table()
        rows = [("training pairs read", table["read"])]
        rows += [(f"dropped: {rule}", number) for rule, number in table["dropped"].items() if number]
        rows += [("training pairs kept", table["kept"])]
        blank = self.steps["text"]["result"]["blank lines kept"]
        rows += [(f"blank lines in {name}, kept", number) for name, number in blank.items() if number]
        long = self.steps["pieces"]["result"]["long"]
        what = f"with more than {self.args.max_length:,} pieces, kept (the model must take them)"
        rows += [(f"pairs in {split} {what}", number) for split, number in long.items() if number]
        for what, number in rows:
            self.say(f"{number:>12,}  {what}")


def all_versions() -> Dict[str, str]:
    return {**versions(), **{name: version_of(name) for name in ("sacremoses", "subword-nmt")}}


def version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def listing(dropped: Counter) -> str:
    return ", ".join(f"{number:,} dropped because {rule}" for rule, number in dropped.items()) or "none was read"


def stamp(path: Path) -> List[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def create(path: Path):
    return open(path, "w", encoding="utf-8", newline="\n")


# ---- work on blocks of lines, in all processes -----------------------------------------------------------------------

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


class Split(NamedTuple):
    """A block of pairs in pieces."""

    texts: List[str]
    read: int
    kept: int
    pieces: List[int]
    out_of_bounds: Dict[str, int]
    lossy: int


def normalise(line: bytes) -> str:
    """The line with single spaces for control characters, line ends and runs of spaces, and none at its ends."""
    return " ".join(word for word in BREAKING.sub(" ", line.decode("utf-8")).split(" ") if word)


def clean_training(max_characters: int, block: List[Tuple[bytes, bytes]]) -> Cleaned:
    kept, dropped, changed = [], Counter(), [0, 0]
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


def columns(pairs: List[tuple]) -> Tuple[str, str]:
    """Pairs of lines as two texts."""
    return "".join(pair[0] + "\n" for pair in pairs), "".join(pair[1] + "\n" for pair in pairs)


def tokenise_block(lang: str, block: List[str]) -> List[str]:
    return here["recipe"].tokenise(block, lang)


def count_words(block: List[str]) -> Dict[str, int]:
    return dict(Counter(word for line in block for word in line.split(" ") if word))


def split_block(max_length: int, max_ratio: float, training: bool, block: List[Tuple[str, str]]) -> Split:
    """The pairs of a block in pieces; where it is no training text, those out of bounds are counted but stay."""
    recipe = here["recipe"]
    sides = [list(side) for side in zip(*block)]
    pieces = [recipe.split(side) for side in sides]
    lossy = 0
    if recipe.lossless:
        lossy = sum(a != b for side, cut in zip(sides, pieces) for a, b in zip(side, recipe.decode(cut)))
    kept, found = [], Counter()
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


# ---- processes -------------------------------------------------------------------------------------------------------

here: Dict[str, Recipe] = {}  # the recipe that this process works with


def blocks(items: Iterable) -> Iterator[list]:
    """The lines, or pairs of them, by so many that neither their number nor their length grows large."""
    block: list = []
    room = BLOCK_LENGTH
    for item in items:
        block.append(item)
        room -= len(item) if isinstance(item, str) else sum(map(len, item))
        if len(block) == BLOCK or room < 0:
            yield block
            block, room = [], BLOCK_LENGTH
    if block:
        yield block


def spread(work: Callable, items: Iterable, workers: int, recipe: Optional[Recipe] = None) -> Iterator:
    """`work` on each item, in order, by so many processes that hold the recipe; few items are under way at a time."""
    if workers == 1:
        hold(recipe)
        yield from map(work, items)
        return
    with processes(workers, recipe) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def apart(work: Callable, *args: Any) -> Any:
    """The result of `work` in a process of its own, which gives all its memory back."""
    with processes(1) as pool:
        return pool.submit(work, *args).result()


@contextmanager
def processes(workers: int, recipe: Optional[Recipe] = None) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    # in words: to take in one of its objects, a process would import the whole plugin
    told = (recipe.name, str(recipe.folder), recipe.source, recipe.target) if recipe else None
    try:
        with ProcessPoolExecutor(workers, context, initializer=begin, initargs=(os.getpid(), told)) as pool:
            try:
                yield pool
            except BaseException:
                for process in multiprocessing.active_children():  # else the pool waits for what they are at
                    process.kill()
                raise
    except BrokenProcessPool:
        raise Problem(
            "a process at work was killed, probably for want of memory: the same command goes on from there; "
            "fewer --workers need less"
        ) from None


def begin(parent: int, told: Optional[Tuple[str, str, str, str]]) -> None:
    """In a process that starts: end with the one that started it, and leave Ctrl-C to that."""
    die_with_parent()
    if os.getppid() != parent:  # which was killed before that took hold
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not sys.stderr.isatty():
        os.environ["TQDM_MININTERVAL"] = "60"  # for the bar of subword-nmt, which would fill a log
    if told:
        name, folder, source, target = told
        hold(RECIPES[name](Path(folder), source, target))


def hold(recipe: Optional[Recipe]) -> None:
    if recipe:
        here["recipe"] = recipe


class Meter:
    """Seconds that passed, and the most memory that this process and all below it held at a time."""

    seconds = peak = 0.0

    def __enter__(self) -> "Meter":
        self.start, self.over = time.time(), Event()
        self.thread = Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        self.peak = memory()
        while not self.over.wait(0.2):
            self.peak = max(self.peak, memory())

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()
        self.seconds = time.time() - self.start


def memory() -> int:
    """Resident bytes of this process and of all below it; pages they share count for each. 0 where /proc is missing."""
    parents, pages = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)], pages[int(path.parent.name)] = int(fields[1]), int(fields[21])

    def ours(number: int) -> bool:
        while number and number != os.getpid():
            number = parents.get(number, 0)
        return bool(number)

    return sum(size for number, size in pages.items() if ours(number)) * os.sysconf("SC_PAGE_SIZE")
