"""What a `Translator` is given, one by one and in windows."""

import logging
import sys
from itertools import islice, zip_longest
from typing import Any, Iterable, Iterator, List, Tuple, TypeVar, Union

from ..errors import Problem
from .options import check_whole
from .results import Source, Translation

T = TypeVar("T")
Target = Union[str, Translation]
END: Any = object()
logger = logging.getLogger(__name__)


def lines_of(files: Iterable[str]) -> Iterator[Source]:
    """The lines of files without their ends, each named by its place. "-" is standard input."""
    for name in files:
        file = sys.stdin.buffer if name == "-" else open(name, "rb")
        for number, line in enumerate(file, 1):
            place = f"line {number} of {'the input' if name == '-' else name}"
            line = line.rstrip(b"\r\n")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("utf-8", errors="replace")
                logger.warning("%s is not UTF-8: what cannot be read is replaced by \ufffd", place)
            yield Source(text, name=place)


def windows(items: Iterable[T], size: int) -> Iterator[List[T]]:
    """All items, by `size` of them at a time: no more are read before they are asked for."""
    check_whole("buffer", size, 1)
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def numbered(sources: Iterable[Union[str, Source]]) -> Iterator[Source]:
    """Each sentence with a name."""
    refuse_one(sources)

    def named() -> Iterator[Source]:
        for number, source in enumerate(sources, 1):
            if not isinstance(source, (str, Source)):
                raise Problem(f"sentence {number} is no text, but of type {type(source).__name__}")
            line = Source(source) if isinstance(source, str) else source
            line = line if line.name else line._replace(name=f"sentence {number}")
            if not isinstance(line.text, str):
                raise Problem(f"{line.name} is no text, but of type {type(line.text).__name__}")
            texts = line.constraints
            if isinstance(texts, (str, bytes)) or not all(isinstance(text, str) for text in texts):
                raise Problem(f"the constraints of {line.name} must be a list of texts, but are {texts!r}")
            yield line

    return named()


def paired(sources: Iterable[Union[str, Source]], targets: Iterable[Target]) -> Iterator[Tuple[Source, Target]]:
    """Each sentence with its translation."""
    lines = numbered(sources)
    refuse_one(targets)

    def pairs() -> Iterator[Tuple[Source, Target]]:
        for number, (line, target) in enumerate(zip_longest(lines, targets, fillvalue=END)):
            if line is END or target is END:
                fewer, more = ("sentences", "translations") if line is END else ("translations", "sentences")
                raise Problem(f"there are {number:,} {fewer}, but more {more}: give one for each")
            if not isinstance(target, (str, Translation)):
                raise Problem(f"the translation of {line.name} is no text, but of type {type(target).__name__}")
            yield line, target

    return pairs()


def refuse_one(texts: Any) -> None:
    """Refuse one text where several belong: its characters would be taken for them."""
    if isinstance(texts, (str, bytes, Source, Translation)):
        raise Problem("this is one sentence: give a list of sentences, [...]")
