"""Beam search, which finds what fairseq's `SequenceGenerator` finds."""

from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from ..generation.options import Search
from .model import Model
from .vocabulary import EOS, PAD

NEVER = np.float32("-inf")


class Hypothesis(NamedTuple):
    """A translation as the search finds it.

    Attributes:
        tokens: without the end of the sentence.
        score: the sum of the logarithms of the probabilities of all tokens and of the end, over their number to the
            power of `lenpen`.
    """

    tokens: List[int]
    score: float


def beam_search(model: Model, tokens: np.ndarray, search: Search, limit: Optional[int]) -> List[List[Hypothesis]]:
    """The translations of a batch.

    A sentence is done when as many hypotheses have ended as it has beams. A hypothesis ends where the end of the
    sentence is among the best so many candidates of a step.

    Args:
        model: the model.
        tokens: of the source, (B, m), padded.
        search: how to search.
        limit: the most positions that the decoder has; None for any number.

    Returns:
        For each sentence its hypotheses, the best first.
    """
    sentences, m = tokens.shape
    longest = int(search.max_len_a * m + search.max_len_b)
    longest = longest if limit is None else min(longest, limit - 1)
    memory = model.encode(tokens)
    states = model.begin(memory)
    found: List[List[Hypothesis]] = [[] for _ in range(sentences)]
    left = np.arange(sentences)  # those that are not done
    # all beams begin alike, so there is one until they differ
    last, order = np.full((sentences, 1), EOS), np.zeros((sentences, 1), np.int64)
    scores, written = np.zeros((sentences, 1), np.float32), np.empty((sentences, 1, 0), np.int64)
    for t in range(longest + 1):
        log_probs, states = model.step(last, order, t + 1, memory, states)
        beams = min(search.beam, log_probs.shape[2] - 1)
        values, origin, word = candidates(log_probs, scores, 2 * beams, first=t == 0, final=t == longest)
        ends = (word == EOS) & (values != NEVER)
        for i, j in zip(*np.nonzero(ends[:, :beams])):
            ended = found[left[i]]
            if len(ended) < beams:
                score = values[i, j] / np.float32((t + 1) ** search.lenpen)
                ended.append(Hypothesis(written[i, origin[i, j]].tolist(), float(score)))
        goes_on = np.array([len(found[number]) < beams for number in left])
        if t == longest or not goes_on.any():
            break
        # the best candidates that have not ended, in their order
        chosen = np.argsort(ends, axis=1, kind="stable")[:, :beams]
        values, origin, word = (np.take_along_axis(each, chosen, axis=1)[goes_on] for each in (values, origin, word))
        order = np.flatnonzero(goes_on)[:, None] * scores.shape[1] + origin
        written = np.take_along_axis(written[goes_on], origin[:, :, None], axis=1)
        written = np.concatenate((written, word[:, :, None]), axis=2)
        last, scores = word, values
        if not goes_on.all():
            left = left[goes_on]
            memory = {name: array[goes_on] for name, array in memory.items()}
    return [sorted(ended, key=lambda each: -each.score) for ended in found]


def candidates(
    log_probs: np.ndarray, scores: np.ndarray, count: int, first: bool, final: bool
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best ways to go on.

    Args:
        log_probs: of each next token, (B, beams, V), which may be written over.
        scores: of each beam so far, (B, beams).
        count: how many are wanted.
        first: whether nothing is written yet, and so a sentence may not end.
        final: whether there is room for nothing but the end.

    Returns:
        Their scores, the best first, the beams that they go on from and their tokens, (B, count) each.
    """
    log_probs[:, :, PAD] = NEVER
    if first:
        log_probs[:, :, EOS] = NEVER
    if final:
        log_probs[:, :, :EOS] = log_probs[:, :, EOS + 1 :] = NEVER
    words = log_probs.shape[2]
    log_probs += scores[:, :, None]
    totals = log_probs.reshape(len(log_probs), -1)
    count = min(count, totals.shape[1] - 1)
    best = np.argpartition(totals, -count, axis=1)[:, -count:]
    values = np.take_along_axis(totals, best, axis=1)
    ranks = np.lexsort((best, -values), axis=1)
    best, values = (np.take_along_axis(each, ranks, axis=1) for each in (best, values))
    return values, best // words, best % words
