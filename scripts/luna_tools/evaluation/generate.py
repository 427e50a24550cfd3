"""Translate a subset of a run's data with its averaged model, or with those of several runs together.

By beam search, or by sampling. The translations come detokenised and in the order of the source, as many as there are
references; of the training set, as many as the pairs in data-bin/. For the training set the sources are written too:
FILE.en beside FILE.de. Does nothing where all is there and was made in the same way. A large subset is translated in
parts: interrupted, the same command goes on after the last whole one. Options after `--` are handed to
fairseq-generate."""

import argparse
import hashlib
import heapq
import math
import os
import sys
import time
from contextlib import ExitStack
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, remove, sha256, whole, write_json, write_text
from fairseq_luna.generation.options import Search
from fairseq_luna.generation.places import agree
from fairseq_luna.text import recipes
from luna_tools.console import count, entry, go_on_later, in_checkout, quote
from luna_tools.data.testsets import split_of
from luna_tools.evaluation.decoding import Hypothesis, add_search_options, flags, possible, rows, search_settings
from luna_tools.paths import USER_DIR
from luna_tools.processes import python, run
from luna_tools.progress import bar
from luna_tools.run_folder import alone, read_record

LENGTHS = {"max_len_a": Search.max_len_a, "max_len_b": Search.max_len_b}  # of a hypothesis at most
PART = 5_000  # sentences: minutes of work on a CPU, seconds on a GPU
MOST_PARTS = 500  # files that are open at once when the parts are put together
# beside the model's positions fairseq asks for those of the task, whose default of 1,024 is of no model
NO_LIMITS = ["--max-source-positions", "1000000", "--max-target-positions", "1000000"]

SET_HERE = {
    *("--beam", "--lenpen", "--length-penalty", "--path", "--gen-subset", "--task", "--results-path", "--post-process"),
    *("--remove-bpe", "--user-dir", "--source-lang", "--target-lang", "-s", "-t", "--fp16", "--bf16", "--cpu"),
    *("--quiet", "--nbest", "--num-shards", "--shard-id", "--distributed-world-size", "--distributed-rank"),
    *("--constraints", "--prefix-size", "--max-tokens"),
}


class Extras(NamedTuple):
    """What generate.sh can ask for, and evaluate.sh and compare.sh do not.

    Attributes:
        others: runs whose models translate together with that of the first.
        search: more settings of the search, by the names of fairseq's flags.
        table: write the rows of --nbest, in place of one line for each sentence.
        constraints: a file of what the hypotheses must hold.
        part: after so many sentences a translation that was interrupted can go on.
    """

    others: Sequence[Path] = ()
    search: Dict[str, Any] = {}
    table: bool = False
    constraints: Optional[Path] = None
    part: int = PART


NO_EXTRAS = Extras()


def main() -> None:
    args, more = parse_args()
    for folder in (args.run, *more.others):
        if not (folder / "model.pt").exists():
            raise Problem(f"{folder} holds no model.pt: make it by `bash scripts/average.sh {quote([str(folder)])}`")
    agree([recipes.load(data) for data in (args.data, *(folder / "data" for folder in more.others))])
    ours = args.run / "generated"
    out = args.out or ours / file_name(args, args.subset, args.lenpen, *asked_for(args.run, more))
    recipe, split = recipes.load(args.data), split_of(args.data, args.subset)
    if args.subset == "train" and out.suffix != f".{recipe.target}":
        raise Problem(f"--out {out} must end in .{recipe.target}: the sources of the training set go beside it")
    if args.out and not parts_of(out).exists() and "settings" not in read_record(record_of(out)):
        leave_alone(out, record_of(out))
    go_on_later()
    with alone(ours):
        out.parent.mkdir(parents=True, exist_ok=True)
        if args.subset == "train":  # first, as this is quick, and may be refused
            write_sources(args.data, recipe, out.with_suffix(f".{recipe.source}"), ours)
        try:
            generate(args, split, args.lenpen, out, more=more)
        except KeyboardInterrupt as interrupt:
            if any(path.name.isdigit() for path in parts_of(out).glob("*")):
                raise
            word = "stopped before a part was whole; the same command begins anew, and --part N makes smaller parts"
            raise KeyboardInterrupt(word) from interrupt


