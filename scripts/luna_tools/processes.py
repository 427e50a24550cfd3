"""Commands that a command runs: they end with it, and what they say is kept."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from textwrap import indent
from typing import Any, Callable, Deque, Dict, List, Optional

from fairseq_luna.errors import Problem
from luna_tools.console import quote


def python(module: str, *words: object) -> List[str]:
    """The command that runs a module by this interpreter."""
    return [sys.executable, "-m", module, *map(str, words)]


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


def die_with_parent() -> None:
    """In a child on Linux: be killed when the parent is, so that a SIGKILL there leaves nothing at work here."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
