"""Batches: none is lost, the first is fetched, and making them ends with the command."""

import atexit
import functools
import queue
import threading
import time
from typing import Any


def keep_last_batch() -> None:
    """fairseq main: `batch_by_size` (fairseq/data/data_utils.py) drops the last batch, without a word.

    It does so in training, validation and fairseq-generate alike, when the size of that batch is not a multiple of
    `--required-batch-size-multiple` (8 by default). Known by batching three sentences in twos.
    """
    import numpy as np
    from fairseq.data import data_utils

    batch = data_utils.batch_by_size

    @functools.wraps(batch)
    def batch_by_size(indices, *args, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0:  # fairseq main looks at the last batch of none
            return []
        batches = batch(indices, *args, **kwargs)
        if kwargs.get("fixed_shapes") is None:
            rest = indices[sum(map(len, batches)) :]  # the batches are consecutive slices of the indices
            batches += [rest] if len(rest) else []
        return batches

    three = batch(np.arange(3), None, np.ones(3, np.int64), max_sentences=2, required_batch_size_multiple=2)
    if sum(map(len, three)) < 3:
        data_utils.batch_by_size = batch_by_size


def fetch_first_batch() -> None:
    """fairseq 0.12.2 and main: training on `--dataset-impl cached` fails with a KeyError.

    So old prepared data fails as it is, as this is how it is read. The trainer reads the first batch before anything
    is in the cache (`EpochBatchIterator.first_batch` of fairseq/data/iterators.py, which never calls `prefetch`; by
    this it is known). The batch is fetched first.
    """
    from fairseq.data.iterators import EpochBatchIterator

    read = EpochBatchIterator.first_batch.fget

    def first_batch(self):
        if self._supports_prefetch and len(self.frozen_batches) > 0:
            self.dataset.prefetch(self.frozen_batches[0])
        return read(self)

    if "prefetch" not in read.__code__.co_names:
        EpochBatchIterator.first_batch = property(first_batch)


def end_prefetching() -> None:
    """fairseq 0.12.2 and main: a command that stops within an epoch may abort as it ends, after all its work.

    `BackgroundConsumer` (fairseq/data/iterators.py) is a daemon thread that goes on making batches while Python shuts
    down. Where that catches it inside torch, the process ends by "terminate called without an active exception". Known
    by the thread having no `stop`. At the exit it is told to end, and what it has made is thrown away.
    """
    from fairseq.data.iterators import BackgroundConsumer

    if not hasattr(BackgroundConsumer, "stop"):
        atexit.unregister(_end_consumers)
        atexit.register(_end_consumers)


def _end_consumers() -> None:
    from fairseq.data.iterators import BackgroundConsumer

    deadline = time.time() + 10  # seconds; where the batches come from may hang
    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            consumer: Any = thread
            consumer._max_len = 0
            while consumer.is_alive() and time.time() < deadline:
                try:
                    consumer._queue.get(timeout=0.1)
                except queue.Empty:
                    pass
