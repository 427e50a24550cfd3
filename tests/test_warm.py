"""Commands by the interpreter that has torch and fairseq imported already end as by any other."""

import os
import signal
import subprocess
import sys

import pytest
from commands import ENV, interpreter, wait_until

pytestmark = [pytest.mark.stock, pytest.mark.skipif(sys.platform != "linux", reason="it is only used on Linux")]


def interruptible():
    """As in front of a terminal, wherever the tests themselves are."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def deaf():
    """As a job of a shell in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def done(*words, python=None, **options):
    command = [python or interpreter(), *map(str, words)]
    options = {"capture_output": True, "text": True, "env": ENV, "preexec_fn": interruptible, **options}
    result = subprocess.run(command, **options)
    return result.returncode, result.stdout, result.stderr


CODES = {
    "exit": "import sys; print(sys.argv); sys.exit(3)",
    "message": "import sys; sys.exit('a word')",
    "streams": "import sys; print(sys.stdin.read().upper()); print('told', file=sys.stderr)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "place": "import os; print(os.getcwd(), os.environ['MINE'], len(os.environ))",
    "exit-functions": "import atexit; atexit.register(print, 'late')",
    "threads": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    "pool": "from concurrent.futures import ThreadPoolExecutor as T; T(1).submit(print, 'late')",
    "log": "import logging; print(logging.getLogger().handlers, logging.getLogger().level)",
    "fairseq": "import fairseq, logging; log = logging.getLogger(); print(log.level, len(log.handlers), "
    "log.handlers[0].formatter._fmt, fairseq.__spec__.origin, hasattr(fairseq, 'trainer'))",
    "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "handlers": "import signal; print([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)])",
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_code_ends_as_by_the_interpreter(code, tmp_path):
    options = {"input": "text", "cwd": str(tmp_path), "env": {**ENV, "MINE": "ä 1"}}
    (status, out, err), want = done("-c", code, "a", **options), done("-c", code, "a", python=sys.executable, **options)
    assert (status, out) == want[:2] and err.splitlines()[-1:] == want[2].splitlines()[-1:]


def test_an_interrupt_is_ignored_where_it_was():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print(signal.getsignal(signal.SIGINT))"
    assert done("-c", code, preexec_fn=deaf) == done("-c", code, python=sys.executable, preexec_fn=deaf)


def test_a_script_and_a_module(tmp_path):
    """The words, what lies beside them, and an interpreter that is warm there too."""
    (tmp_path / "beside.py").write_text("name = 'beside'\n")
    script = tmp_path / "script.py"
    script.write_text("import sys, beside\nprint(sys.argv, __name__, __file__, beside.name, sys.executable)\n")
    assert done(script, "a") == (0, f"{[str(script), 'a']} __main__ {script} beside {interpreter()}\n", "")
    assert done("-m", "beside", cwd=str(tmp_path)) == (0, "", "")
    status, _, err = done(tmp_path / "none.py")
    assert status == 1 and "none.py" in err


def test_other_options_are_the_interpreters():
    assert done("-S", "-c", "import sys; print(sys.executable)")[1].strip() == sys.executable
    assert done("-u", "-c", "import sys; print(sys.executable)")[1].strip() == interpreter()


@pytest.mark.parametrize(
    "kind, handled, begins",
    [
        (signal.SIGTERM, True, interruptible),
        (signal.SIGINT, False, interruptible),
        (signal.SIGINT, True, deaf),
        (signal.SIGKILL, False, interruptible),
    ],
)
def test_signals_arrive(kind, handled, begins):
    code = (
        "import os, signal, sys, time\n"
        f"if {handled}:\n"
        f"    signal.signal({int(kind)}, lambda *_: sys.exit(7))\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(1000)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([interpreter(), "-c", code], env=ENV, preexec_fn=begins, **pipes)
    at_work = int(process.stdout.readline())
    assert at_work != process.pid
    process.send_signal(kind)
    _, err = process.communicate()
    assert process.returncode == (7 if handled else -kind)
    assert handled or kind != signal.SIGINT or b"KeyboardInterrupt" in err
    wait_until(lambda: not os.path.exists(f"/proc/{at_work}"))
