"""What all commands share at their edge: how they end, and what they read and say."""

import argparse
import logging
import os
import shlex
import signal
import sys
from typing import Any, Callable, List, Sequence

from fairseq_luna.errors import Problem
from luna_tools.paths import PACKAGES, REPO


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

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt("stopped; the same command goes on from here")

    for kind in signal.SIGINT, signal.SIGTERM:
        signal.signal(kind, interrupted)


def teller(name: str) -> Callable[[str], None]:
    """What prints the messages of a command, each after its name."""

    def say(message: str) -> None:
        print(f"{name}: {message}", flush=True)

    return say


def tell_name(before: str, now: str) -> None:
    """Say on stderr what is called by another name now."""
    print(f"{before} is now called {now}. The old name still works.", file=sys.stderr, flush=True)


class Former(argparse.Action):
    """The former name of an option. It works and tells the name of today; --help does not list it.

    Args:
        now: the option as it is today, as `add_argument` returned it.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, now: argparse.Action) -> None:
        shared = {name: getattr(now, name) for name in ("dest", "nargs", "default", "type", "choices")}
        super().__init__(option_strings, **shared, metavar=now.metavar, help=argparse.SUPPRESS)
        self.now = now.option_strings[0]

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        tell_name(str(option_string), self.now)
        setattr(namespace, self.dest, values)


def count(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but is {number}")
    return number


def quote(command: List[str]) -> str:
    """A command as one would type it, with the places of our packages where it runs a module of them."""
    return _typed(command, str)


def in_checkout(command: List[str]) -> str:
    """A command as one would type it in the checkout: a record tells nobody where that is."""
    return _typed(command, lambda word: str(word).replace(f"{REPO}/", ""))


def _typed(command: List[str], shown: Callable[[Any], str]) -> str:
    words = " ".join(shlex.quote(shown(word)) for word in command)
    if not any(word.startswith(tuple(f"{name}." for name in PACKAGES)) for word in command):
        return words
    return f"PYTHONPATH={shlex.quote(os.pathsep.join(map(shown, PACKAGES.values())))} {words}"
