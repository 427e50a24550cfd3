"""`python -m fairseq_luna --check`: what works in this environment, tried with a very small model.

This file imports the standard library alone. What it tries runs in a process of its own (`parts.py`), so that a table
comes out whatever happens there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from textwrap import fill
from typing import List, NamedTuple

from ..versions import __version__, differences, listed, verdict, versions

ROOM = 100_000_000  # bytes: more than the checkpoints take
# packages that not everything needs, and what for
OPTIONAL = {
    "triton": "kernels on a GPU",
    "matplotlib": "drawings",
    "sacremoses": "the Moses tokenizer",
    "onnxruntime": "exported models",
}


ROW = "fairseq_luna row: "  # before each line of parts.py


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        part: what was tried.
        state: "ok"; "-" where there is nothing to try; "FAILED".
        text: what was found.
        remedy: of a failure, the sentence that says what to do.
    """

    part: str
    state: str
    text: str
    remedy: str = ""


def check() -> int:
    """Print the table, each line as its part ends; 1 where something fails that should work, else 0."""
    start = time.monotonic()
    print(f"fairseq_luna {__version__}: what works in this environment\n", flush=True)
    rows = [show(of_versions()), show(of_optional())]
    try:
        with tempfile.TemporaryDirectory(prefix="fairseq-luna-check-") as folder:
            room = Path(folder) / "room"
            room.write_bytes(bytes(ROOM))  # a full disk is told before it spoils anything
            room.unlink()
            rows += tried(Path(folder))
    except OSError as error:
        todo = f"Name a folder with {ROOM // 10**6} MB of room by TMPDIR=..., then run this again."
        rows.append(show(Row("temporary folder", "FAILED", str(error), todo)))
    failed = [row for row in rows if row.state == "FAILED"]
    print()
    for todo in dict.fromkeys(row.remedy for row in failed):
        print(todo)
    if not failed:
        print(f"All that should work here works ({time.monotonic() - start:.0f} s).")
    return 1 if failed else 0


def show(row: Row) -> Row:
    """Print a line of the table, folded to the terminal's width."""
    begin = f"{row.part:<17}  {row.state:<6}  "
    width = max(40, shutil.get_terminal_size((100, 24)).columns)
    print(fill(row.text, width, initial_indent=begin, subsequent_indent=" " * len(begin)), flush=True)
    return row


def of_versions() -> Row:
    """Which versions there are, and whether they were tested together."""
    return Row("versions", "ok", f"{listed(versions())}. {verdict()}")


def of_optional() -> Row:
    """Which of the optional packages there are."""
    there, missing = [], []
    for name, use in OPTIONAL.items():
        try:
            there.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(f"{name} ({use})")
    lists = [", ".join(there), f"not installed: {', '.join(missing)}" if missing else ""]
    return Row("optional packages", "ok" if there else "-", "; ".join(filter(None, lists)))


def tried(folder: Path) -> List[Row]:
    """The rows of `parts.py`, which works in a folder."""
    rows, log = [], folder / "log"
    command = [sys.executable, "-m", f"{__name__}.parts", str(folder)]
    # more threads only wait for each other in so small a model; and torch would leave a cache in the other folder
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "TMPDIR": str(folder)}
    with open(log, "wb") as file, subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=file, encoding="utf-8"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(ROW):  # what else there is comes from some import
                rows.append(show(Row(*json.loads(line[len(ROW) :]))))
    if process.returncode:
        rows.append(show(ended(process.returncode, last_line(log))))
    return rows


def ended(code: int, last: str) -> Row:
    """What is said of a process that ended before its time, with its last line."""
    kind, _, sentence = last.partition(": ")
    if code > 0 and kind == "ImportError" and sentence.endswith("."):  # the plugin's own, which says what to do
        return Row("import", "FAILED", "the plugin cannot be imported", sentence)
    how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
    return Row("process", "FAILED", f"Python ended too early ({how}): {last or 'without a word'}", remedy())


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")


def remedy() -> str:
    """What to do about a failure that nothing more is known of."""
    apart = differences()
    if apart:
        return f"Install versions that were tested together: here that would be {listed(apart)} (docs/install.md)."
    return "These versions were tested together, so this should work: please report it, with the table above."
