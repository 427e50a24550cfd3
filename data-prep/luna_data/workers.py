"""Work on blocks of lines, in all processes.

The results come in the order of the blocks, whatever the number of processes, and few blocks are held at a time.
"""

import multiprocessing
import os
import signal
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional, Tuple

from luna_tools.processes import die_with_parent

from fairseq_luna.errors import Problem
from fairseq_luna.text.recipes import RECIPES, Recipe

BLOCK = 2_000  # lines that go to a process at once, unless these have so many
BLOCK_LENGTH = 4_000_000  # characters or bytes

here: Dict[str, Recipe] = {}  # the recipe that this process works with


def blocks(items: Iterable) -> Iterator[list]:
    """The lines, or pairs of them, by so many that neither their number nor their length grows large."""
    block: list = []
    room = BLOCK_LENGTH
    for item in items:
        block.append(item)
        room -= len(item) if isinstance(item, str) else sum(map(len, item))
        if len(block) == BLOCK or room < 0:
            yield block
            block, room = [], BLOCK_LENGTH
    if block:
        yield block


def spread(work: Callable, items: Iterable, workers: int, recipe: Optional[Recipe] = None) -> Iterator:
    """`work` on each item, in order, by so many processes that hold the recipe; few items are under way at a time."""
    if workers == 1:
        hold(recipe)
        yield from map(work, items)
        return
    with processes(workers, recipe) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def apart(work: Callable, *args: Any) -> Any:
    """The result of `work` in a process of its own, which gives all its memory back."""
    with processes(1) as pool:
        return pool.submit(work, *args).result()


@contextmanager
def processes(workers: int, recipe: Optional[Recipe] = None) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    # in words: to take in one of its objects, a process would import the whole plugin
    told = (recipe.name, str(recipe.folder), recipe.source, recipe.target) if recipe else None
    try:
        with ProcessPoolExecutor(workers, context, initializer=begin, initargs=(os.getpid(), told)) as pool:
            try:
                yield pool
            except BaseException:
                for process in multiprocessing.active_children():  # else the pool waits for what they are at
                    process.kill()
                raise
    except BrokenProcessPool:
        raise Problem(
            "a process at work was killed, probably for want of memory: the same command goes on from there; "
            "fewer --workers need less"
        ) from None


def begin(parent: int, told: Optional[Tuple[str, str, str, str]]) -> None:
    """In a process that starts: end with the one that started it, and leave Ctrl-C to that."""
    die_with_parent()
    if os.getppid() != parent:  # which was killed before that took hold
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not sys.stderr.isatty():
        os.environ["TQDM_MININTERVAL"] = "60"  # for the bar of subword-nmt, which would fill a log
    if told:
        name, folder, source, target = told
        hold(RECIPES[name](Path(folder), source, target))


def hold(recipe: Optional[Recipe]) -> None:
    if recipe:
        here["recipe"] = recipe
