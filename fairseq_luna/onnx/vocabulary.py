"""Pieces and their numbers, as a dictionary of fairseq has them."""

from pathlib import Path
from typing import Iterable, List, Sequence, Tuple

from ..errors import Problem
from ..files import read_lines

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # which fairseq puts before those of the file
BOS, PAD, EOS, UNKNOWN = range(len(SPECIAL))
REPLACES = "#fairseq:overwrite"  # of a piece that is there already


class Vocabulary:
    """The pieces of a language.

    Args:
        path: of a file dict.LANG.txt, a piece and a number in each line.

    Raises:
        Problem: if the file is not of this kind.
    """

    def __init__(self, path: Path) -> None:
        self.pieces = list(SPECIAL)
        for number, line in enumerate(read_lines(path), 1):
            piece, _, count = line.rstrip().rpartition(" ")
            if count == REPLACES:
                piece, _, count = piece.rpartition(" ")
            if not count.isdigit():
                raise Problem(f"{path}, line {number} is not a piece and a number: get the file anew")
            self.pieces.append(piece)
        self.numbers = {piece: number for number, piece in enumerate(self.pieces)}

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, pieces: Sequence[str]) -> List[int]:
        """The numbers of pieces, and of the end of the sentence."""
        # as fairseq reads a line of pieces: white space within one splits it
        return [*(self.numbers.get(piece, UNKNOWN) for piece in " ".join(pieces).split()), EOS]

    def words(self, numbers: Iterable[int]) -> Tuple[str, ...]:
        """The pieces of numbers, without the end of the sentence."""
        return tuple(self.pieces[number] for number in numbers if number != EOS)
