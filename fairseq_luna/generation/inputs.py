"""What a `Translator` is given, one by one and in windows."""

from itertools import islice, zip_longest
from typing import Any, Iterable, Iterator, List, Tuple, TypeVar, Union

from ..errors import Problem
from .options import check_whole
from .results import Source, Translation

T = TypeVar("T")
Target = Union[str, Translation]
END: Any = object()


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
