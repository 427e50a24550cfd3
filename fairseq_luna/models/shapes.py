"""Which shapes of batches are captured in graphs, and in which of them a batch runs."""

from collections import Counter
from typing import Optional, Set, Tuple

from .sizes import some, upwards

COMMON = 3  # a shape that has come so many times is captured when it comes again
ROOM = 1.4  # a batch may run in a captured shape of at most so many times its tokens
MOST = 64  # shapes

Shape = Tuple[int, ...]  # sentences, and the length of each batch of tokens


class Shapes:
    """The captured shapes of a training.

    fairseq's batches have hundreds of shapes, and capturing one takes the time of several updates. So a batch runs in
    the smallest captured shape that holds it, with some padding. Where there is none, its shape is rounded up and
    counted. A rounded shape that has come several times is captured. If all of its batches had one shape, that is
    captured as it is, so that a benchmark or a training of equal batches needs no padding.
    """

    def __init__(self) -> None:
        self.captured: Set[Shape] = set()
        self.seen: Counter[Shape] = Counter()
        self.most = MOST

    def of(self, own: Shape) -> Optional[Shape]:
        """The shape that a batch runs in, which counts as captured from then on; None to run it without a graph.

        Args:
            own: the shape of the batch.
        """
        fitting = [shape for shape in self.captured if holds(shape, own) and tokens(shape) <= ROOM * tokens(own)]
        if fitting:
            return min(fitting, key=tokens)
        larger = rounded(own)
        for shape in {own, larger}:
            self.seen[shape] += 1
        if larger in self.captured:
            return larger
        if self.seen[larger] <= COMMON or len(self.captured) >= self.most:
            return None
        chosen = own if self.seen[own] == self.seen[larger] else larger
        self.seen[larger] = 0
        self.captured.add(chosen)
        return chosen


def holds(shape: Shape, other: Shape) -> bool:
    """Whether a batch of the other shape can be padded to this one."""
    return all(a >= b for a, b in zip(shape, other))


def tokens(shape: Shape) -> int:
    """With padding, of all batches of tokens together."""
    return shape[0] * sum(shape[1:])


def rounded(shape: Shape) -> Shape:
    """The next of fewer shapes: at most a quarter more sentences, and lengths of a quarter more or up to 8."""
    return (some(shape[0]), *(upwards(some(length), 8) for length in shape[1:]))
