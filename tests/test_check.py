"""`python -m fairseq_luna --check` tells what works; where something fails, what to do; and leaves nothing behind."""

import os
import re
import resource
import subprocess
import sys

import pytest
import torch
from commands import ENV, ROOT, interpreter

from fairseq_luna.check import ROOM
from fairseq_luna.versions import versions

pytestmark = pytest.mark.stock


def check(place, python=sys.executable, first=(), **options):
    """Its exit code, the rows by their parts as (state, text), and the last line; in an empty folder `place`."""
    path = os.pathsep.join(map(str, (*first, ROOT)))
    process = subprocess.run(
        [str(python), "-m", "fairseq_luna", "--check"],
        env={**ENV, "PYTHONPATH": path, "TMPDIR": str(place), "COLUMNS": "2000"},
        cwd=str(place),
        capture_output=True,
        encoding="utf-8",
        **options,
    )
    assert process.stderr == "" and not list(place.iterdir())
    title, gap, *lines = process.stdout.splitlines()
    assert title.startswith("fairseq_luna ") and gap == ""
    rows = {part: (state, text) for part, state, text in (re.split(r" {2,}", line, maxsplit=2) for line in lines[:-2])}
    assert lines[-2] == ""
    return process.returncode, rows, lines[-1]


@pytest.fixture
def place(tmp_path):
    """Where its temporary folder comes, and it runs."""
    (tmp_path / "a place").mkdir()
    return tmp_path / "a place"


@pytest.fixture
def broken(tmp_path):
    """Makes a folder with a package that does not work, in place of an installed one."""

    def write(name, code):
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / f"{name}.py").write_text(code)
        return tmp_path / "broken"

    return write


def test_all_parts_work(place):
    code, rows, last = check(place, interpreter())
    parts = "versions,optional packages,GPU,training,checkpoint,generation,half precision,fused kernels,CUDA graphs"
    assert (code, ",".join(rows)) == (0, parts) and last.startswith("All that should work here works (")
    on_gpu = "ok" if torch.cuda.is_available() else "-"
    assert {part: state for part, (state, _) in rows.items() if state != "ok"} == {
        part: on_gpu for part in ("GPU", "fused kernels", "CUDA graphs") if on_gpu != "ok"
    }
    assert f"torch {versions()['torch']}, " in rows["versions"][1]
    first, end = map(float, re.fullmatch(r"20 updates, loss (\S+) -> (\S+)", rows["training"][1]).groups())
    assert end < first / 2
    assert rows["generation"][1].startswith("10 sentences by beam search")


def test_no_fairseq(place, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    code, rows, last = check(place, tmp_path / "bare" / "bin" / "python")
    assert code == 1 and "fairseq not installed" in rows["versions"][1] and rows["import"][0] == "FAILED"
    assert last.startswith("fairseq_luna needs fairseq, which is not installed: run `pip install ")


def test_a_part_that_fails(place, broken):
    package = broken("sentencepiece", "raise RuntimeError('this one is damaged')")
    code, rows, last = check(place, interpreter(), first=[package])
    assert code == 1 and last.endswith(".") and "checkpoint" not in rows
    assert rows["training"] == ("FAILED", "RuntimeError: this one is damaged (sentencepiece.py, line 1)")


def test_a_process_that_is_killed(place, broken):
    code, rows, last = check(place, interpreter(), first=[broken("sentencepiece", "import os\nos.abort()")])
    assert code == 1 and last.endswith(".") and "training" not in rows
    state, text = rows["process"]
    assert state == "FAILED" and text.startswith("Python ended too early (killed by SIGABRT): ")


def test_no_room_for_its_files(place):
    small = ROOM - 1
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))}
    code, rows, last = check(place, **limits)
    assert code == 1 and rows["temporary folder"][0] == "FAILED" and "training" not in rows
    assert last == "Name a folder with 100 MB of room by TMPDIR=..., then run this again."
