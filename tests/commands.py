"""fairseq's commands as a user's shell runs them."""

import multiprocessing.connection
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch
import warm

import fairseq_luna

USER_DIR = Path(fairseq_luna.__file__).parent
ROOT = USER_DIR.parent
HANGS = 1200  # seconds after which something is taken to hang: no test takes as long on a busy machine
SOON = 100  # seconds in which a process ends once another has, for which it may wait
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}


def fairseq(name, *args):
    """The words of a fairseq command with the plugin: fairseq("train", ...)."""
    return [sys.executable, "-m", f"fairseq_cli.{name}", *map(str, args), "--user-dir", str(USER_DIR)]


def interpreter() -> str:
    """A Python that has torch and fairseq imported already, where the system can have one."""
    return warm.python() if sys.platform == "linux" else sys.executable


def warmed(command: list, options: dict) -> list:
    """A command, if of Python by one that has torch and fairseq imported already."""
    if command[0] == sys.executable and "preexec_fn" not in options:  # which would run in another process
        return [interpreter(), *command[1:]]
    return command


def run(command, fails=False, **options):
    """Runs a command to its end and returns what it did; `fails` says whether it ought to fail."""
    done = subprocess.run(warmed(command, options), env=ENV, capture_output=True, text=True, **options)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def script(name: str, *args) -> list:
    """The words of a script of the checkout, by its module or its file: luna_tools.training.command."""
    place = [str(ROOT / name)] if name.endswith(".py") else ["-m", name]
    return [sys.executable, *place, *map(str, args)]


def start(name: str, *args, **options) -> subprocess.Popen:
    """A script at work, its output text unless `encoding` is None."""
    return begun(script(name, *args), **options)


def begun(command: list, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **{**pipes, "env": ENV, "encoding": "utf-8", **options})


def outputs(name: str, *args, text=None, code: int = 0, **options) -> tuple:
    """Runs a script to its end, with `text` to read; what it wrote to stdout and to stderr."""
    options["stdin"] = subprocess.DEVNULL if text is None else subprocess.PIPE
    process = begun(warmed(script(name, *args), options), **options)
    out, err = process.communicate(text, timeout=HANGS)
    assert process.returncode == code and "Traceback" not in str(err), f"{out}{err}"
    return out, err


def call(name: str, *args, code: int = 0, **options) -> str:
    """Runs a script to its end; what it said on stdout, and on stderr too where it ought to fail."""
    out, err = outputs(name, *args, code=code, **options)
    return out + err if code else out


def in_children(*calls):
    """The exit codes of forked processes (fresh ones would spend seconds on imports) that each make a call."""

    def child(action, *args):
        torch.set_num_threads(1)  # threads do not survive a fork
        action(*args)

    processes = [multiprocessing.get_context("fork").Process(target=child, args=call) for call in calls]
    for process in processes:
        process.start()
    deadline = time.time() + HANGS
    left = processes
    while left and time.time() < deadline:
        multiprocessing.connection.wait([process.sentinel for process in left], timeout=1)
        left = [process for process in processes if process.exitcode is None]
        if any(process.exitcode for process in processes):  # the others may wait for it, and would for long
            deadline = min(deadline, time.time() + SOON)
    codes = [process.exitcode for process in processes]  # None where it hangs
    for process in processes:
        process.kill()
    return codes


def in_child(action, *args):
    """The exit code of `action(*args)` in a forked process."""
    return in_children((action, *args))[0]


def cli(module, *args):
    """A fairseq command in this process, by its module: cli(fairseq_cli.train, ...)."""
    sys.argv = [module.__name__, *map(str, args)]
    module.cli_main()


def assert_resumes(folder: Path, data: Path, *words) -> None:
    """That a training of 7 updates is the same, to the bit, where it ends after 3 and continues.

    Args:
        folder: for the checkpoints.
        data: what fairseq-train reads.
        words: its other options.
    """
    import fairseq_cli.train

    for name, stops in ("whole", [7]), ("parted", [3, 7]):
        for updates in stops:
            ends = "--max-update", updates, "--save-interval-updates", updates, "--save-dir", folder / name
            command = data, "--user-dir", USER_DIR, *words, *ends, "--log-format", "none", "--cpu"
            assert in_child(cli, fairseq_cli.train, *command) == 0
    whole, parted = (torch.load(str(folder / name / "checkpoint_last.pt")) for name in ("whole", "parted"))
    assert whole["optimizer_history"][-1]["num_updates"] == parted["optimizer_history"][-1]["num_updates"] == 7
    different = [key for key, value in whole["model"].items() if not torch.equal(value, parted["model"][key])]
    assert not different and whole["model"].keys() == parted["model"].keys()


def wait_until(condition: Callable[[], bool], process: Optional[subprocess.Popen] = None) -> None:
    """Returns once `condition()` holds, which `process`, if given, brings about before it ends."""
    deadline = time.time() + HANGS
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended and not condition():  # it may have come about just before the end
            raise AssertionError(f"this has ended by itself, with {process.returncode}: {last_words(process)}")
        if time.time() > deadline:
            if process is not None:
                process.kill()
            raise AssertionError("this hangs")
        time.sleep(0.02)


def last_words(process: subprocess.Popen, within: float = 10) -> tuple:
    """What a process said on stdout and stderr, to its end or for so many seconds.

    They stay open beyond its end where another process has them too.
    """
    try:
        return process.communicate(timeout=within)
    except subprocess.TimeoutExpired as error:
        return error.stdout, error.stderr


def stop_when(condition: Callable[[], bool], process: subprocess.Popen, how=signal.SIGKILL) -> tuple:
    """Sends a signal to a process once `condition()` holds; what it said on stdout and stderr."""
    wait_until(condition, process)
    process.send_signal(how)
    return process.communicate(timeout=HANGS)


@contextmanager
def writer_stopped(path: Path) -> Iterator[Callable[[], bool]]:
    """Meanwhile a file that is to be written is a pipe that nobody empties.

    So its writer stops after some 64 KiB, however fast it is. Yields a function that tells whether one has begun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(str(path))
    reader = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    try:
        yield lambda: bool(poll.poll(0))
    finally:
        os.close(reader)
        path.unlink()


def processes_with(text: str, file: str = "cmdline") -> list:
    """The ids of processes whose command, or with "environ" whose environment, holds a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (folder / file).read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass  # it has ended meanwhile, or is somebody else's
    return found


WORDS = "the a red blue old house tree sees finds and under over cat dog we they".split()


def prepared(folder: Path, *options: str) -> Path:
    """Prepared data of 300 pairs of 3 to 11 words, in FOLDER/data."""
    for split, size in ("train", 300), ("valid", 12), ("test", 8):
        for lang, step in ("en", 1), ("de", -1):
            lines = (
                " ".join([WORDS[(i * k * k + k) % len(WORDS)] for k in range(3 + i % 9)][::step]) for i in range(size)
            )
            (folder / f"{split}.{lang}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", str(folder / split))]
    languages = ["--source", "en", "--target", "de", "--vocab-size", "320", "--workers", "1"]
    call("luna_data.parallel.prepare_corpus", *splits, *languages, "--out", folder / "data", *options)
    return folder / "data"
