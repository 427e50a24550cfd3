"""The two ways from text to pieces and back. `load` gives the one that a folder of prepared data was made with."""

import re
from pathlib import Path
from typing import Any, Container, Dict, Iterable, List

from ..errors import Problem
from ..files import read_json, whole


class Recipe:
    """From raw lines to pieces, and from pieces of the target language to raw lines."""

    name = ""
    model = ""  # the file, in the folder of the data, of what is learnt from the training text
    tool = ""  # by which that is learnt
    kind = ""  # what the size of the vocabulary counts
    lossless = False  # whether decoding what was encoded gives the same line back

    def __init__(self, folder: Path, source: str, target: str) -> None:
        self.folder, self.path, self.source, self.target = folder, folder / self.model, source, target

    def load(self) -> None:
        """Read what is learnt now, so that its file is not needed later."""
        self.split([""])

    def encode(self, lines: List[str], lang: str = "") -> List[List[str]]:
        """The pieces of raw lines, of the source language unless another is given."""
        return self.split(self.tokenise(lines, lang or self.source))

    def tokenise(self, lines: List[str], lang: str) -> List[str]:
        """The lines as the pieces are cut from them."""
        return lines

    def split(self, lines: List[str]) -> List[List[str]]:
        """The pieces of lines that `tokenise` gave."""
        raise NotImplementedError

    def decode(self, pieces: List[List[str]]) -> List[str]:
        """One raw line, without line breaks, for the pieces of each."""
        raise NotImplementedError

    def symbols(self) -> List[str]:
        """All the pieces there can be, where that is known; else fairseq takes those it finds in the training text."""
        return []


class SentencePiece(Recipe):
    """A joint unigram model that loses nothing: the text as it is, bytes for characters it has not seen."""

    name, model, tool, kind, lossless = "sentencepiece", "spm.model", "sentencepiece", "pieces", True
    _processor: Any = None

    @property
    def processor(self) -> Any:
        if not self._processor:
            from sentencepiece import SentencePieceProcessor

            try:
                self._processor = SentencePieceProcessor(model_file=str(self.path), num_threads=1)
            except RuntimeError as error:
                raise Problem(f"{self.path} is damaged or no model of sentencepiece: get it anew") from error
        return self._processor

    def split(self, lines: List[str]) -> List[List[str]]:
        return self.processor.encode(lines, out_type=str)

    def decode(self, pieces: List[List[str]]) -> List[str]:
        filled = [line for line in pieces if line]  # the decoder takes an empty first line for numbers
        texts = iter(self.processor.decode(filled) if filled else [])
        return [one_line(next(texts)) if line else "" for line in pieces]  # bytes can spell line breaks

    def symbols(self) -> List[str]:
        model = self.processor
        numbers = range(model.get_piece_size())
        return [model.id_to_piece(i) for i in numbers if not model.is_control(i) and not model.is_unknown(i)]

    @staticmethod
    def learn(lines: Iterable[str], path: Path, size: int) -> None:
        import sentencepiece

        with whole(path) as beside, open(beside, "wb") as file:
            try:
                sentencepiece.SentencePieceTrainer.train(
                    # fairseq splits lines of pieces at any white space: as part of no piece, it is spelt in bytes
                    sentence_iterator=(" ".join(line.split()) for line in lines),
                    model_writer=file,
                    vocab_size=size,
                    hard_vocab_limit=False,
                    normalization_rule_name="identity",
                    remove_extra_whitespaces=False,
                    byte_fallback=True,
                    character_coverage=1.0,
                    num_threads=4,  # not --workers: the sums, and so the model, depend on it
                    minloglevel=2,
                )
            except RuntimeError as error:
                reason = str(error).rpartition("] ")[2]  # what comes before is a place in its source
                raise Problem(f"sentencepiece makes no vocabulary of {size:,} pieces: {reason}") from None


