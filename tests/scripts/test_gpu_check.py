"""scripts/gpu-check.sh without a GPU: every part runs, what fails or hangs stops no other, the goals are compared."""

import json
import os
import subprocess
import sys
import zipfile

import pytest
from commands import ENV, HANGS, ROOT, processes_with, run, wait_until
from luna_tools.benchmark import gpu_check
from luna_tools.benchmark.gpu_parts import GOALS, PARTS, TESTS, Goal, is_met, ratio, summarise


def check(*args, **options):
    return run([sys.executable, "-m", "luna_tools.benchmark.gpu_check", *map(str, args)], **options)


@pytest.mark.release
def test_a_dry_run(tmp_path):
    """One part in this suite; `bash scripts/gpu-check.sh --quick` runs all of them."""
    out = tmp_path / "an out"
    done = check("--quick", "--only", "operator", "--out", out)
    assert "gpu-check: operator: done, " in done.stdout and "s in all" in done.stdout
    summary = (out / "summary.md").read_text()
    assert summary in done.stdout and "its figures mean nothing" in summary
    assert "| operator | length 64, tokens 64 | speed | luna-16 | sdpa | " in summary
    assert "| train-30 | an update at 30 tokens, fp16 | not run |" in summary
    assert (out / "operator" / "table.md").read_text() in (out / "operator.log").read_text()

    # again, after a part of another call: measured anew, and the other's state is kept
    states = json.loads((out / "states.json").read_text())
    (out / "states.json").write_text(json.dumps({**states, "train-30": "done, 20 s"}))
    done = check("--quick", "--only", "operator,operator-fla", "--out", out, "--minutes", "0.001", fails=True)
    assert "failed: operator, operator-fla" in done.stderr
    summary = (out / "summary.md").read_text()
    assert "no time was left" in summary and "fp16 | done, 20 s |" in summary


def test_a_part_ends_in_time_with_all_that_it_started(tmp_path):
    def timed(program, limit=60.0):
        return gpu_check.timed([sys.executable, "-c", program], limit, tmp_path / "log", dict(ENV))

    assert timed("print('a word')") == "done"
    assert (tmp_path / "log").read_text().endswith("a word\n")
    assert timed("raise SystemExit(3)") == "failed, exit code 3"
    # a child that would hold the GPU, and does not care to be asked
    child = f"{tmp_path}/child"
    program = (
        "import signal, subprocess, sys, time\n"
        f"code = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(987)  # {child}'\n"
        "subprocess.Popen([sys.executable, '-c', code])\n"
        "time.sleep(987)\n"
    )
    assert timed(program, 3) == "stopped after 3 s"
    wait_until(lambda: not processes_with(child))


@pytest.mark.release
def test_failures_are_told_at_once(tmp_path):
    """Where the tests are stopped, the log says what has failed so far."""
    log, tests = tmp_path / "tests.log", tmp_path / "test_some.py"
    tests.write_text(
        "import time\n\n\ndef test_fails():\n    assert not 'the reason'\n\n\ndef test_sees_it():\n"
        f"    while 'the reason' not in open({str(log)!r}).read():\n        time.sleep(0.1)\n"
    )
    environment = {**ENV, "FAILURES_GO_TO": str(log), "PYTHONPATH": str(ROOT / "tests")}
    for name in "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS":  # of whoever runs this test
        environment.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-n", "2", "-p", "conftest", "-p", "no:cacheprovider", str(tests)]
    assert gpu_check.timed(command, HANGS, log, environment) == "failed, exit code 1"
    text = log.read_text()
    assert "1 failed, 1 passed" in text and text.count("assert not 'the reason'") > 1


def test_the_tests_that_need_a_gpu_are_found():
    command = gpu_check.test_command(quick=True)
    assert "tests/ops/test_ops.py" in command and "tests/ops/test_dispatch.py" not in command


