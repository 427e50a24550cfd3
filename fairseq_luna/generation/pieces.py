"""Between the text of sentences and the numbers of their pieces."""

import logging
from typing import Any, List, Sequence, Tuple

from torch import Tensor

from ..errors import Problem
from ..text.recipes import Recipe, forced_pieces
from .inputs import Target
from .results import Source

logger = logging.getLogger(__name__)


class Pieces:
    """The pieces that models share, and how many of them they can read and write.

    Args:
        recipe: between text and pieces.
        task: of fairseq, which has the dictionaries.
        models: of the ensemble.
    """

    def __init__(self, recipe: Recipe, task: Any, models: Sequence[Any]) -> None:
        self.recipe, self.source, self.target = recipe, task.source_dictionary, task.target_dictionary
        self.limit = min(model.max_positions()[0] for model in models)
        # one position is that of the token which decoding starts with
        self.room = min(model.max_decoder_positions() for model in models) - 1

    def of_sources(self, lines: List[Source]) -> List[Tensor]:
        """(m,) of each sentence, its end included; a sentence that is too long is cut."""
        found = []
        for line, pieces in zip(lines, self.recipe.encode([line.text for line in lines])):
            tokens = self.source.encode_line(" ".join(pieces), add_if_not_exist=False).long()
            if len(tokens) > self.limit:
                cut = f"only the first {self.limit:,} are translated, the model's limit"
                logger.warning("%s has %s pieces: %s", line.name, f"{len(tokens):,}", cut)
                tokens = tokens[: self.limit]
                tokens[-1] = self.source.eos()
            found.append(tokens)
        return found

    def of_target(self, target: Target, name: str) -> Tensor:
        """(n,) of a translation, its end included; `name` is that of its source."""
        pieces = self.recipe.encode([target], self.recipe.target)[0] if isinstance(target, str) else target.pieces
        tokens = self.target.encode_line(" ".join(pieces), add_if_not_exist=False).long()
        if len(tokens) > self.room + 1:
            raise Problem(
                f"the translation of {name} has {len(tokens):,} pieces, more than the {self.room + 1:,} that the model "
                "can write: leave it out"
            )
        return tokens

    def forced(self, texts: Sequence[str], what: str, where: str) -> List[Tensor]:
        """(n,) of each text that a translation is to hold, without an end.

        Args:
            texts: not blank.
            what: to call one of them.
            where: to call all of them.

        Raises:
            Problem: if the vocabulary or the models' positions have no place for them.
        """
        found = []
        for text in texts:
            pieces = " ".join(forced_pieces(self.recipe, text, self.target, what))
            found.append(self.target.encode_line(pieces, add_if_not_exist=False, append_eos=False).long())
        size = sum(map(len, found))
        if size > self.room:
            raise Problem(
                f"{where}: {size:,} pieces are more than the {self.room:,} that the model can write; give fewer"
            )
        return found

    def words(self, tokens: Tensor, target: bool = True) -> Tuple[str, ...]:
        """The pieces of numbers (n,), without the end of the sentence."""
        dictionary = self.target if target else self.source
        return tuple(dictionary[token] for token in tokens.tolist() if token != dictionary.eos())

    def text(self, pieces: Sequence[str]) -> str:
        """The text of a translation. A model that knows little may write that a sentence begins, which is left out."""
        begin = self.target[self.target.bos()]
        return self.recipe.decode([[piece for piece in pieces if piece != begin]])[0]
