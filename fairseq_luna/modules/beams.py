"""Beams of a sentence share what depends on the source alone."""

from typing import Tuple

from torch import Tensor


def by_sentence(sentence: Tensor) -> Tuple[Tensor, int]:
    """How to keep once per sentence what all its beams share.

    Args:
        sentence: (rows,), the sentence of each row of the decoder.

    Returns:
        The sentences in their order, and how many beams each has; where the beams of a sentence do
        not stand together, as many for each, every row counts as a sentence of one beam.
    """
    kept, beams = sentence.unique_consecutive(return_counts=True)
    if bool((beams == beams[:1]).all()):
        return kept, int(beams[0]) if len(beams) else 1
    return sentence, 1
