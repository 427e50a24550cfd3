"""An interpreter that has torch and fairseq imported already, for the commands that tests run.

Importing torch and fairseq takes a process four seconds or more, which were most of the time of most commands here.
`python()` is the path of a program that stands for the interpreter. `SCRIPT ...`, `-m MODULE ...` and `-c CODE ...`
run in a fork of a server that has imported those and done nothing else: all code of the checkout is imported anew.
Exit status, signals, streams, folder and environment are the command's. sys.executable is
the program there too, so what a script starts is warm as well. With other options it is the interpreter itself.

A command that is to be killed should be started by the interpreter itself: here its end follows a moment after that of
the program.
"""

import array
import atexit
import importlib
import importlib.machinery
import json
import logging
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import types
from functools import lru_cache
from pathlib import Path

IMPORTED = "torch", "sacremoses", "fairseq"
WITH_A_WORD = "-c", "-m"

# not by a line #!INTERPRETER, which ends at a space
PROGRAM = """#!/bin/sh
exec {interpreter} -IS {client} "$@"
"""
CLIENT = """import sys
sys.path.insert(0, {tests!r})
sys.argv[0] = {program!r}
from warm import client
client({interpreter!r}, {path!r})
"""


@lru_cache(maxsize=None)
def python() -> str:
    """The path of the program. The server behind it ends with this process."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    path, program = os.path.join(folder.name, "socket"), os.path.join(folder.name, "python")
    beside = Path(folder.name, "client.py")
    facts = {"interpreter": sys.executable, "tests": str(Path(__file__).parent), "path": path, "program": program}
    beside.write_text(CLIENT.format(**facts), encoding="utf-8")
    words = {"interpreter": shlex.quote(sys.executable), "client": shlex.quote(str(beside))}
    Path(program).write_text(PROGRAM.format(**words), encoding="utf-8")
    os.chmod(program, 0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    words = [sys.executable, __file__, path]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert server.stdin and server.stdout
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("the server of warm interpreters did not begin, for the reason above")
    owner = os.getpid()

    def end() -> None:
        if os.getpid() == owner:  # which a fork of it is not
            server.stdin.close()
            server.wait()
            folder.cleanup()

    atexit.register(end)
    return program


# ---- the program: gives its words, streams and so on away, and lives as long as the command


def client(interpreter: str, path: str) -> None:
    words = sys.argv[1:]
    if words[:1] == ["-u"]:
        del words[0]
        os.environ["PYTHONUNBUFFERED"] = "1"
    if not words or words[0].startswith("-") and words[0] not in WITH_A_WORD:
        os.execv(interpreter, [interpreter, *words])
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
    except OSError:  # the server was killed: slower, but the same
        os.execv(interpreter, [interpreter, *words])
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as of a job in the background
    message = json.dumps([words, sys.argv[0], interpreter, os.getcwd(), dict(os.environ), ignored]).encode()
    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, lambda number, _: server.sendall(bytes([number])))
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([len(message).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    server.sendall(message)
    answer = server.recv(8)
    if not answer:
        sys.exit("the server of warm interpreters has ended before this command")
    status = int.from_bytes(answer, "big", signed=True)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


# ---- the server: forks a keeper for each program, which forks the command and waits for the end of either


class KeptFairseq:
    """Imports fairseq from what the server has of it, with the handler of logs that its import makes.

    So a fairseq elsewhere on the path of a command is not found: a test of one needs the interpreter itself.
    """

    def __init__(self) -> None:
        usual, self.logs = logging.basicConfig, []
        logging.basicConfig = lambda **words: self.logs.append(words)
        for name in IMPORTED:
            importlib.import_module(name)
        logging.basicConfig = usual
        names = [name for name in sys.modules if name.partition(".")[0] == "fairseq"]
        self.modules = {name: sys.modules.pop(name) for name in names}
        self.spec = self.modules["fairseq"].__spec__

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "fairseq" else None

    def create_module(self, spec):
        return self.modules["fairseq"]

    def exec_module(self, module) -> None:
        sys.meta_path.remove(self)
        module.__spec__ = self.spec
        sys.modules.update(self.modules)
        for words in self.logs:
            logging.basicConfig(**words)


def serve(path: str) -> None:
    sys.meta_path.insert(0, KeptFairseq())
    torch = sys.modules["torch"]
    torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports torch's compiler
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(64)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    print("ready", flush=True)
    while True:
        ready = select.select([listening, 0], [], [])[0]
        if 0 in ready:  # the tests have ended
            return
        connection = listening.accept()[0]
        if os.fork() == 0:
            listening.close()
            keep(connection)
        connection.close()


def keep(connection: socket.socket) -> None:
    ended, ending = os.pipe()
    os.set_blocking(ending, False)
    signal.set_wakeup_fd(ending)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    size, (passed,), *_ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    streams, message = array.array("i", passed[2]), b""
    while len(message) < int.from_bytes(size, "big"):
        message += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        command(*json.loads(message.decode()))
    for stream in (*streams, 0, 1, 2):
        os.close(stream)
    while True:
        if ended in select.select([connection, ended], [], [])[0]:
            status = os.waitpid(child, 0)[1]
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            connection.sendall(code.to_bytes(8, "big", signed=True))
            os._exit(0)
        asked = connection.recv(1)  # a signal, or nothing where the program was killed
        os.kill(child, asked[0] if asked else signal.SIGKILL)
        if not asked:
            os._exit(0)


def command(words: list, program: str, interpreter: str, folder: str, environment: dict, ignored: bool) -> None:
    """Becomes the command, to its end."""
    import threading

    begin(program, interpreter, folder, environment, ignored)
    status = 0
    try:
        run(words, environment)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if not isinstance(ended.code, (int, type(None))):
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # as multiprocessing ends its forks
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        status = 120
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def begin(program: str, interpreter: str, folder: str, environment: dict, ignored: bool) -> None:
    """The streams, handlers, folder and environment of a new process, in which Ctrl-C may be `ignored`."""
    import multiprocessing.spawn

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    at_once = bool(environment.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = open(number, "w" if number else "r", encoding="utf-8", errors=errors, closefd=False)
        stream.reconfigure(line_buffering=at_once or name == "stderr", write_through=at_once and number > 0)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    multiprocessing.spawn.set_executable(interpreter)  # as it hands files on to its children
    sys.executable = program


def run(words: list, environment: dict) -> None:
    import runpy

    first, *rest = words
    place = {"-c": "", "-m": os.getcwd()}.get(first, os.path.dirname(os.path.realpath(first)))
    given = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [place, *given, *(path for path in sys.path if path not in given)]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        sys.argv, code = ["-c", *rest[1:]], compile(rest[0], "<string>", "exec")
    else:
        sys.argv, code = words, compile(Path(first).read_bytes(), first, "exec")
        main.__file__ = first
    exec(code, main.__dict__)


if __name__ == "__main__":
    del sys.path[0]  # what stands beside this file stands beside no command
    serve(sys.argv[1])