def parse_args() -> Tuple[argparse.Namespace, Extras]:
    parser = argparse.ArgumentParser(
        prog="generate.sh",
        usage="%(prog)s [options] RUN_DIR [RUN_DIR ...] [-- fairseq-generate options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "others",
        nargs="*",
        type=Path,
        metavar="RUN_DIR",
        help="more runs, whose models translate together with the first, an ensemble: their vocabularies must be the "
        "same, their architectures need not",
    )
    parser.add_argument(
        "--subset",
        default="test",
        metavar="NAME",
        help="train, valid, or a test set by its name in the data (default %(default)s, the first test set)",
    )
    parser.add_argument("--lenpen", type=float, default=0.6, metavar="X", help="length penalty (default %(default)s)")
    parser.add_argument(
        "--prefix-size", type=count, metavar="N", help="each hypothesis begins with the first N pieces of its reference"
    )
    parser.add_argument(
        "--constraints",
        type=Path,
        metavar="FILE",
        help="a line for each sentence, empty or with texts that its hypothesis holds, in this order, between tabs",
    )
    parser.add_argument(
        "--part",
        type=count,
        default=PART,
        metavar="N",
        help="sentences after which an interrupted translation can go on (default %(default)s); fewer are one "
        "part, which begins anew",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="default RUN_DIR/generated/SUBSET.beamB.lenpenX.LANG, its name longer where more is asked for; with a "
        ".json beside and, where there is one part, a .log. Files of others are not written over",
    )
    add_search_options(parser)
    args = parse(parser)
    search = search_settings(parser, args)
    args.beam = search.pop("beam", args.beam)
    if args.prefix_size:
        search["prefix_size"] = args.prefix_size
    if args.constraints and not args.constraints.is_file():
        raise Problem(f"there is no file {args.constraints}")
    for name in "nbest", "constraints":
        if args.subset == "train" and getattr(args, name):
            parser.error(f"--{name} is for test and valid: the training set gets one translation for each source")
    return args, Extras(args.others, search, bool(args.nbest), args.constraints, args.part)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What generate.sh and evaluate.sh share."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="what train.sh or quickstart.sh wrote")
    parser.add_argument("--data", type=Path, metavar="DIR", help="what data-prep/ made (default RUN_DIR/data)")
    parser.add_argument("--beam", type=count, default=5, metavar="B", help="default %(default)s")
    parser.add_argument(
        "--max-tokens", type=count, default=4096, metavar="N", help="pieces of source in a batch (default %(default)s)"
    )
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--fp16", action="store_true", help="in half precision, on a GPU")
    half.add_argument("--bf16", action="store_true", help="in bfloat16, on a GPU, as a model trained in it")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with what follows `--` as `extra`."""
    own, extra = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    args = parser.parse_intermixed_args(own)
    args.extra, args.data = extra, args.data or args.run / "data"
    for word in extra:
        if word.partition("=")[0] in SET_HERE:
            raise Problem(f"{word} cannot be given after --: it is set here, or of no use here; see --help")
    if not args.run.is_dir():
        raise Problem(f"there is no folder {args.run}: give that of a run of train.sh or quickstart.sh")
    if args.fp16 or args.bf16:
        import torch

        if args.cpu or not torch.cuda.is_available():
            raise Problem(f"--{'fp16' if args.fp16 else 'bf16'} needs a GPU: leave it out")
    return args


def say(message: str) -> None:
    print(f"generate: {message}", flush=True)


def file_name(args: argparse.Namespace, subset: str, lenpen: float, *more: str) -> str:
    return ".".join([f"{subset}.beam{args.beam}.lenpen{lenpen:g}", *more, recipes.load(args.data).target])


def asked_for(run: Path, more: Extras) -> List[str]:
    """What is asked for beside the beam and the length penalty, as parts of a file's name."""
    short = {"sampling_topk": "topk", "sampling_topp": "topp", "prefix_size": "prefix"}
    found = {short.get(name, name): value for name, value in more.search.items()}
    if more.constraints:
        found["constraints"] = f"-{found['constraints']}-{more.constraints.stem}-{place(more.constraints, run)}"
    words = [name if value is True else f"{name}{value}" for name, value in found.items()]
    return words + [f"with-{folder.resolve().name}-{place(folder, run)}" for folder in more.others]


