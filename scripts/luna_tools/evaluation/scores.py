"""Scores of translations: lists of sentences in, figures with their signatures out."""

import logging
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from fairseq_luna.errors import Problem

RESAMPLES = 1000  # of the bootstrap and of the paired test; sacrebleu's seed is 12345 unless SACREBLEU_SEED says other
NAMES = "BLEU", "chrF2++", "TER"
# source lengths, in words: of sentences, and of documents; in pieces, of which a packed model has a number of slots
BUCKETS: Dict[str, Sequence[Tuple[int, Optional[int]]]] = {
    "words": (*((first, first + 9) for first in range(1, 61, 10)), (61, 100), (101, 200), (201, 400), (401, None)),
    "pieces": ((1, 16), (17, 24), (25, 32), (33, 40), (41, 56), (57, None)),
}


def metric(name: str, target: str) -> Any:
    """A metric of sacrebleu by the name that its scores go under."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    if name == "BLEU":
        return BLEU(trg_lang=target)
    kinds: Dict[str, Callable[[], Any]] = {"chrF": CHRF, "chrF2++": lambda: CHRF(word_order=2), "TER": TER}
    return kinds[name]()


def check(hypotheses: Sequence[Any], references: List[str]) -> None:
    if len(hypotheses) != len(references):
        raise Problem(
            f"there are {len(hypotheses):,} hypotheses and {len(references):,} references: "
            "they must be of the same sentences, line for line"
        )
    if not references:
        raise Problem("there is nothing to score: the test set is empty")


def score(
    hypotheses: List[str], references: List[str], target: str, names: Sequence[str] = NAMES, resamples: int = 1
) -> Dict[str, dict]:
    """The scores asked for, each with a 95 % interval where there is more than one resample."""
    check(hypotheses, references)
    return {name: figures(metric(name, target), hypotheses, references, resamples) for name in names}


def figures(metric: Any, hypotheses: List[str], references: List[str], resamples: int) -> dict:
    if resamples > 1:
        # not by corpus_score(n_bootstrap=...): in sacrebleu 2.6.0 that fails where a resample scores 0
        signature, (result,) = bootstrap([hypotheses], {"": metric}, references, resamples)[""]
        interval = {"mean": round(float(result.mean), 2), "plus or minus": round(float(result.ci), 2)}
        return {"score": round(float(result.score), 2), "signature": signature, "95 % interval": interval}
    result = metric.corpus_score(hypotheses, [references])
    return {"score": round(result.score, 2), "signature": str(metric.get_signature())}


def bootstrap(systems: List[List[str]], metrics: dict, references: List[str], resamples: int) -> Dict[str, tuple]:
    """sacrebleu's paired bootstrap: for each metric its signature, and the result of each system against the first."""
    from sacrebleu.significance import PairedTest

    logging.getLogger("sacrebleu").setLevel(logging.WARNING)
    named: List[Tuple[str, Sequence[str]]] = [(str(number), system) for number, system in enumerate(systems)]
    signatures, results = PairedTest(named, metrics, [references], test_type="bs", n_samples=resamples)()
    # it puts names of its own to the metrics, in the same order
    return {name: (str(signatures[key]), results[key]) for name, key in zip(metrics, signatures)}


def compound_split(lines: List[str]) -> List[str]:
    """German text as tensor2tensor's get_ende_bleu.sh scores it: tokenised, and `a-b` as `a ##AT##-##AT## b`."""
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang="de")
    tokenised = (tokenizer.tokenize(line, escape=False, return_str=True) for line in lines)
    return [re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", line) for line in tokenised]


def compound_split_bleu(hypotheses: List[str], references: List[str], resamples: int = 1) -> dict:
    """What most papers on WMT14 English-German call BLEU: to be compared with their tables, and with nothing else."""
    import sacremoses
    from sacrebleu.metrics import BLEU

    check(hypotheses, references)
    as_multi_bleu = BLEU(tokenize="none", force=True, smooth_method="none")
    found = figures(as_multi_bleu, compound_split(hypotheses), compound_split(references), resamples)
    return {
        **found,
        "how": "for comparison with the paper's table only. Both sides: the German tokenizer of sacremoses "
        f"{sacremoses.__version__} (dashes not split, nothing escaped), then "
        r"`s/(\S)-(\S)/\1 ##AT##-##AT## \2/g`; then BLEU as multi-bleu.perl computes it",
    }


def has_todays_lengths(found: List[dict], unit: str = "words") -> bool:
    """Whether `by_length` of another version cut the lengths as it does now."""
    return [bucket.get(unit) for bucket in found] == [_name(*bucket) for bucket in BUCKETS[unit]]


def _name(first: int, last: Optional[int]) -> str:
    return f"{first}-{last}" if last else f">{first - 1}"


def by_length(
    sources: Sequence[Any], hypotheses: List[str], references: List[str], target: str, unit: str = "words"
) -> List[dict]:
    """BLEU by the length of the source; None where there is no sentence of such a length.

    Args:
        sources: lines, whose words count, or lists of pieces.
        unit: what they are counted in: words or pieces.
    """
    check(hypotheses, references)
    check(sources, references)
    bleu = metric("BLEU", target)
    found = []
    for first, last in BUCKETS[unit]:
        # an empty source counts as one word
        lengths = (max(1, len(source.split() if isinstance(source, str) else source)) for source in sources)
        inside = [i for i, length in enumerate(lengths) if first <= length <= (last or length)]
        picked = [hypotheses[i] for i in inside], [[references[i] for i in inside]]
        found.append(
            {
                unit: _name(first, last),
                "sentences": len(inside),
                "BLEU": round(bleu.corpus_score(*picked).score, 2) if inside else None,
            }
        )
    return found


def compare(
    hypotheses: List[str], others: List[str], references: List[str], target: str, names: Sequence[str] = NAMES
) -> Dict[str, dict]:
    """Paired bootstrap test: how likely a difference as large comes from the choice of sentences alone."""
    check(hypotheses, references)
    check(others, references)
    metrics = {name: metric(name, target) for name in names}
    return {
        name: {
            "this": round(float(this.score), 2),
            "other": round(float(other.score), 2),
            # sacrebleu counts the resamples above the difference, none of which are above 0 for equal systems
            "p-value": round(float(this.p_value), 4) if this.score != other.score else 1.0,
            "signature": signature,
        }
        for name, (signature, (other, this)) in bootstrap([others, hypotheses], metrics, references, RESAMPLES).items()
    }
