"""Sentences of like length in batches of fairseq."""

from typing import Any, Dict, Iterator, List, Sequence


def by_length(lengths: Sequence[int], most: int, tokens: int) -> Iterator[List[int]]:
    """The numbers of sentences in batches of like lengths, the shortest first.

    Args:
        lengths: of the sentences, in pieces.
        most: sentences in a batch.
        tokens: pieces in a batch, padding included; a longer sentence has a batch of its own.
    """
    batch: List[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[i] > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def collated(dataset: Any, numbers: Sequence[int], device: Any) -> Dict[str, Any]:
    """A batch of a dataset of fairseq, on the device of torch; the numbers of its sentences are under "id"."""
    from fairseq.utils import apply_to_sample  # not above: `fairseq_luna.onnx` has no fairseq

    return apply_to_sample(lambda tensor: tensor.to(device), dataset.collater([dataset[i] for i in numbers]))
