"""Prepared data, and what a newer numpy changes about it."""

import functools
import os
from types import SimpleNamespace


def restore_numpy_names() -> None:
    """fairseq main with numpy 2.4: `--num-batch-buckets` fails, and so does `--sample-break-mode eos`.

    numpy has lost `percentile(interpolation=...)`, now `method`, and `compat.long`, which is `int`. Known by trying
    both. The modules of fairseq that use them get a numpy that has them; numpy itself stays as it is.
    """
    import numpy as np
    from fairseq.data import data_utils, language_pair_dataset, token_block_dataset

    class Numpy:
        compat = SimpleNamespace(long=int)

        def __getattr__(self, name):
            return getattr(np, name)

        def percentile(self, *args, interpolation="linear", **kwargs):
            return np.percentile(*args, **{"method": interpolation, **kwargs})

    try:
        data_utils.get_buckets(np.ones(1), 1)
    except TypeError:
        data_utils.np = Numpy()
    try:
        token_block_dataset.TokenBlockDataset([0], [1], None, pad=1, eos=2, break_mode="eos")
    except AttributeError:
        token_block_dataset.np = language_pair_dataset.np = Numpy()


def index_large_data() -> None:
    """fairseq main with numpy 2: `fairseq-preprocess --workers` spoils data of more than 2 GiB.

    The places of the sentences are summed up in 32 bits, since the lengths that the workers hand over are numpy's
    int32 (`merge_file_` of fairseq/data/indexed_dataset.py). Known by summing up three long ones.
    """
    import numpy as np
    from fairseq.data.indexed_dataset import MMapIndexedDataset, MMapIndexedDatasetBuilder

    finalize = MMapIndexedDatasetBuilder.finalize

    @functools.wraps(finalize)
    def finalize_in_64_bits(self, index_file):
        self._sizes = [int(size) for size in self._sizes]
        finalize(self, index_file)

    with np.errstate(over="ignore"):
        places = MMapIndexedDataset.Index.writer(os.devnull, np.uint16)._get_pointers([np.int32(2**30)] * 3)
    if places[-1] != 2**32 and not hasattr(finalize, "__wrapped__"):
        MMapIndexedDatasetBuilder.finalize = finalize_in_64_bits
