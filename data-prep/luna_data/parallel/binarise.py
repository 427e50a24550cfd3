"""The last step: data-bin/, by fairseq-preprocess."""

import re
from typing import Dict

from luna_tools.paths import USER_DIR
from luna_tools.processes import python, run
from luna_tools.progress import bar

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_lines, whole
from luna_data.folder import SPLITS
from luna_data.parallel.corpus import Corpus


def binarise(corpus: Corpus, kept: Dict[str, int]) -> dict:
    """Write data-bin/.

    Args:
        kept: the lines of each file of pieces/.
    """
    corpus.say("binarising with fairseq-preprocess")
    lines = sum(kept.values())
    with whole(corpus.out / "data-bin") as folder, bar(lines, "line") as shown:
        command = python("luna_data.parallel.preprocess", "--joined-dictionary")
        command += ["--source-lang", corpus.args.source, "--target-lang", corpus.args.target]
        command += ["--user-dir", str(USER_DIR)]  # for index_large_data of fairseq_luna/compat/data.py
        if (corpus.out / "pieces" / "dict.txt").exists():
            command += ["--srcdict", str(corpus.out / "pieces" / "dict.txt")]
        for kind in SPLITS:
            alike = [str(corpus.out / "pieces" / split) for split in corpus.texts if split.startswith(kind)]
            command += [f"--{kind}pref", ",".join(alike)]
        command += ["--destdir", str(folder), "--workers", str(corpus.args.workers)]
        found: Dict[str, Dict[str, int]] = {}

        def watch(said: str) -> None:
            """Take the counts of a file that is done from the log."""
            counts = re.search(r"/pieces/([^/\s]+): (\d+) sents, (\d+) tokens, (\S+)% replaced", said)
            if counts:
                number, tokens = int(counts.group(2)), int(counts.group(3))
                unknown = round(tokens * float(counts.group(4)) / 100)
                found[counts.group(1)] = {"lines": number, "tokens": tokens, "unknown (about)": unknown}
                shown.update(number)

        run(command, corpus.out / "preprocess.log", watch)
    written = {name: counts["lines"] for name, counts in found.items()}
    if written != kept:
        raise Problem(f"fairseq-preprocess made {written} lines of {kept}: see {corpus.out / 'preprocess.log'}")
    dictionary = sum(1 for _ in read_lines(corpus.out / "data-bin" / f"dict.{corpus.args.source}.txt"))
    return {"lines": lines, "binarised": found, "dictionary": dictionary + 4}