def place(path: Path, run: Path) -> str:
    """A few signs for where a file or folder lies, seen from the run: others of the same name have others."""
    return hashlib.sha256(os.path.relpath(str(path.resolve()), str(run.resolve())).encode()).hexdigest()[:6]


def record_of(out: Path) -> Path:
    """Where is told how translations were made."""
    return out.with_name(out.name + ".json")


def parts_of(out: Path) -> Path:
    """Where translations are kept until they are all there."""
    return out.with_name(out.name + ".parts")


def leave_alone(*paths: Path) -> None:
    """Refuse to write over files that are there."""
    for path in paths:
        if path.exists():
            raise Problem(f"{path} is there, and not as generate.sh wrote it: choose another --out, or move it away")


# ---- translating


def generate(
    args: argparse.Namespace,
    subset: str,
    lenpen: float,
    out: Path,
    environment: Optional[Dict[str, str]] = None,
    more: Extras = NO_EXTRAS,
) -> None:
    """Write the translations of a subset by RUN/model.pt to `out`, unless they are there already."""
    models, record = [folder / "model.pt" for folder in (args.run, *more.others)], record_of(out)
    search = {"beam": args.beam, "lenpen": lenpen, **LENGTHS, "max_tokens": args.max_tokens, **more.search}
    search = possible(search, args.data / "data-bin" / f"dict.{recipes.load(args.data).target}.txt")
    search["max_len_b"] += search.get("prefix_size", 0)
    sources: List[str] = []
    if more.constraints:
        sources, room = constrained(args.data, subset, more.constraints)
        search["max_len_b"] += room
    options = options_of(args, search)
    settings = {"model": " ".join(map(fingerprint, models)), "data": fingerprint(args.data / "manifest.json")}
    settings.update(subset=subset, options=quote(options))
    if more.constraints:
        settings["constraints"] = fingerprint(more.constraints)
    before = read_record(record) if out.exists() else {}
    if before.get("settings") == settings:
        say(f"{out} is there already")
        return

    say(f"translating {subset}, beam {args.beam}, length penalty {lenpen:g}")
    start, total = time.time(), lines(args.data, subset)
    parts = 1 if sources else number_of_parts(args, subset, total, more.part)
    folder = parts_of(out)
    if read_json(folder / "settings.json") != {**settings, "parts": parts}:
        remove(folder)
        folder.mkdir()
        write_json(folder / "settings.json", {**settings, "parts": parts})
    remove(record)  # so that it never stands beside a file that it is not of
    if sources:
        write_text(folder / "source", "".join(line + "\n" for line in sources))
        options += ["--input", str(folder / "source"), "--buffer-size", "10000"]
    command = fairseq_command("interactive" if sources else "generate", args.data, models, subset, options)
    command += ["--cpu"] * args.cpu
    log = out.with_name(out.name + ".log") if parts == 1 else folder / "log"

    def runner(command: List[str], on_line: Callable[[str], None]) -> None:
        run(command, log, on_line, environment)

    paths = [folder / str(number) for number in range(parts)]
    done = sum(1 for path in paths if path.exists() for _ in sentences([path]))
    with bar(total, "sentence", done) as shown:
        for number, path in enumerate(paths):
            if not path.exists():
                share = ["--distributed-world-size", str(parts), "--distributed-rank", str(number)] * (parts > 1)
                found = search_by(command + share, args.data, runner, shown)
                tab = " " if more.table else "\t"
                write_text(path, "".join(rows(i + 1, found[i], tab) for i in sorted(found)))
                remove(folder / "log")  # of all parts it would grow large
    check_number(sum(1 for _ in sentences(paths)), total, subset)
    with whole(out) as beside, open(beside, "w", encoding="utf-8", newline="\n") as file:
        for found_rows in sentences(paths):
            file.writelines(found_rows if more.table else [found_rows[0].split("\t", 2)[2]])
    seconds = round(time.time() - start, 1)
    typed = in_checkout(["python", *command[1:]])
    write_json(record, {"settings": settings, "command": typed, "seconds": seconds})
    remove(folder)
    say(f"wrote {out}: {total:,} sentences in {seconds:,} s")


def options_of(args: argparse.Namespace, search: Dict[str, Any]) -> List[str]:
    """The options of fairseq-generate for a search, but for the device."""
    return flags(search) + ["--fp16"] * args.fp16 + ["--bf16"] * args.bf16 + args.extra


def sentences(paths: Sequence[Path]) -> Iterator[List[str]]:
    """The rows of each sentence in turn, out of files that each have theirs in order."""

    def number(row: str) -> int:
        return int(row.partition("\t")[0])

    with ExitStack() as files:
        opened = [files.enter_context(open(path, encoding="utf-8", newline="\n")) for path in paths]
        for _, found in groupby(heapq.merge(*opened, key=number), number):
            yield list(found)


def number_of_parts(args: argparse.Namespace, subset: str, total: int, part: int) -> int:
    """Parts of about so many sentences, but no more than there are batches: fairseq cannot do a part without any."""
    manifest = read_json(args.data / "manifest.json")
    pieces = manifest.get("pieces", {}).get(f"{subset}.{manifest['settings']['source']}", total)
    return max(1, min(math.ceil(total / part), MOST_PARTS, pieces // args.max_tokens))


def best(data: Path, model: Path, subset: str, options: List[str], runner: Callable) -> List[str]:
    """One detokenised hypothesis for each sentence of a subset, in their order."""
    total = lines(data, subset)
    with bar(total, "sentence") as shown:
        found = search_by(fairseq_command("generate", data, [model], subset, options), data, runner, shown)
    check_number(len(found), total, subset)
    return [found[i][0].text for i in sorted(found)]


def fairseq_command(name: str, data: Path, models: Sequence[Path], subset: str, options: List[str]) -> List[str]:
    """fairseq-generate or fairseq-interactive, by its name, with models that take texts of any length."""
    recipe = recipes.load(data)
    for model in models:
        if os.pathsep in str(model):
            raise Problem(f"fairseq takes {model} for several files, as {os.pathsep} is in it: rename the folder")
    command = python("luna_tools.evaluation.process", name, data / "data-bin", "--user-dir", USER_DIR)
    command += ["--path", os.pathsep.join(map(str, models)), "--gen-subset", subset, "--task", "translation"]
    return command + ["--source-lang", recipe.source, "--target-lang", recipe.target, *NO_LIMITS, *options]


def search_by(command: List[str], data: Path, runner: Callable, shown: Any) -> Dict[int, List[Hypothesis]]:
    """What fairseq finds for each sentence, by its number from 0, the best first.

    Args:
        command: fairseq-generate or fairseq-interactive with its options.
        runner: runs a command and hands on its lines, as `processes.run` does.
        shown: a bar that counts the sentences.
    """
    found: Dict[int, List[Tuple[float, str]]] = {}
    too_long: List[str] = []
    too_many: List[str] = []

    def collect(text: str) -> None:
        if text.startswith("H-"):
            number, score, pieces = text[2:].rstrip("\n").split("\t")
            shown.update(int(int(number) not in found))
            found.setdefault(int(number), []).append((float(score), pieces))
        elif "max_positions=" in text and "invalid" in text:
            too_long.append(text.strip())
        elif "Sentences lengths should not exceed max_tokens" in text:
            too_many.append(text.strip())

    try:
        runner(command, collect)
    except Problem:
        if not too_long and not too_many:
            raise
    if too_many:
        raise Problem(f"a sentence has more pieces than a batch ({too_many[0]}): give a larger --max-tokens")
    if too_long:
        raise Problem(
            f"{shown.n:,} hypotheses came for the {shown.total:,} references: some sentence is longer than the model's "
            f"positions ({too_long[0]}). Learned positions end there: cut the sentence, or leave it out, and prepare "
            "the data again"
        )
    pieces = [text.split(" ") if text else [] for hypotheses in found.values() for _, text in hypotheses]
    texts = iter(recipes.load(data).decode(pieces))
    return {number: [Hypothesis(score, next(texts)) for score, _ in hypotheses] for number, hypotheses in found.items()}


def check_number(found: int, total: int, subset: str) -> None:
    if found != total:
        raise Problem(
            f"{found:,} hypotheses came for the {total:,} references of {subset}: data-bin/ and the text are not the "
            "same: prepare the data again"
        )


# ---- the text


def constrained(data: Path, subset: str, file: Path) -> Tuple[List[str], int]:
    """The sources in pieces with their constraints after tabs, for fairseq-interactive, and the room these take."""
    recipe = recipes.load(data)
    known = {line.rpartition(" ")[0] for line in read_lines(data / "data-bin" / f"dict.{recipe.target}.txt")}
    sources, constraints = list(read_lines(data / "raw" / f"{subset}.{recipe.source}")), list(read_lines(file))
    if len(constraints) != len(sources):
        raise Problem(
            f"{file} has {len(constraints):,} lines, but {subset} has {len(sources):,} sentences: give a line for "
            "each, an empty one where nothing is asked for"
        )
    found, room = [], 0
    for number, (pieces, line) in enumerate(zip(recipe.encode(sources), constraints), 1):
        texts = [text for text in line.split("\t") if text.strip()]
        if texts and not pieces:
            raise Problem(f"{file}, line {number} has constraints, but its source is empty: leave the line empty too")
        forced = [
            recipes.forced_pieces(recipe, text, known, f"{file}, line {number}: the constraint") for text in texts
        ]
        room = max(room, sum(map(len, forced)))
        found.append("\t".join(" ".join(each) for each in [pieces, *forced]))
    return found, room


def write_sources(data: Path, recipe: recipes.Recipe, path: Path, ours: Path) -> None:
    """Write the lines of raw/train.SOURCE that data-bin/ holds, which is not those of pairs with too many pieces.

    A .json beside tells of which data they are. A file that is not of generate.sh is left alone, outside of `ours`.
    """
    record, made_of = record_of(path), fingerprint(data / "manifest.json")
    known = read_record(record)
    written = path.exists() and known.get("sha256") == fingerprint(path)
    if written and known.get("data") == made_of:
        return
    name = f"train.{recipe.source}"
    raw, pieces, tokens = (data / folder / name for folder in ("raw", "pieces", "tokens"))
    kept = read_lines(pieces)
    wanted = next(kept, None)
    with whole(path) as beside:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            for line, tokenised in zip(read_lines(raw), read_lines(tokens if tokens.exists() else raw)):
                if " ".join(recipe.split([tokenised])[0]) == wanted:
                    file.write(line + "\n")
                    wanted = next(kept, None)
        now = sha256(beside)
        try:
            if wanted is not None:
                raise Problem(f"{pieces} is not of the same text as {raw}: prepare the data again")
            # those of an earlier version, or of a command that was killed here, have no record, but are the same
            same = path.exists() and fingerprint(path) == now
            if path.parent != ours and not written:
                leave_alone(*([] if same else [path]), *([] if "sha256" in known else [record]))
        except Problem:
            remove(beside)
            raise
    write_json(record, {"data": made_of, "sha256": now})
    say(f"wrote {path}: the sources")


def lines(data: Path, subset: str) -> int:
    """How many sentences a subset has, the same on both sides."""
    recipe = recipes.load(data)
    folder = data / ("pieces" if subset == "train" else "raw")  # from raw/ to pieces/ training pairs may be dropped
    paths = [folder / f"{subset}.{lang}" for lang in (recipe.source, recipe.target)]
    counts = [number_of_lines(path) for path in paths]
    if counts[0] != counts[1]:
        raise Problem(f"{paths[0]} has {counts[0]:,} lines and {paths[1]} has {counts[1]:,}: prepare the data again")
    return counts[0]


def number_of_lines(path: Path) -> int:
    return sum(1 for _ in read_lines(path))


def fingerprint(path: Path) -> str:
    """The sha256 of a file, taken once as long as it does not change."""
    facts = path.stat()
    return digest(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=None)
def digest(path: Path, *_) -> str:
    return sha256(path)


if __name__ == "__main__":
    entry("generate", main)
