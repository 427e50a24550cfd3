"""Checkpoint files: written whole, read safely, sent to other processes."""

import argparse
import functools
import io
import os
import pickle
import re
import time
import warnings
import zipfile
from typing import Any


def allow_checkpoint_types() -> None:
    """torch >= 2.6 loads tensors and plain containers alone, and fairseq's own checkpoints hold more.

    That is the `argparse.Namespace` of a model without a config dataclass, and with `--eval-bleu` numpy arrays of int64
    (n-gram counts). Known by `torch.load` refusing them. They are allowed, and everything else is still refused.
    """
    import numpy as np
    import torch

    array = np.zeros(1, np.int64)
    if not refused([argparse.Namespace(), array]):
        return
    reconstruct: Any = array.__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            np.ndarray,
            np.dtype,
            type(array.dtype),
            (reconstruct, "numpy.core.multiarray._reconstruct"),  # its name in numpy 1
            (reconstruct, "numpy._core.multiarray._reconstruct"),  # and in numpy 2
        ]
    )


def broadcast_by_pickle() -> None:
    """torch >= 2.6: resuming on several GPUs fails, in `_broadcast_object_slow` of fairseq/distributed/utils.py.

    Rank 0 loads the checkpoint and sends it to the others, who unpack it with `torch.load`: it refuses the omegaconf
    config inside, known by trying one. What a rank of the same job sends is no foreign file, and fairseq's
    `all_gather_list` unpickles it as it is; so this does the same, after rank 0 has loaded the file safely.
    """
    import torch
    from fairseq.distributed import utils
    from omegaconf import OmegaConf

    def _broadcast_object_slow(obj, src_rank, group, dist_device):
        sent = [obj]
        torch.distributed.broadcast_object_list(sent, src_rank, group, dist_device)
        return sent[0]

    if refused(OmegaConf.create({})):
        utils._broadcast_object_slow = _broadcast_object_slow


def refused(obj: Any) -> bool:
    """Whether `torch.load`, called without `weights_only` as fairseq calls it, refuses what `torch.save` wrote."""
    import torch

    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.4 and 2.5 announce the change
        try:
            torch.load(file)
        except pickle.UnpicklingError:
            return True
    return False


def explain_bad_checkpoints() -> None:
    """fairseq 0.12.2 and main: a file that is no whole checkpoint fails as "[Errno 22] Invalid argument" or the like.

    A class that torch (>= 2.6) does not allow fails with a page of advice to switch the check off. Known by an empty
    file failing without its name. The error becomes a sentence with the file, and the class, in it.
    """
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint_to_cpu

    @functools.wraps(load)
    def load_checkpoint_to_cpu(path, *args, **kwargs):
        try:
            return load(path, *args, **kwargs)
        except Exception as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError) and refused:
                raise pickle.UnpicklingError(
                    f"{path} was not loaded: it holds {refused[1]}, which is not part of a fairseq checkpoint and "
                    "could run code. If you trust the file, allow it by torch.serialization.add_safe_globals."
                ) from None
            if os.access(path, os.R_OK) and not zipfile.is_zipfile(path):  # torch.save writes zip files
                raise ValueError(
                    f"{path} is not a whole checkpoint: it was cut short or is something else "
                    f"({type(error).__name__}: {error})."
                ) from error
            raise

    try:
        load(os.devnull)
    except Exception as error:
        if os.devnull not in str(error):
            checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu


def copy_checkpoints_whole() -> None:
    """fairseq 0.12.2 and main: `PathManager.copy` (fairseq/file_io.py) writes over checkpoint_last.pt in place.

    A process killed meanwhile leaves half a file, from which the next run cannot go on. Known by the function renaming
    nothing. The copy is written beside and renamed, as `torch_persistent_save` does for the first file.
    """
    from fairseq.file_io import PathManager

    copy = PathManager.copy
    if "rename" in copy.__code__.co_names:
        return

    def copy_whole(src_path, dst_path, overwrite=False):
        if not overwrite or not PathManager.supports_rename(dst_path):
            return copy(src_path, dst_path, overwrite)
        copied = copy(src_path, dst_path + ".tmp", overwrite)
        PathManager.rename(dst_path + ".tmp", dst_path)
        return copied

    PathManager.copy = staticmethod(copy_whole)


def retry_saves_from_the_start() -> None:
    """fairseq 0.12.2 and main: `_torch_persistent_save` (fairseq/checkpoint_utils.py) repeats a failed save carelessly.

    It goes on in the same open file, behind what the failed one wrote; a disk full for a moment is enough. The result
    cannot be loaded, and takes the place of the good checkpoint. Known by the function never seeking. (With torch 1.12
    a failed write aborts the process, which leaves the good checkpoint.)
    """
    import torch
    from fairseq import checkpoint_utils

    def _torch_persistent_save(obj, f):
        for pause in (2.5, 2.5, None):  # seconds, as in fairseq main
            try:
                return torch.save(obj, f)
            except Exception:
                if pause is None:
                    raise
                time.sleep(pause)
                f.seek(0)
                f.truncate()

    if "seek" not in checkpoint_utils._torch_persistent_save.__code__.co_names:
        checkpoint_utils._torch_persistent_save = _torch_persistent_save
