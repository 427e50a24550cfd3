"""The benchmark works; what it measures is no test's concern."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest
from commands import ROOT, USER_DIR, run, script

import fairseq_luna  # noqa: F401  torch and fairseq are then there for processes that are forked

sys.path.insert(0, str(ROOT / "scripts"))
import benchmark  # noqa: E402
from common import entry  # noqa: E402


class Forks:
    """Processes that are forked, as multiprocessing has them, and hold no other's pipe open."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("fork")
        self.ours: list = []

    def Pipe(self) -> tuple:
        ours, theirs = self.context.Pipe()
        self.ours.append(ours)
        return ours, theirs

    def Process(self, target, args, daemon):
        return self.context.Process(target=self.child, args=(target, *args), daemon=daemon)

    def child(self, target, *args) -> None:
        for connection in self.ours:
            connection.close()
        target(*args)


@pytest.fixture
def forked(monkeypatch):
    """benchmark.py in this process, its arms in forked ones: fresh ones would spend seconds on imports."""
    forks = Forks()
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: forks)
    monkeypatch.setattr(benchmark, "go_on_later", lambda: None)

    def call_it(*words) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, words)])
        entry("benchmark", benchmark.main)

    return call_it


def check(out: Path, command: str, arms: list, points: list) -> str:
    """What a folder of measurements holds; its table."""
    report = json.loads((out / "results.json").read_text())
    assert report["machine"]["torch threads"] == 1 and report["versions"]["torch"]
    assert len(report["points"]) == len(points)
    for point in report["points"]:
        assert list(point["arms"]) == arms
        for found in point["arms"].values():
            assert found["seconds"]["median"] > 0 and found["bytes"] >= 0, found
            assert found["time"]["lower quartile"] <= found["time"]["median"] <= found["time"]["upper quartile"]
            assert (found.get("seconds a token", {}).get("median", 1) > 0) and (
                ("seconds a token" in found) == (command == "decode")
            )
        assert point["arms"][arms[0]]["time"]["median"] == 1
    table = (out / "table.md").read_text()
    assert table.count("\n") == 2 + len(points) * len(arms)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (out / "curves.svg").read_bytes()
    return table


def quick(command: str, arms: list, points: list, out: Path) -> list:
    return [command, "--quick", "--cpu", "--threads", 1, "--out", out, "--arms", *arms, "--points", *points]


def test_a_measurement(tmp_path):
    """By the real command, memory included; with a plugin of the same name elsewhere, such as an earlier version."""
    out, arms, points = tmp_path / "a folder", ["transformer", "mine:luna_transformer"], ["40:80"]
    words = [*quick("train", arms, points, out), "--user-dir"]
    words.append(shutil.copytree(USER_DIR, tmp_path / "elsewhere" / USER_DIR.name))
    shown = run(script("scripts/benchmark.py", *words)).stdout
    assert check(out, "train", arms, points) in shown
    ((first, second),) = (point["arms"].values() for point in json.loads((out / "results.json").read_text())["points"])
    assert first["bytes"] > 0 and second["bytes"] > 0 and first["memory"] == 1


@pytest.mark.parametrize(
    "command, arms, points",
    [
        ("train", ["transformer", "luna-4-untied-gaussian"], ["40:80"]),
        ("decode", ["transformer", "luna-5-fullcross-softmaxdecoder-bf16", "luna-5-int8"], ["8:5:2"]),
        ("length", ["softmax", "fused", "luna-5"], ["64:64"]),
        ("operator", ["naive", "chunk-decaying", "recurrent-decaying"], ["8:100", "100:100"]),
    ],
)
def test_every_command(forked, capsys, command, arms, points, tmp_path):
    out = tmp_path / "a folder"
    words = quick(command, arms, points, out)
    forked(*words)
    table = check(out, command, arms, points)
    assert table in capsys.readouterr().out

    # again: nothing is measured twice, nor mixed with other settings
    before = (out / "results.json").read_bytes()
    forked(*words)
    assert table in capsys.readouterr().out and (out / "results.json").read_bytes() == before
    with pytest.raises(SystemExit, match="choose another --out"):
        forked(*words, "--rounds", 3)


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "--arms", "luna-x"], "there is no arm luna-x here: luna-L"),
        (["train", "--arms", "luna-16-bf16"], "there is no arm luna-16-bf16 here"),
        (["train", "--arms", "mine:some_arch"], "mine:some_arch needs --user-dir"),
        (["train", "--quick", "--arms", "luna-0"], "--projection-length must be at least 1"),
        (["train", "--user-dir", "/no where", "--arms", "mine:some_arch"], "/no where"),
        (["train", "--quick", "--dim", "30", "--heads", "4"], "--heads 4 does not divide --dim 30"),
        (["train", "--vocab", "4"], "--vocab must be at least 5, of which four are special, but is 4"),
        (["train", "--points", "30"], "'30' is not LENGTH:TOKENS"),
        (["decode", "--rounds", "0"], "--rounds must be at least 1, but is 0"),
        (["train", "--arms", "luna-16", "luna-16"], "--arms names an arm twice"),
        ([], "required"),
    ],
)
def test_bad_requests(forked, capsys, words, message, tmp_path):
    words += ["--out", tmp_path / "out", "--cpu"] if words else []
    with pytest.raises(SystemExit) as ended:
        forked(*words)
    said = capsys.readouterr()
    assert message in f"{said.out}{said.err}{ended.value}" and "Traceback" not in said.out + said.err
    assert ended.value.code
