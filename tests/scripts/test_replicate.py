"""scripts/replicate-wmt14.sh: from archives on the loopback to the table, by the real commands, at the smoke size."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from commands import ENV, interpreter, run, stop_when
from mirror import make, serve

SMALL = "optimization.max_update=30", "dataset.max_tokens=1024", "checkpoint.save_interval_updates=10"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    make(folder, pairs=1500, held_out=12)
    with serve(folder) as server:
        yield server


def replicate(out: Path, mirror, *words) -> list:
    command = [interpreter(), "-m", "luna_tools.replicate", "--out", str(out), "--smoke"]
    return [*command, "--mirror", mirror.url, *words, *SMALL]


@pytest.fixture(scope="module")
def replicated(mirror, tmp_path_factory):
    """The folder, and what was said by a run that was stopped in training and begun again."""
    out = tmp_path_factory.mktemp("a folder") / "wmt14"
    process = subprocess.Popen(replicate(out, mirror), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    last = out / "wmt14_paper" / "checkpoints" / "checkpoint_last.pt"
    said = stop_when(last.exists, process, signal.SIGTERM)[0]
    assert process.returncode == 130 and b"the same command goes on" in said and b"Traceback" not in said
    assert b"DEBUG" not in said and b"Warning" not in said
    done = run(replicate(out, mirror))
    assert "DEBUG" not in done.stderr and "Warning" not in done.stderr
    return out, done.stdout


@pytest.mark.release
def test_from_the_archives_to_the_table(replicated):
    out, said = replicated
    folder = out / "wmt14_paper" / "evaluation"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert table in said
    assert report["data"]["corpus"] == "wmt14-en-de" and report["data"]["official test set"] is False
    assert (
        "(not the official test set)" in table and "| Luna, untied, softplus, l = 32 (paper) | 77.6M | 27.8 |" in table
    )
    assert report["model"]["updates"] == 30 and len(report["model"]["average of"]) == 3
    assert report["model"]["projection length"] == 32 and report["model"]["tied"] is True
    sweep = {row["lenpen"]: row["BLEU on valid"] for row in report["decoding"]["sweep"]}
    assert list(sweep) == [0.6, 1.0] and sweep[report["decoding"]["lenpen"]] == max(sweep.values())
    for name in "BLEU", "chrF2++", "TER":
        assert "version:" in report["scores"][name]["signature"]
    assert sum(bucket["sentences"] for bucket in report["BLEU by words of the source"]) == 12
    assert (folder / "bleu-by-length.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((out / "data" / "manifest.json").read_text(encoding="utf-8"))
    assert len(manifest["sources"]) == 5 and manifest["settings"]["limit"] == 2000
    assert not list(out.rglob("*.part"))


@pytest.mark.release
def test_again_it_does_nothing(replicated, mirror):
    out, _ = replicated
    requests = len(mirror.requests)
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.suffix in (".pt", ".bin", ".md", ".tgz")
    }
    assert len(before) > 10
    run(replicate(out, mirror))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(mirror.requests) == requests


@pytest.mark.release
def test_a_second_training_is_tested_against_the_first(replicated, mirror):
    out, _ = replicated
    words = "--name", "baseline", "--against", str(out / "wmt14_paper"), "model=transformer_wmt_en_de"
    assert "| **baseline: transformer_wmt_en_de" in run(replicate(out, mirror, "--config", "wmt14_adam", *words)).stdout
    report = json.loads((out / "baseline" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    tested = report["against"]["paired bootstrap"]
    assert report["against"]["name"] == "wmt14_paper" and set(tested) == {"BLEU", "chrF2++", "TER"}


def test_a_failing_step_is_named(mirror, tmp_path):
    done = run(replicate(tmp_path, mirror, "--config", "no_such_config"), fails=True)
    assert "there is no configuration no_such_config" in done.stderr
    assert "[2/3] training failed, for the reason above" in done.stderr