def measured(seconds, memory, kernels, gpu_ms):
    launched = {"kernels": kernels, "launches": kernels, "gpu ms": gpu_ms}
    return {"time": {"median": seconds}, "seconds": {"median": seconds}, "bytes": memory, "launched": launched}


def test_goals():
    models = {"transformer": measured(1.0, 100, 1000, 20.0), "luna-16": measured(0.5, 110, 900, 5.0)}
    models["broken"] = {"error": "out of memory"}
    found = {
        (measure, model): ratio(Goal("train-30", 0, measure, model, "transformer", 1.0), models)
        for measure in ("time", "speed", "memory", "kernels")
        for model in ("luna-16", "broken", "absent")
    }
    assert {measure: found[measure, "luna-16"] for measure, _ in found} == {
        "time": 0.5,
        "speed": 2.0,
        "memory": 1.1,
        "kernels": 0.9,
    }
    assert {value for (_, model), value in found.items() if model != "luna-16"} == {None}
    assert [is_met(Goal("", 0, *words, 1.0), 1.1) for words in (("time", "", ""), ("speed", "", ""))] == [False, True]

    text = summarise(
        {"train-30": {"points": [{"length": 30, "tokens": 8192, "arms": models}]}}, {"tests": "done"}, "A GPU."
    )
    assert "| train-30 | length 30, tokens 8,192 | time | luna-16 | transformer | 0.50 | 0.25 | <= 1 | met |" in text
    assert "| memory | luna-16 | transformer | 1.10 |  | <= 1 | missed |" in text
    assert "local | transformer |  |  | <= 1.1 | not measured |" in text


def test_goals_are_of_models_and_points_that_are_measured():
    for goal in GOALS:
        part = PARTS[goal.part]
        assert {goal.model, goal.beside} <= set(part.models) and goal.at < len(part.points), goal
    assert TESTS[1] <= 480 and all(part.seconds <= 480 for part in PARTS.values())


@pytest.mark.parametrize(
    "words, message",
    [
        (["--only", "tests,train"], "there is no part 'train': tests,train-30,"),
        (["--only", "operator"], "torch sees no GPU here: --quick tries every part"),
        (["--quick", "--wheels", "/no where"], "there are no wheels (*.whl) in /no where"),
    ],
)
def test_bad_requests(words, message, tmp_path, monkeypatch):
    monkeypatch.setitem(ENV, "CUDA_VISIBLE_DEVICES", "")
    shown = check(*words, "--out", tmp_path / "out", fails=True).stderr
    assert message in shown and "Traceback" not in shown


def test_wheels_are_installed_without_a_network(tmp_path, monkeypatch):
    """Once, into the folder of what is measured."""
    name = "some_package-1.0-py3-none-any.whl"
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / name, "w") as wheel:
        info = "some_package-1.0.dist-info"
        wheel.writestr("some_package.py", "here = True\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    wheels = [tmp_path / "wheels" / name]
    gpu_check.install(wheels, tmp_path / "packages")
    installed = tmp_path / "packages" / "some_package.py"
    assert installed.read_text() == "here = True\n"
    installed.unlink()
    gpu_check.install(wheels, tmp_path / "packages")
    assert not installed.exists()


def test_help_needs_no_environment():
    shown = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu-check.sh"), "--help"], stdout=subprocess.PIPE, check=True, encoding="utf-8"
    ).stdout
    assert "usage: gpu-check.sh" in shown and "tests,train-30," in shown


def test_a_python_that_sees_a_gpu_is_taken_as_it_is(tmp_path):
    (tmp_path / "python3").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "runs $*"\n')
    (tmp_path / "python3").chmod(0o755)
    shown = subprocess.run(
        ["bash", str(ROOT / "scripts" / "gpu-check.sh"), "--only", "operator"],
        env={**ENV, "PATH": f"{tmp_path}{os.pathsep}{ENV['PATH']}"},
        stdout=subprocess.PIPE,
        check=True,
        encoding="utf-8",
    ).stdout
    assert shown == "runs -m luna_tools.benchmark.gpu_check --only operator\n"
