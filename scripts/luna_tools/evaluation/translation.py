"""The translations of a subset in a file, made in parts."""

import argparse
import heapq
import math
import time
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

from fairseq_luna.files import read_json, remove, whole, write_json, write_text
from fairseq_luna.text import recipes
from luna_tools.console import in_checkout, quote
from luna_tools.evaluation.decoding import possible, rows
from luna_tools.evaluation.records import parts_of, record_of, say
from luna_tools.evaluation.search import LENGTHS, check_number, fairseq_command, options_of, search_by
from luna_tools.evaluation.texts import constrained, lines
from luna_tools.processes import run
from luna_tools.progress import bar
from luna_tools.run_folder import fingerprint, read_record

PART = 5_000  # sentences: minutes of work on a CPU, seconds on a GPU
MOST_PARTS = 500  # files that are open at once when the parts are put together


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
