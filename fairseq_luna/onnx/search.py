"""Beam search, which finds what fairseq's `SequenceGenerator` finds."""

from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from ..generation.options import Search
from .model import Model
from .vocabulary import EOS, PAD

NEVER = np.float32("-inf")
GROUPS = 512  # of the candidates of a step, whose largest are looked at first


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
        log_probs[np.isnan(log_probs)] = NEVER
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
        final: whether there is room for nothing but the end; then there is one for each beam.

    Returns:
        Their scores, the best first, the beams that they go on from and their tokens, (B, count) each, or fewer where
        there are no more.
    """
    if final:
        values, origin = best(log_probs[:, :, EOS] + scores, scores.shape[1])
        return values, origin, np.full_like(origin, EOS)
    log_probs[:, :, PAD] = NEVER
    if first:
        log_probs[:, :, EOS] = NEVER
    log_probs += scores[:, :, None]
    words, totals = log_probs.shape[2], log_probs.reshape(len(log_probs), -1)
    values, place = best(totals, min(count, totals.shape[1] - 1))
    return values, place // words, place % words


def best(totals: np.ndarray, count: int) -> Tuple[np.ndarray, np.ndarray]:
    """The largest numbers of each row and where they stand, (B, count) each, the largest first. totals: (B, n)."""
    some = totals
    if totals.shape[1] > GROUPS >= count:
        # the largest of each group: as many of all are at least as large as the last of them
        some = totals[:, : totals.shape[1] // GROUPS * GROUPS].reshape(len(totals), -1, GROUPS).max(axis=1)
    least = np.partition(some, -count, axis=1)[:, -count]
    rows, places = np.nonzero(totals >= least[:, None])
    values = totals[rows, places]
    ranks = np.lexsort((places, -values, rows))
    firsts = np.searchsorted(rows, np.arange(len(totals)))
    chosen = ranks[firsts[:, None] + np.arange(count)]
    return values[chosen], places[chosen]
