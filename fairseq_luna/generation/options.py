"""What a search is asked for."""

import math
import numbers
from dataclasses import dataclass, fields
from typing import Any, Dict, Optional

from ..errors import Problem

MAX_TOKENS = 4096  # pieces of source in a batch


@dataclass(frozen=True)
class Search:
    """How translations are searched for; the defaults are those of translate.sh.

    Attributes:
        beam: how many hypotheses are followed at a time.
        lenpen: length penalty, above 1 for longer translations: a hypothesis of n pieces, the end of the sentence
            among them, has the score (sum of the logarithms of their probabilities) / n ** lenpen.
        nbest: how many translations are wanted of each sentence.
        max_len_a: a translation has at most max_len_a * m + max_len_b pieces,
        max_len_b: m being the pieces of the longest source in its batch.
        prefix: a text that each translation begins with.
        unordered: constraints may be met in any order.
        sampling: draw each piece by its probability, `nbest` times, in place of the beam search.
        sampling_topk: draw only from so many likeliest pieces.
        sampling_topp: draw only from the likeliest pieces that have this share of the probability.
        temperature: of the drawing; below 1 likely pieces are drawn more often.
        seed: of the drawing.
    """

    beam: int = 5
    lenpen: float = 1.0
    nbest: int = 1
    max_len_a: float = 1.5
    max_len_b: int = 10
    prefix: str = ""
    unordered: bool = False
    sampling: bool = False
    sampling_topk: Optional[int] = None
    sampling_topp: Optional[float] = None
    temperature: float = 1.0
    seed: int = 1

    @staticmethod
    def of(options: Dict[str, Any]) -> "Search":
        """A search with these options.

        Raises:
            Problem: where there is no such option, or its value makes no sense.
        """
        names = [field.name for field in fields(Search)]
        for name in options:
            if name not in names:
                raise Problem(f"{name} is no option of the search; there are {', '.join(names)}")
        search = Search(**options)
        search.check()
        return search

    def check(self) -> None:
        """Refuse values that make no sense, or do not go together."""
        self.check_types()
        for name, least in ("beam", 1), ("nbest", 1), ("sampling_topk", 1), ("max_len_a", 0), ("max_len_b", 0):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Problem(f"{name} must be at least {least}, but is {value}")
        if self.max_len_a + self.max_len_b < 1:
            raise Problem(
                f"max_len_a {self.max_len_a} and max_len_b {self.max_len_b} leave no room for a translation: raise one"
            )
        if self.temperature <= 0:
            raise Problem(f"temperature must be above 0, but is {self.temperature}")
        if self.sampling_topp is not None and not 0 < self.sampling_topp <= 1:
            raise Problem(f"sampling_topp must be above 0 and at most 1, but is {self.sampling_topp}")
        if self.sampling_topk is not None and self.sampling_topp is not None:
            raise Problem("sampling_topk and sampling_topp do not go together: give one of them")
        if self.sampling:
            return
        if self.nbest > self.beam:
            raise Problem(f"nbest {self.nbest} is more than beam {self.beam}, the most that a search finds: raise beam")
        for name in "sampling_topk", "sampling_topp":
            if getattr(self, name) is not None:
                raise Problem(f"{name} is for sampling: give sampling=True too")
        if self.temperature != 1:
            raise Problem(f"temperature {self.temperature} is for sampling: give sampling=True too, or leave it out")

    def check_types(self) -> None:
        """Refuse values of other types than those of the defaults. None is for what has none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name == "sampling_topk" or type(field.default) is int:
                check_whole(field.name, value)
            elif field.name == "sampling_topp" or type(field.default) is float:
                check_number(field.name, value)
            elif not isinstance(value, type(field.default)):
                kind = "a text" if field.default == "" else "True or False"
                raise Problem(f"{field.name} must be {kind}, but is {value!r}")

    def settings(self, vocabulary: int, constrained: bool) -> Dict[str, Any]:
        """The search by the names of fairseq's `GenerationConfig`.

        Args:
            vocabulary: how many pieces there are to draw from.
            constrained: whether translations are to hold given texts.
        """
        found: Dict[str, Any] = {name: getattr(self, name) for name in ("lenpen", "nbest", "max_len_a", "max_len_b")}
        found["beam"] = self.nbest if self.sampling else self.beam
        if constrained:
            found["constraints"] = "unordered" if self.unordered else "ordered"
        if self.sampling:
            found.update(sampling=True, temperature=self.temperature)
            if self.sampling_topk is not None:
                found["sampling_topk"] = min(self.sampling_topk, vocabulary)
            if self.sampling_topp is not None:
                found["sampling_topp"] = self.sampling_topp
        return found


def check_number(name: str, value: Any, least: Optional[float] = None) -> float:
    """A value as a float; refused if it is no finite number, or too small a one."""
    try:
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
            raise Problem(f"{name} must be a number, but is {value!r}")
        number = float(value)
    except OverflowError:
        raise Problem(f"{name} is too large a number") from None
    if least is not None and number < least:
        raise Problem(f"{name} must be at least {least:g}, but is {value}")
    return number


def check_whole(name: str, value: Any, least: Optional[int] = None) -> None:
    """Refuse a value that is no whole number, or too small a one."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise Problem(f"{name} must be a whole number, but is {value!r}")
    if least is not None and int(value) < least:
        raise Problem(f"{name} must be at least {least}, but is {value}")
