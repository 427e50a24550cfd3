"""Text in, text out."""

import logging
from pathlib import Path
from typing import Any, Iterable, Iterator, List, Optional, Union

import numpy as np

from ..errors import Problem
from ..generation.batches import by_length
from ..generation.inputs import numbered, windows
from ..generation.options import MAX_TOKENS, Search, check_whole
from ..generation.results import Source, Translation
from ..text import recipes
from . import manifest
from .model import Model
from .search import Hypothesis, beam_search
from .vocabulary import BOS, EOS, PAD, Vocabulary

logger = logging.getLogger(__name__)

OPTIONS = "beam", "lenpen", "nbest", "max_len_a", "max_len_b"  # of the search, which has others with torch


class Translator:
    """Translates text with an exported model. It finds what `fairseq_luna.Translator` finds with the model in torch.

    Example:
        translator = Translator("model")
        translator.translate(["Click OK to save the file."])

    Args:
        folder: what scripts/export.sh wrote.
        threads: that compute; None for one on each core.
        batch_size: sentences that are translated at a time.

    Raises:
        Problem: if there is no such model, or its files are damaged.
        ImportError: if onnxruntime is not installed, or what cuts text into pieces.
    """

    def __init__(self, folder: Union[str, Path], threads: Optional[int] = None, batch_size: int = 64) -> None:
        folder = Path(folder)
        check_whole("batch_size", batch_size, 1)
        if threads is not None:
            check_whole("threads", threads, 1)
        about = manifest.read(folder)
        self.batch_size, self.limits, self.defaults = batch_size, about["limits"], about["search"]
        self.recipe = recipes.load(folder)
        self.recipe.load()
        self.source, self.target = (
            Vocabulary(folder / f"dict.{lang}.txt") for lang in (self.recipe.source, self.recipe.target)
        )
        self.model = Model(folder, about, threads)

    def translate(self, sources: Iterable[Union[str, Source]], **options: Any) -> List[Any]:
        """The translations of all sentences, in their order, as a list. See `stream` for the arguments."""
        return list(self.stream(sources, **options))

    def stream(
        self, sources: Iterable[Union[str, Source]], details: bool = False, buffer: int = 256, **search: Any
    ) -> Iterator[Any]:
        """Translate sentences one after the other, as many as there are.

        Args:
            sources: texts. A blank one has a blank translation.
            details: give a `Translation` for each text.
            buffer: sentences that are read before the first of them is translated: those of like length go together.
            search: beam, lenpen, nbest, max_len_a and max_len_b; see `generation.options.Search`.

        Yields:
            For each sentence its translation as a text; with `nbest` above 1 a list of them, the best first (only one
            for a blank sentence). With `details` a `Translation` in place of a text.

        Raises:
            Problem: if an option makes no sense.
        """
        for name in search:
            if name not in OPTIONS:
                raise Problem(f"{name} is no option of the search with ONNX; there are {', '.join(OPTIONS)}")
        asked = Search.of({**self.defaults, **search})
        return self._stream(windows(numbered(sources), buffer), asked, details)

    def _stream(self, lines: Iterator[List[Source]], search: Search, details: bool) -> Iterator[Any]:
        for window in lines:
            for found in self._translate(window, search):
                best: List[Any] = found if details else [each.text for each in found]
                yield best[0] if search.nbest == 1 else best

    def _translate(self, lines: List[Source], search: Search) -> List[List[Translation]]:
        """The best translations of each sentence of a window."""
        filled = [i for i, line in enumerate(lines) if line.text.strip()]
        sources = self._tokens([lines[i] for i in filled])
        found = [[Translation("")] for _ in lines]
        for numbers in by_length([len(tokens) for tokens in sources], self.batch_size, MAX_TOKENS):
            batch = [sources[i] for i in numbers]
            width = max(map(len, batch))
            padded = np.array([[PAD] * (width - len(tokens)) + tokens for tokens in batch])
            for i, best in zip(numbers, beam_search(self.model, padded, search, self.limits["target"])):
                few = best[: search.nbest] or [Hypothesis([], float("-inf"))]  # of a model that computes no number
                found[filled[i]] = [self._translation(each, sources[i]) for each in few]
        return found

    def _tokens(self, lines: List[Source]) -> List[List[int]]:
        """The numbers of the pieces of each sentence, its end included; a sentence that is too long is cut."""
        found, limit = [], self.limits["source"]
        for line, pieces in zip(lines, self.recipe.encode([line.text for line in lines])):
            tokens = self.source.encode(pieces)
            if limit is not None and len(tokens) > limit:
                cut = f"only the first {limit:,} are translated, the model's limit"
                logger.warning("%s has %s pieces: %s", line.name, f"{len(tokens):,}", cut)
                tokens = [*tokens[: limit - 1], EOS]
            found.append(tokens)
        return found

    def _translation(self, hypothesis: Hypothesis, source: List[int]) -> Translation:
        pieces = self.target.words(hypothesis.tokens)
        # a model that knows little may write that a sentence begins
        text = self.recipe.decode([[piece for piece in pieces if piece != self.target.pieces[BOS]]])[0]
        return Translation(text, hypothesis.score, pieces, self.source.words(source))
