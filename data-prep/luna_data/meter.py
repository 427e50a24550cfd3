"""Time and memory that some work takes."""

import os
import time
from pathlib import Path
from threading import Event, Thread


class Meter:
    """Seconds that passed, and the most memory that this process and all below it held at a time."""

    seconds = peak = 0.0

    def __enter__(self) -> "Meter":
        self.start, self.over = time.time(), Event()
        self.thread = Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        self.peak = memory()
        while not self.over.wait(0.2):
            self.peak = max(self.peak, memory())

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.seconds = time.time() - self.start


def memory() -> int:
    """Resident bytes of this process and of all below it; pages they share count for each. 0 where /proc is missing."""
    parents, pages = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(path.parent.name)], pages[int(path.parent.name)] = int(fields[1]), int(fields[21])

    def ours(number: int) -> bool:
        while number and number != os.getpid():
            number = parents.get(number, 0)
        return bool(number)

    return sum(size for number, size in pages.items() if ours(number)) * os.sysconf("SC_PAGE_SIZE")
