"""Parallel text as it is read and written: files, members of archives, pairs of lines."""

import tarfile
from contextlib import ExitStack
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, TextIO, Tuple

from fairseq_luna.errors import Problem

Pairs = Iterator[Tuple[Any, Any]]


class Text(NamedTuple):
    """One side of some parallel text: a file, or a member of a tar archive."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.member} of {self.path}" if self.member else str(self.path)

    def lines(self) -> Iterator[bytes]:
        if not self.member:
            with open(self.path, "rb") as file:
                yield from file
            return
        try:
            with tarfile.open(str(self.path), "r|gz") as archive:  # as a stream: nothing is unpacked to the disk
                for entry in archive:
                    if entry.name.lstrip("./") == self.member:
                        yield from archive.extractfile(entry)  # type: ignore[misc]
                        return
        except (tarfile.TarError, EOFError, OSError) as error:
            raise Problem(f"{self.path} cannot be read ({error}): remove it, and it is fetched again") from None
        raise Problem(f"{self.path} holds no {self.member}: is it the right archive?")


def pairs(source: Text, target: Text, limit: Optional[int]) -> Pairs:
    """The pairs of lines; a Problem once one side ends before the other."""
    sides = source.lines(), target.lines()
    for number, pair in enumerate(islice(zip_longest(*sides), limit)):
        if None in pair:
            counts = [number + (line is not None) + sum(1 for _ in side) for line, side in zip(pair, sides)]
            raise Problem(
                f"{source} has {counts[0]:,} lines and {target} has {counts[1]:,}: "
                "they must be translations of each other, line for line"
            )
        yield pair


def columns(pairs: List[tuple]) -> Tuple[str, str]:
    """Pairs of lines as two texts."""
    return "".join(pair[0] + "\n" for pair in pairs), "".join(pair[1] + "\n" for pair in pairs)


def create(path: Path) -> TextIO:
    return open(path, "w", encoding="utf-8", newline="\n")


def written(paths: Iterable[Path], results: Iterable, shown: Any) -> Iterator:
    """Write both texts of each result, one to each path, and hand the result on."""
    with ExitStack() as files:
        outputs = [files.enter_context(create(path)) for path in paths]
        for found in results:
            for output, text in zip(outputs, found.texts):
                output.write(text)
            shown.update(found.read)
            yield found
