"""The benchmark works; what it measures is no test's concern."""

import json
import shutil
import subprocess
import sys

import pytest
from commands import ENV, ROOT, USER_DIR, run


def benchmark(*args, **options):
    return run([sys.executable, ROOT / "scripts" / "benchmark.py", *map(str, args)], **options)


@pytest.mark.parametrize(
    "command, arms, points",
    [
        ("train", ["transformer", "luna-4-untied-gaussian", "mine:luna_transformer"], ["40:80"]),
        ("decode", ["transformer", "luna-5-fullcross-softmaxdecoder-bf16", "luna-5-int8"], ["8:5:2"]),
        ("length", ["softmax", "fused", "luna-5", "mine:transformer"], ["64:64"]),
        ("operator", ["naive", "chunk-decaying", "recurrent-decaying"], ["8:100", "100:100"]),
    ],
)
def test_every_command(command, arms, points, tmp_path):
    out = tmp_path / "a folder"
    words = [command, "--quick", "--cpu", "--threads", 1, "--out", out, "--arms", *arms, "--points", *points]
    if any(arm.startswith("mine:") for arm in arms):
        # a plugin of the same name elsewhere, as an earlier version would be
        words += ["--user-dir", shutil.copytree(USER_DIR, tmp_path / "elsewhere" / USER_DIR.name)]
    shown = benchmark(*words).stdout
    report = json.loads((out / "results.json").read_text())
    assert report["machine"]["torch threads"] == 1 and report["versions"]["torch"]
    assert len(report["points"]) == len(points)
    for point in report["points"]:
        assert list(point["arms"]) == arms
        for found in point["arms"].values():
            assert found["seconds"]["median"] > 0 and found["bytes"] > 0, found
            assert found["time"]["lower quartile"] <= found["time"]["median"] <= found["time"]["upper quartile"]
            assert (found.get("seconds a token", {}).get("median", 1) > 0) and (
                ("seconds a token" in found) == (command == "decode")
            )
        assert point["arms"][arms[0]]["time"]["median"] == point["arms"][arms[0]]["memory"] == 1
    table = (out / "table.md").read_text()
    assert table in shown and table.count("\n") == 2 + len(points) * len(arms)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (out / "curves.svg").read_bytes()

    # again: nothing is measured twice, nor mixed with other settings
    before = (out / "results.json").read_bytes()
    assert table in benchmark(*words).stdout
    assert (out / "results.json").read_bytes() == before
    assert "choose another --out" in benchmark(*words, "--rounds", 3, fails=True).stderr


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
def test_bad_requests(words, message, tmp_path):
    words += ["--out", tmp_path / "out", "--cpu"] if words else []
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "benchmark.py", *map(str, words)], env=ENV, capture_output=True, text=True
    )
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode
