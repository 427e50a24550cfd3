"""Runs the tests that need a GPU, then measures what the plugin is to reach there, part after part.

Each part leaves what it says in PART.log, as it says it, and its tables in the folder PART; summary.md, written anew
after each part, holds the figures beside the goals. A part that fails, or takes longer than it may, does not stop those
behind it. Parts are measured anew whenever they are run; those of an earlier call stay in the summary. Where the time
does not reach for all of them, name the others with --only in a second call.

fairseq has to be there, or wheels of it and of what it needs: ve-fairseq, hydra-core, omegaconf,
antlr4-python3-runtime, bitarray, sacremoses, sacrebleu, regex, tqdm; pytest for the tests (with pytest-xdist faster);
fla-core and einops to compare with flash-linear-attention.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Tuple

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, write_json, write_text
from luna_tools.benchmark.gpu_parts import FLA, PARTS, TESTS, Part, summarise
from luna_tools.console import entry, quote, teller
from luna_tools.paths import REPO, USER_DIR
from luna_tools.run_folder import alone

say = teller("gpu-check")

QUICK = "A dry run at tiny sizes on a CPU, where operators are counted for kernels: its figures mean nothing."

LEFT_OUT = "left out: flash-linear-attention is not installed"


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    out: Path = args.out.resolve()
    with alone(out):
        environment = prepare(args, out)
        gpu = find_gpu(environment)
        if not gpu and not args.quick:
            raise Problem("torch sees no GPU here: --quick tries every part at tiny sizes on a CPU")
        states: Dict[str, str] = read_json(out / "states.json", {})
        failed = []
        for name in args.only:
            left = 60 * args.minutes - (time.monotonic() - start)
            state, seconds = run_part(name, args, out, environment, left)
            states[name] = state + f", {seconds:.0f} s" * bool(seconds)
            say(f"{name}: {states[name]}")
            if state not in ("done", LEFT_OUT):
                failed.append(name)
            write_json(out / "states.json", states)
            told = QUICK if args.quick else f"{gpu}, torch {version(environment)}."
            write_text(out / "summary.md", summarise(results(out), states, told))
        print((out / "summary.md").read_text(encoding="utf-8"))
        say(f"{time.monotonic() - start:.0f} s in all; everything is in {args.out}")
        if failed:
            raise Problem(f"failed: {', '.join(failed)}; each says why in its .log in {args.out}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu-check.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["tests", *PARTS]
    parser.add_argument(
        "--only", metavar="PART,...", type=lambda text: chosen(text, names), default=names, help=",".join(names)
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/gpu-check")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="packages to install into --out, without a network")
    parser.add_argument(
        "--minutes", type=float, default=8, metavar="N", help="when it ends, done or not (default %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="every part at tiny sizes on a CPU, to see that it works")
    args = parser.parse_args()
    args.out = args.out or Path("runs") / ("gpu-check" + "-quick" * args.quick)
    return args


def chosen(text: str, names: List[str]) -> List[str]:
    asked = text.split(",")
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}: {','.join(names)}")
    return [name for name in names if name in asked]


def prepare(args: argparse.Namespace, out: Path) -> Dict[str, str]:
    """Install the wheels, where there are some; the environment in which all parts run."""
    packages = out / "packages"
    if args.wheels:
        wheels = sorted(args.wheels.glob("*.whl"))
        if not wheels:
            raise Problem(f"there are no wheels (*.whl) in {args.wheels}")
        install(wheels, packages)
    sys.path.insert(0, str(packages))
    paths = [str(packages), str(REPO), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    tried = ask(environment, "import torch, fairseq")
    if tried.returncode:
        last = (tried.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise Problem(f"{sys.executable} cannot import torch and fairseq ({last}): put wheels into a folder, --wheels")
    return environment


def install(wheels: List[Path], packages: Path) -> None:
    """Once for the same wheels."""
    stamp, names = packages / "installed.json", [wheel.name for wheel in wheels]
    if read_json(stamp) == names:
        return
    start = time.monotonic()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    command += ["--target", str(packages), *map(str, wheels)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    if done.returncode:
        raise Problem(f"{quote(command[: -len(wheels)])} ... failed:\n{done.stdout}")
    write_json(stamp, names)
    say(f"{len(wheels)} wheels installed, {time.monotonic() - start:.0f} s")


def ask(environment: Dict[str, str], program: str) -> Any:
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, encoding="utf-8")


def find_gpu(environment: Dict[str, str]) -> str:
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return ask(environment, program).stdout.strip()


def version(environment: Dict[str, str]) -> str:
    return ask(environment, "import torch; print(torch.__version__)").stdout.strip()


def run_part(
    name: str, args: argparse.Namespace, out: Path, environment: Dict[str, str], left: float
) -> Tuple[str, float]:
    """How a part ended, and the seconds that it took."""
    if left < 5:
        return "no time was left", 0
    if name == FLA and not find_spec("fla"):
        return LEFT_OUT, 0
    start = time.monotonic()
    if name == "tests":
        log = out / "tests.log"
        state = timed(test_command(args.quick), min(left, TESTS[1]), log, {**environment, "FAILURES_GO_TO": str(log)})
    else:
        folder, part = out / name, PARTS[name]
        if (folder / "settings.json").exists():  # of an earlier call
            shutil.rmtree(str(folder))
        command = benchmark_command(part, args.quick) + ["--out", str(folder)]
        state = timed(command, min(left, part.seconds), out / f"{name}.log", environment)
    return state, time.monotonic() - start


def timed(command: List[str], limit: float, path: Path, environment: Dict[str, str]) -> str:
    """How a command ended, within so many seconds; what it says goes into a file as it says it."""
    path.write_text(f"{quote(command)}\n", encoding="utf-8")
    with open(path, "a", encoding="utf-8") as log:  # at its end, wherever that is: others may write there too
        process = subprocess.Popen(
            command,
            cwd=str(REPO),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
        finally:
            end(process)
    return f"failed, exit code {code}" if code else "done"


def end(process: "subprocess.Popen[bytes]") -> None:
    """The process and all that it has started, which share its session."""
    for kind in signal.SIGTERM, signal.SIGKILL:
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            pass
    process.wait()


def test_command(quick: bool) -> List[str]:
    """Only the files with such tests: others may need what is not installed here."""
    tests = REPO / "tests"
    files = [path for path in sorted(tests.rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--durations", "5"]
    if find_spec("pytest_benchmark"):
        command += ["-p", "no:benchmark"]  # beside xdist it warns of itself
    if find_spec("xdist") and not quick:
        command += ["-n", str(max(1, min(14, (os.cpu_count() or 1) - 2)))]  # kernels are compiled side by side
    return command + [str(path.relative_to(REPO)) for path in files]


def benchmark_command(part: Part, quick: bool) -> List[str]:
    command = [sys.executable, str(REPO / "scripts" / "benchmark.py"), part.command, "--dispatch"]
    command += ["--models", *part.models]
    if part.command != "operator":
        command += ["--user-dir", str(USER_DIR)]
    if quick:
        # fairseq does not train in fp16 on a CPU
        return command + [
            "--quick",
            "--cpu",
            "--threads",
            "1",
            "--rounds",
            "1",
            "--precision",
            "bf16",
            "--points",
            *part.quick,
        ]
    return command + ["--rounds", str(part.rounds), "--precision", part.precision, "--points", *part.points]


def results(out: Path) -> Dict[str, Any]:
    """What every part has measured so far."""
    return {name: read_json(out / name / "results.json", {}) for name in PARTS}


if __name__ == "__main__":
    entry("gpu-check", main)
