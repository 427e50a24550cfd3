"""What goes into a `Translator` and comes out."""

from typing import TYPE_CHECKING, List, NamedTuple, Optional, Sequence, Tuple

if TYPE_CHECKING:  # `fairseq_luna.onnx` has no torch
    from torch import Tensor


class Source(NamedTuple):
    """A sentence with more than its text.

    Attributes:
        text: the sentence.
        constraints: texts that its translation is to hold, in this order.
        name: what to call it in messages; else it is "sentence N".
    """

    text: str
    constraints: Sequence[str] = ()
    name: str = ""


class Translation(NamedTuple):
    """A translation of a sentence. That of a blank one is blank and has the score 0.

    Attributes:
        text: the translation.
        score: the sum of the natural logarithms of the probabilities of its pieces and of the end of the sentence,
            divided by their number to the power of `lenpen`. (fairseq's commands and translate.sh print the base 2
            logarithm: this, divided by log(2).)
        pieces: of the translation.
        source_pieces: of the sentence, as the model read it.
        alignment: pairs (i, j): of all pieces of the source, piece j of the translation attended most to piece i. Only
            with `attention=True`.
        attention: (len(pieces) + 1, len(source_pieces) + 1), on the CPU: how much each piece of the translation
            attended to each of the source. The last row and column are the ends of the sentences. Only with
            `attention=True`.
    """

    text: str
    score: float = 0.0
    pieces: Tuple[str, ...] = ()
    source_pieces: Tuple[str, ...] = ()
    alignment: Optional[List[Tuple[int, int]]] = None
    attention: "Optional[Tensor]" = None


class Score(NamedTuple):
    """How probable the models find a given translation. All logarithms are natural.

    Attributes:
        score: total / n ** lenpen, n being the number of pieces and the end of the sentence.
        total: the sum of `log_probs`.
        pieces: of the translation.
        log_probs: n of them: of each piece given the source and the pieces before it, and of the end of the sentence.
    """

    score: float = 0.0
    total: float = 0.0
    pieces: Tuple[str, ...] = ()
    log_probs: Tuple[float, ...] = ()
