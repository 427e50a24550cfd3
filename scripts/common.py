"""What the scripts share: errors for the user, files, folders of runs, running commands."""

import ctypes
import fcntl
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from argparse import Namespace
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional

import light  # noqa: F401  before what it lends

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, read_lines, remove, sha256, whole, write_json, write_text  # noqa: F401
from fairseq_luna.renamed import current
from fairseq_luna.versions import versions  # noqa: F401

REPO = Path(__file__).resolve().parent.parent
USER_DIR = REPO / "fairseq_luna"


def entry(name: str, main: Callable[[], None]) -> None:
    """Run `main`; a Problem, a full disk, Ctrl-C or a closed pipe ends it with a message and no traceback.

    What the package warns of comes as a message of the script, too.
    """
    handler, log = logging.StreamHandler(), logging.getLogger("fairseq_luna.generation")
    handler.setFormatter(logging.Formatter(f"{name}: %(message)s"))
    log.handlers, log.propagate = [handler], False
    try:
        main()
        sys.stdout.flush()
    except Problem as problem:
        sys.exit(f"{name}: {problem}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt as interrupt:
        print(f"\n{name}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        sys.exit(130)
    finally:
        log.handlers, log.propagate = [], True


def go_on_later() -> None:
    """Have Ctrl-C and SIGTERM end this process, and what it runs, in the same way, with the same word of comfort."""

    def interrupted(*_) -> None:
        raise KeyboardInterrupt("stopped; the same command goes on from here")

    for kind in signal.SIGINT, signal.SIGTERM:
        signal.signal(kind, interrupted)


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """One command at a time in a folder; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise Problem(f"another run is at work in {folder}: wait for it, or choose another folder") from None
        yield


def read_record(path: Path) -> dict:
    """What a script noted there of its output; nothing where no file is, or one that is not of a script."""
    try:
        found = read_json(path, {})
    except (ValueError, IsADirectoryError):  # no JSON, or no text
        return {}
    return found if isinstance(found, dict) else {}


def claim(folder: Path, settings: dict) -> None:
    """Make `folder` one of ours by its settings.json, so that nobody else's files are ever overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    if not path.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise Problem(f"{folder} holds files that are not of an earlier run: choose another --out")
    write_json(path, settings)


def differences(old: dict, new: dict) -> List[str]:
    """Which entries differ between two dictionaries of settings, each as a phrase. A former name is no difference."""
    return [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for key in sorted({*old, *new})
        if current(key, old.get(key)) != current(key, new.get(key))
    ]


def die_with_parent() -> None:
    """In a child on Linux: be killed when the parent is, so that a SIGKILL there leaves nothing at work here."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command: List[str], **options: Any) -> subprocess.Popen:
    """Start a command that ends with this process.

    A signal that comes meanwhile is heeded after that: Python ignores exceptions in what it does at a fork, and so
    would lose the one that a signal raises.
    """
    came: List[int] = []
    main = threading.current_thread() is threading.main_thread()  # no other runs handlers
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM) if main}
    handlers = {kind: handler for kind, handler in handlers.items() if callable(handler)}
    for kind in handlers:
        signal.signal(kind, lambda number, _: came.append(number))
    try:
        return subprocess.Popen(command, preexec_fn=die_with_parent, **options)
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def run(
    command: List[str],
    log: Path,
    on_line: Callable[[str], None] = lambda line: None,
    environment: Optional[Dict[str, str]] = None,
) -> None:
    """Run a command, its output appended to `log` and handed on line by line; a Problem when it fails."""
    with open(log, "a", encoding="utf-8") as file:
        if file.tell():
            file.write("\n")  # the run before may have been killed in the middle of a line
        process = start(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env={**(environment or os.environ), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
        )
        tail: Deque[str] = deque(maxlen=20)
        assert process.stdout
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                tail.append(line[:300])
                on_line(line)
        except BaseException:
            process.terminate()
            raise
        finally:
            code = process.wait()
    if code:
        raise Problem(
            f"this command failed ({f'exit code {code}' if code > 0 else f'killed by signal {-code}'}):\n\n"
            f"  {quote(command)}\n\nthe last lines of {log}:\n\n{indent(''.join(tail), '  ')}\n"
            "Mend what they name; the same command then goes on from there."
        )


def quote(command: List[str]) -> str:
    """A command as one would type it."""
    return " ".join(shlex.quote(word) for word in command)


def import_plugin(user_dir: Optional[str] = None) -> None:
    """Import fairseq and fairseq_luna, or another plugin in its place.

    Ours registers its models and lets torch load fairseq's checkpoints.
    """
    from fairseq.utils import import_user_module

    import_user_module(Namespace(user_dir=user_dir or str(USER_DIR)))
    logging.getLogger().setLevel(logging.WARNING)


def machine(cpu: bool) -> dict:
    """What a report says of the machine; `cpu` where its GPU was left alone."""
    import torch

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() and not cpu else None,
    }


def cpu_name() -> str:
    try:
        lines = read_lines(Path("/proc/cpuinfo"))
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
