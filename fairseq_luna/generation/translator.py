"""Translation as Python has it: text in, text out."""

from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from fairseq.data import LanguagePairDataset
from fairseq.dataclass.configs import GenerationConfig
from fairseq.sequence_scorer import SequenceScorer
from fairseq.token_generation_constraints import pack_constraints
from fairseq.utils import extract_hard_alignment
from torch import Tensor

from ..errors import Problem
from ..models.luna_transformer import LunaTransformerModel
from .batches import by_length, collated
from .draws import Draws
from .inputs import Target, numbered, paired, windows
from .loading import device_of, load
from .options import MAX_TOKENS, Search, check_number, check_whole
from .packing import opened
from .pieces import Pieces
from .places import agree
from .results import Score, Source, Translation

SCORED_TOKENS = 1024  # pieces of a batch that is scored: for each, the probability of every piece of the vocabulary


class Request(NamedTuple):
    """What a call of `translate` asks for."""

    search: Search
    prefix: Sequence[Tensor]  # none or one, of numbers (n,)
    draws: Optional[Draws]
    attention: bool


class Translator:
    """Translates text with a trained model, or with several together.

    Example:
        translator = Translator.from_run("runs/quickstart")
        translator.translate(["Click OK to save the file."])

    Several threads may use it: they take turns, as each window of sentences is translated under a lock. Working at the
    same time would gain nothing, since torch computes with all cores already, and would go wrong, since the models are
    told whether to make attention. To use several GPUs, make a process for each.

    Args:
        places: of the models: folders as `from_run` takes them, or files as `from_file` takes them; or one of these.
        device: "cpu", "cuda", "cuda:1" and so on; None for a GPU if there is one.
        precision: "fp32"; on a GPU also "fp16" or "bf16", the precision of the whole model; on a CPU also "bf16" or
            "int8", that of the products with the weights of a Luna. None for fp32 on a GPU, and on a CPU for the
            model's own `--inference-precision`, which is fp32 unless it was trained with another.
        batch_size: sentences that are translated at a time.
        tokens_per_slot: a source of n tokens uses ceil(n / tokens_per_slot) slots, and the projection length at most.
            Fewer slots translate worse unless the model was trained so. All models must have slots. None for the
            models' own.

    Raises:
        Problem: if there is no such model, the models do not go together, or the device or the slots do not suit.
    """

    def __init__(
        self,
        places: Union[str, Path, Sequence[Union[str, Path]]],
        device: Union[str, torch.device, None] = None,
        precision: Optional[str] = None,
        batch_size: int = 64,
        tokens_per_slot: Optional[float] = None,
    ) -> None:
        if isinstance(places, (str, Path)):
            places = [places]
        if not places:
            raise Problem("no model is given to translate with")
        check_whole("batch_size", batch_size, 1)
        if tokens_per_slot is not None:
            tokens_per_slot = check_number("tokens_per_slot", tokens_per_slot, 1)
        self.device, self.batch_size = device_of(device), batch_size
        with ExitStack() as unpacked:
            found = [unpacked.enter_context(opened(Path(place))) for place in places]
            recipe = found[0].recipe
            agree([place.recipe for place in found])
            recipe.load()
            self.models, self.task = load(found, self.device, precision, tokens_per_slot)
        self.pieces = Pieces(recipe, self.task, self.models)
        self._lock = Lock()

    @classmethod
    def from_run(cls, *folders: Union[str, Path], **options: Any) -> "Translator":
        """With the model of a folder, or with those of several, an ensemble.

        Args:
            folders: what quickstart.sh or train.sh wrote; or any that holds model.pt, both dictionaries and spm.model
                or bpe.codes. A run may have been moved: nothing but what lies in it is used.
            options: the other arguments of the class.
        """
        return cls(folders, **options)

    @classmethod
    def from_file(cls, *paths: Union[str, Path], **options: Any) -> "Translator":
        """With the model of a file that pack.sh wrote, or with those of several, an ensemble.

        The files may come from anybody: they are checked against their own manifest, and models and settings that
        fairseq could run as Python are refused. The files are not needed any more once this returns.

        Args:
            paths: of the files.
            options: the other arguments of the class.

        Raises:
            Problem: if a file is damaged, or is not such a file.
        """
        for path in paths:
            if not Path(path).is_file():
                raise Problem(f"there is no file {path}")
        return cls(paths, **options)

    # ---- translating

    def translate(self, sources: Iterable[Union[str, Source]], **options: Any) -> List[Any]:
        """The translations of all sentences, in their order, as a list. See `stream` for the arguments."""
        return list(self.stream(sources, **options))

    def stream(
        self,
        sources: Iterable[Union[str, Source]],
        details: bool = False,
        attention: bool = False,
        buffer: int = 256,
        **search: Any,
    ) -> Iterator[Any]:
        """Translate sentences one after the other, as many as there are.

        Args:
            sources: texts, or `Source`s where a translation must hold given texts. A blank one has a blank translation.
            details: give a `Translation` for each text.
            attention: with its alignment and attention, too. This costs some time.
            buffer: sentences that are read before the first of them is translated: those of like length go together.
            search: the fields of `Search`, such as beam=5, lenpen=1.0, nbest=1 or sampling=True.

        Yields:
            For each sentence its translation as a text; with `nbest` above 1 a list of them, the best first (only one
            for a blank sentence). With `details` or `attention`, a `Translation` in place of a text.

        Raises:
            Problem: if an option makes no sense, or a text cannot be forced into the translation.
        """
        asked = Search.of(search)
        with self._lock:
            prefix = self.pieces.forced([asked.prefix] if asked.prefix else [], "the prefix", "prefix")
        draws = Draws(asked.seed, self.device) if asked.sampling else None
        request = Request(asked, prefix, draws, attention)
        return self._stream(windows(numbered(sources), buffer), request, details or attention)

    def _stream(self, lines: Iterator[List[Source]], request: Request, details: bool) -> Iterator[Any]:
        for window in lines:
            with self._lock:
                translations = self._translate(window, request)
            for found in translations:
                best: List[Any] = found if details else [each.text for each in found]
                yield best[0] if request.search.nbest == 1 else best

    def _translate(self, lines: List[Source], request: Request) -> List[List[Translation]]:
        """The best translations of each sentence of a window."""
        filled = [i for i, line in enumerate(lines) if line.text.strip()]
        forced = [self._constraints(line, request.search) for line in lines]
        constrained = any(forced)
        sources = self.pieces.of_sources([lines[i] for i in filled])
        lengths = [len(tokens) for tokens in sources]
        packed = pack_constraints([forced[i] for i in filled]) if constrained else None
        dataset = self.task.build_dataset_for_inference(sources, lengths, constraints=packed)
        settings = request.search.settings(len(self.task.target_dictionary), constrained)
        found = [[Translation("")] for _ in lines]
        with self._attending(request.attention):
            generator = self.task.build_generator(self.models, GenerationConfig(**settings))
            for numbers in by_length(lengths, self.batch_size, MAX_TOKENS):
                batch = collated(dataset, numbers, self.device)
                hypotheses = self._search(generator, batch, request)
                for i, tokens, best in zip(batch["id"].tolist(), batch["net_input"]["src_tokens"], hypotheses):
                    few = best[: request.search.nbest]
                    found[filled[i]] = [self._translation(each, tokens, request.attention) for each in few]
        return found

    def _constraints(self, line: Source, search: Search) -> List[Tensor]:
        """The pieces of each text that the translation of a sentence is to hold."""
        texts = [text for text in line.constraints if text.strip()]
        if texts and not line.text.strip():
            raise Problem(f"{line.name} has constraints but no source: put the source before the first tab")
        for name in "sampling", "prefix":
            if texts and getattr(search, name):
                raise Problem(f"constraints and {name} do not go together: give one of them")
        return self.pieces.forced(texts, f"{line.name}: the constraint", f"{line.name}, constraints")

    def _search(self, generator: Any, batch: Dict[str, Any], request: Request) -> List[List[Dict[str, Any]]]:
        """fairseq's hypotheses for each sentence of a batch, with room for what they must hold."""
        constraints, prefix = batch.get("constraints"), None
        generator.max_len_b = request.search.max_len_b + (0 if constraints is None else constraints.size(1))
        for tokens in request.prefix:
            generator.max_len_b += len(tokens)
            prefix = tokens.to(self.device).expand(len(batch["id"]), -1)
        with ExitStack() as drawing:
            if request.draws:
                drawing.enter_context(request.draws.drawn())
            return self.task.inference_step(
                generator, self.models, batch, prefix_tokens=prefix, constraints=constraints
            )

    def _translation(self, hypothesis: Dict[str, Any], source: Tensor, attention: bool) -> Translation:
        """One of fairseq's hypotheses as a `Translation`; its source (m,) may be padded."""
        tokens, source = hypothesis["tokens"].cpu(), source.cpu()
        pad, eos = self.pieces.target.pad(), self.pieces.target.eos()
        real = source != self.pieces.source.pad()
        source = source[real]
        pieces = self.pieces.words(tokens)
        text, read = self.pieces.text(pieces), self.pieces.words(source, target=False)
        found = Translation(text, float(hypothesis["score"]), pieces, read)
        if not attention:
            return found
        weights = hypothesis["attention"]
        if weights is None or not len(weights):
            raise Problem("this model makes no attention: leave attention=True out")
        weights = weights.cpu().float()[real].t()  # it comes as (m, n), padding included
        pairs = [(int(i), int(j)) for i, j in extract_hard_alignment(weights, source, tokens, pad, eos)]
        return found._replace(alignment=pairs, attention=weights)

    # ---- scoring

    def score(
        self,
        sources: Iterable[Union[str, Source]],
        targets: Iterable[Target],
        lenpen: float = 1.0,
        buffer: int = 256,
    ) -> List[Score]:
        """How probable the models find given translations (forced decoding). Logarithms are natural.

        Args:
            sources: the sentences.
            targets: a translation of each. A text is cut into pieces as the recipe cuts it. The search may have spelt
                the same text in other pieces: a `Translation` is scored in its own. One that the beam search found
                gets the score that it has. One that was drawn may have another: `temperature`, `sampling_topk` and
                `sampling_topp` change the probabilities that it was drawn by, but not those that are scored.
            lenpen: of `Score.score`, see there. The total does not depend on it.
            buffer: pairs that are read at a time.

        Raises:
            Problem: if there are more of one than of the other, or a translation is longer than the model's positions.
        """
        Search.of({"lenpen": lenpen})
        found: List[Score] = []
        for pairs in windows(paired(sources, targets), buffer):
            with self._lock:
                found += self._score(pairs, lenpen)
        return found

    def _score(self, pairs: List[Tuple[Source, Target]], lenpen: float) -> List[Score]:
        filled = [i for i, (line, _) in enumerate(pairs) if line.text.strip()]
        for line, target in pairs:
            if not line.text.strip() and (target if isinstance(target, str) else target.text).strip():
                raise Problem(f"{line.name} is blank, but its translation is not")
        sources = self.pieces.of_sources([pairs[i][0] for i in filled])
        targets = [self.pieces.of_target(pairs[i][1], pairs[i][0].name) for i in filled]
        lengths, written = [len(tokens) for tokens in sources], [len(tokens) for tokens in targets]
        dictionaries = self.pieces.source, self.pieces.target
        dataset = LanguagePairDataset(
            *(sources, lengths, dictionaries[0], targets, written, dictionaries[1]), shuffle=False
        )
        scorer = SequenceScorer(dictionaries[1])
        found = [Score() for _ in pairs]
        # in an ensemble fairseq adds up what the models attend to, which then all must tell
        with self._attending(len(self.models) > 1):
            for numbers in by_length(list(map(max, lengths, written)), self.batch_size, SCORED_TOKENS):
                batch = collated(dataset, numbers, self.device)
                for i, (hypothesis,) in zip(batch["id"].tolist(), scorer.generate(self.models, batch)):
                    logs = hypothesis["positional_scores"].double().tolist()
                    pieces, total = self.pieces.words(hypothesis["tokens"]), sum(logs)
                    found[filled[i]] = Score(total / len(logs) ** lenpen, total, pieces, tuple(logs))
        return found

    @contextmanager
    def _attending(self, wanted: bool) -> Iterator[None]:
        """Whether the models make attention meanwhile: a Luna does so only where it is asked."""
        decoders = [model.decoder for model in self.models if isinstance(model, LunaTransformerModel)]
        before = [decoder.need_attn for decoder in decoders]
        try:
            for decoder in decoders:
                decoder.need_attn = wanted
            with torch.no_grad():
                yield
        finally:
            for decoder, asked in zip(decoders, before):
                decoder.need_attn = asked