class MosesBPE(Recipe):
    """The Moses tokenizer, as fairseq's prepare-wmt14en2de.sh calls it, and a joint byte pair encoding."""

    name, model, tool, kind = "moses-bpe", "bpe.codes", "subword-nmt", "merges"
    CONTINUED = "@@"
    REMEMBERED = 200_000  # words whose pieces are kept at hand; subword-nmt itself would keep all
    _bpe: Any = None

    def __init__(self, folder: Path, source: str, target: str) -> None:
        super().__init__(folder, source, target)
        self.tokenisers: dict = {}

    @property
    def bpe(self) -> Any:
        if not self._bpe:
            from subword_nmt.apply_bpe import BPE

            try:
                with open(self.path, encoding="utf-8") as file:
                    self._bpe = BPE(file, separator=self.CONTINUED)
            except (SystemExit, ValueError, IndexError) as error:  # subword-nmt ends the process
                raise Problem(f"{self.path} is damaged or holds no merges of subword-nmt: get it anew") from error
        return self._bpe

    def tokenise(self, lines: List[str], lang: str) -> List[str]:
        import regex
        from sacremoses import MosesPunctNormalizer

        if lang not in self.tokenisers:
            self.tokenisers[lang] = MosesPunctNormalizer(lang=lang), fast_tokeniser(lang)
        normaliser, tokeniser = self.tokenisers[lang]
        not_printing = regex.compile(r"\p{C}")  # a space in their place, as remove-non-printing-char.perl has it
        return [
            tokeniser.tokenize(
                not_printing.sub(" ", normaliser.normalize(line)), aggressive_dash_splits=True, return_str=True
            )
            for line in lines
        ]

    def split(self, lines: List[str]) -> List[List[str]]:
        if len(self.bpe.cache) > self.REMEMBERED:
            self.bpe.cache.clear()
        return [self.bpe.segment_tokens(line.split()) for line in lines]

    def decode(self, pieces: List[List[str]]) -> List[str]:
        from sacremoses import MosesDetokenizer

        detokeniser = MosesDetokenizer(lang=self.target)
        joint = self.CONTINUED + " "
        return [one_line(detokeniser.detokenize((" ".join(line) + " ").replace(joint, "").split())) for line in pieces]

    @staticmethod
    def learn(counts: Dict[str, int], path: Path, size: int) -> None:
        """Learn `size` merges from how often each word was seen."""
        from subword_nmt.learn_bpe import learn_bpe

        if not any(len(word) > 1 and count > 1 for word, count in counts.items()):
            raise Problem(f"the training text has no word that comes twice: no byte pair encoding of {size:,} merges")
        with whole(path) as beside, open(beside, "w", encoding="utf-8", newline="\n") as file:
            learn_bpe((f"{word} {count}" for word, count in counts.items()), file, size, is_dict=True)


def one_line(text: str) -> str:
    """Text without line breaks: a model that can spell bytes can spell those too."""
    return " ".join(text.splitlines())


def fast_tokeniser(lang: str) -> Any:
    """The tokenizer of sacremoses, twice as fast: it makes a set of the alphabet anew for the words it looks at."""
    from sacremoses import MosesTokenizer

    tokeniser = MosesTokenizer(lang=lang)
    lower, alpha = frozenset(tokeniser.IsLower), frozenset(tokeniser.IsAlpha)
    tokeniser.islower = lower.issuperset
    tokeniser.isanyalpha = lambda text: not alpha.isdisjoint(text)
    return tokeniser


RECIPES = {recipe.name: recipe for recipe in (SentencePiece, MosesBPE)}


def load(folder: Path) -> Recipe:
    """The recipe of a folder of prepared data."""
    manifest = read_json(folder / "manifest.json")
    if not manifest:
        raise Problem(
            f"{folder} holds no prepared data: there is no {folder / 'manifest.json'}. Where the data have moved, say "
            "where to by --data, or let the link `data` of the run point there"
        )
    settings = manifest["settings"]
    recipe = RECIPES[settings.get("recipe", SentencePiece.name)]
    if not (folder / recipe.model).exists():
        raise Problem(f"{folder / recipe.model} is missing: prepare the data again")
    languages = [settings["source"], settings["target"]]
    for lang in languages:
        if not re.fullmatch(r"[\w-]+", str(lang)):  # files are named after them
            raise Problem(f"{folder / 'manifest.json'} names a language {lang!r}: prepare the data again")
    return recipe(folder, *languages)


def forced_pieces(recipe: Recipe, text: str, known: Container[str], what: str) -> List[str]:
    """The pieces of a text that a translation is to hold; a Problem where they are not all `known`."""
    pieces = recipe.encode([text], recipe.target)[0]
    unknown = [piece for piece in pieces if piece not in known]
    if unknown or not pieces:
        lacks = " and ".join(unknown) if unknown else "pieces for it"
        raise Problem(f"{what} {text!r} cannot be forced: the vocabulary lacks {lacks}; give it in other words")
    return pieces
