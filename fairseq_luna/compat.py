"""Workarounds for defects of the installed fairseq, torch and hydra, one function each.

Each looks whether its defect is there, changes nothing where it is not, and may be called any number of times. Where
a defect was seen is said first; "fairseq main" is the development version of 2025, which ve-fairseq 0.12.3 packages.
"""

import argparse
import atexit
import collections
import functools
import importlib.util
import io
import logging
import math
import os
import pickle
import queue
import re
import sys
import threading
import time
import warnings
import zipfile
from types import SimpleNamespace
from typing import Any, Dict


def apply() -> None:
    """Apply every workaround that is needed here."""
    silence_deprecations()  # before the first import of fairseq, in case that warns too
    restore_logging()
    allow_checkpoint_types()
    broadcast_by_pickle()
    explain_bad_checkpoints()
    copy_checkpoints_whole()
    retry_saves_from_the_start()
    keep_last_batch()
    end_prefetching()
    resume_with_the_same_batches()
    end_the_curriculum()
    skip_the_remainder_alone()
    remember_validations()
    resume_in_full_precision()
    leave_what_is_done()
    replace_unknown_words()
    count_every_word_of_a_band()
    keep_bf16_off_tpus()
    generate_in_bf16()
    restore_numpy_names()
    index_large_data()
    fetch_first_batch()
    count_diverse_groups_by_batch()


def silence_deprecations() -> None:
    """fairseq main uses what hydra 1.3 and torch 2 have deprecated, and each command prints a page about it.

    Silenced are these messages alone: they speak to fairseq's developers and ask nothing of its users. Where they do
    not come the filters do nothing. fairseq-hydra-train prints its share before it imports any plugin.
    """
    for category, start in (
        (UserWarning, r"hydra\.experimental\.\w+\(\) is no longer experimental"),
        (UserWarning, r"\s*The version_base parameter is not specified"),
        (UserWarning, r"In '.*': Usage of deprecated keyword in package header"),
        (UserWarning, r"\s*'.*' is validated against ConfigStore schema with the same name"),
        (UserWarning, r"\s*The strict flag in the compose API is deprecated"),
        (UserWarning, r"Future Hydra versions will no longer change working directory"),
        (FutureWarning, r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated"),
        (UserWarning, r"Support for mismatched key_padding_mask and attn_mask is deprecated"),
    ):
        warnings.filterwarnings("ignore", start, category)


def restore_logging() -> None:
    """fairseq main (models/wav2vec/wav2vec2_classification.py) calls `logging.basicConfig(level=DEBUG)` on import.

    All commands but fairseq-train configure logging after that, to no effect: they log in Python's default format, and
    every library's debug messages too. Known by a root logger in that very state. The format and the level that fairseq
    asks for are put in; the stream stays stderr, which fairseq 0.12.2 uses there.
    """
    import fairseq  # noqa: F401

    root = logging.getLogger()
    for handler in root.handlers:
        default = getattr(handler.formatter, "_fmt", None) == logging.BASIC_FORMAT
        if default and type(handler) is logging.StreamHandler and root.level == logging.DEBUG:
            meant = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
            handler.setFormatter(logging.Formatter(meant, "%Y-%m-%d %H:%M:%S"))
            root.setLevel(os.environ.get("LOGLEVEL", "INFO").upper())


def allow_checkpoint_types() -> None:
    """torch >= 2.6 loads tensors and plain containers alone, and fairseq's own checkpoints hold more.

    That is the `argparse.Namespace` of a model without a config dataclass, and with `--eval-bleu` numpy arrays of int64
    (n-gram counts). Known by `torch.load` refusing them. They are allowed, and everything else is still refused.
    """
    import numpy as np
    import torch

    array = np.zeros(1, np.int64)
    if not _refused([argparse.Namespace(), array]):
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

    if _refused(OmegaConf.create({})):
        utils._broadcast_object_slow = _broadcast_object_slow


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


def resume_with_the_same_batches() -> None:
    """fairseq 0.12.2 and main: a training that goes on after its first epoch takes other batches than an unbroken one.

    `Trainer.get_train_iterator` has the task make the batches by a seed with the epoch in it (main always, 0.12.2 under
    `--update-ordered-indices-seed`). The task keeps them for all later epochs: an unbroken training those of epoch 1, a
    resumed one those of the epoch in which it goes on. Known by the function not looking at what the task keeps. What
    is kept is made as in epoch 1. Batches that are made anew in each epoch are left alone.
    """
    from fairseq.trainer import Trainer

    make = Trainer.get_train_iterator

    @functools.wraps(make)
    def get_train_iterator(self, epoch, *args, **kwargs):
        kept = self.task.dataset_to_epoch_iter
        before = list(kept.values())
        iterator = make(self, epoch, *args, **kwargs)
        dataset = self.task.dataset(self.cfg.dataset.train_subset)
        once = self.task.can_reuse_epoch_itr(dataset) and not callable(iterator.batch_sampler)
        if epoch > 1 and once and kept.get(dataset) is iterator and iterator not in before:
            del kept[dataset]
            iterator = make(self, 1, *args, **{**kwargs, "load_dataset": False})
            iterator.epoch = epoch
            dataset.set_epoch(epoch)
        return iterator

    if "dataset_to_epoch_iter" not in make.__code__.co_names:
        Trainer.get_train_iterator = get_train_iterator


def end_the_curriculum() -> None:
    """fairseq 0.12.2 and main: `--curriculum N` leaves the batches in their order for good, and not for N epochs.

    An iterator keeps its data loader for the next epoch (`EpochBatchIterator`, fairseq/data/iterators.py), which
    shuffles if it did in the epoch in which the process began. So a training that goes on after the N epochs shuffles,
    and an unbroken one does not. Known by `next_epoch_itr` not looking at the loader that is kept.
    """
    from fairseq.data import iterators

    begin = iterators.EpochBatchIterator.next_epoch_itr

    @functools.wraps(begin)
    def next_epoch_itr(self, shuffle=True, *args, **kwargs):
        if self.dataloader is not None:
            self.dataloader.batch_sampler.shuffle = shuffle and not self.disable_shuffling
        return begin(self, shuffle, *args, **kwargs)

    if "dataloader" not in begin.__code__.co_names:
        iterators.EpochBatchIterator.next_epoch_itr = next_epoch_itr


def skip_the_remainder_alone() -> None:
    """fairseq 0.12.2: under `--skip-remainder-batch` a training that goes on within an epoch ends that too early.

    `EpochBatchIterator._get_iterator_for_epoch` (fairseq/data/iterators.py) takes the number of batches that are left,
    less one, for the length of the epoch. Known by the function asking `batch_sampler` for a length. The length is that
    of the whole epoch, less one, as in fairseq main.
    """
    from fairseq.data import iterators

    make = iterators.EpochBatchIterator._get_iterator_for_epoch

    @functools.wraps(make)
    def _get_iterator_for_epoch(self, *args, **kwargs):
        skip, self.skip_remainder_batch = self.skip_remainder_batch, False
        iterator = make(self, *args, **kwargs)
        self.skip_remainder_batch = skip
        if skip and iterator is not None:
            iterator.take(len(iterator) - 1)
        return iterator

    if "batch_sampler" in make.__code__.co_names:
        iterators.EpochBatchIterator._get_iterator_for_epoch = _get_iterator_for_epoch


def remember_validations() -> None:
    """fairseq 0.12.2 and main: a training that goes on has forgotten what some of its validations said.

    No checkpoint holds the counts of `--patience` and of `--lr-patience`, and one that is saved at the end of an epoch
    is saved before the schedule hears of the validation there. Known by the saved state having no such counts. They are
    saved and restored, and the schedule hears of that validation.
    """
    from fairseq.trainer import Trainer

    save, load = Trainer.state_dict, Trainer.load_checkpoint

    @functools.wraps(save)
    def state_dict(self):
        state = save(self)
        plateau: Any = getattr(self.lr_scheduler, "lr_scheduler", None)  # torch's, of reduce_lr_on_plateau
        counts = {"patience": dict(_patience()), "plateau": getattr(plateau, "num_bad_epochs", 0)}
        state["extra_state"]["validations"] = counts
        return state

    @functools.wraps(load)
    def load_checkpoint(self, filename, reset_optimizer=False, reset_lr_scheduler=False, *args, **kwargs):
        extra = load(self, filename, reset_optimizer, reset_lr_scheduler, *args, **kwargs)
        if extra is None or reset_optimizer:
            return extra
        counts = extra.get("validations", {})
        _patience().update(counts.get("patience", {}))
        if not reset_lr_scheduler:
            plateau: Any = getattr(self.lr_scheduler, "lr_scheduler", None)
            if hasattr(plateau, "num_bad_epochs"):
                plateau.num_bad_epochs = counts.get("plateau", 0)
            place = extra["train_iterator"]
            if place["epoch"] > 1 and place.get("iterations_in_epoch") == 0:
                self.lr_step(place["epoch"] - 1, extra.get("val_loss"))
        return extra

    if "validations" not in save.__code__.co_consts:
        Trainer.state_dict, Trainer.load_checkpoint = state_dict, load_checkpoint


def _patience() -> Dict[str, Any]:
    """What fairseq-train counts for `--patience`: its best loss, and validations since (`num_runs`)."""
    for module in "__main__", "fairseq_cli.train":  # `python -m fairseq_cli.train` is the former
        stop = getattr(sys.modules.get(module), "should_stop_early", None)
        if stop is not None:
            return vars(stop)
    return {}


def resume_in_full_precision() -> None:
    """fairseq 0.12.2 and main: a training by `--fp16` or `--bf16` goes on from weights that were rounded to 16 bits.

    `FP16Optimizer` (fairseq/optim/fp16_optimizer.py) trains a copy of the weights in 32 bits, and saves neither that
    nor how long ago the scale of the loss was changed. Known by the names in its state. Both are saved and restored;
    such a checkpoint is larger, by 4 bytes a parameter.
    """
    import torch
    from fairseq.optim import fp16_optimizer

    def patch(optimizer):
        save, load = optimizer.state_dict, optimizer.load_state_dict

        def weights(self):
            copies = getattr(self, "fp32_params", [])  # a list, or one long tensor by device
            return list(copies.values() if isinstance(copies, dict) else copies)

        @functools.wraps(save)
        def state_dict(self):
            state = save(self)
            state["fp32_params"] = [weight.detach() for weight in weights(self)]
            if self.scaler is not None:
                state["loss_scaler"] = {name: value for name, value in vars(self.scaler).items() if name[0] == "_"}
            return state

        @functools.wraps(load)
        def load_state_dict(self, state_dict, optimizer_overrides=None):
            state = dict(state_dict)
            saved, scaler = state.pop("fp32_params", []), state.pop("loss_scaler", {})
            load(self, state, optimizer_overrides)
            if self.scaler is not None:
                vars(self.scaler).update(scaler)
            with torch.no_grad():
                for weight, value in zip(weights(self), saved):
                    weight.copy_(value)

        if "fp32_params" not in save.__code__.co_consts:
            optimizer.state_dict, optimizer.load_state_dict = state_dict, load_state_dict

    patch(fp16_optimizer._FP16OptimizerMixin)
    patch(fp16_optimizer._MemoryEfficientFP16OptimizerMixin)


def leave_what_is_done() -> None:
    """fairseq 0.12.2 and main: a training that is over makes another update when its command is given again.

    So does one that was killed after it had saved its last checkpoint. `main` of fairseq_cli/train.py looks at
    `--max-update`, `--stop-time-hours` and `--patience` after each update, and not before the first. It looks at
    `--max-epoch` before, so that is set to one that is over. Known by `load_checkpoint`, which `main` calls first, not
    looking at `--max-update`.
    """
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(cfg, trainer, **kwargs):
        loaded = load(cfg, trainer, **kwargs)
        limits, updates = trainer.cfg.optimization, trainer.get_num_updates()
        hours = trainer.cumulative_training_time() / 3600
        if (
            (limits.max_update and updates >= limits.max_update)
            or 0 < limits.stop_time_hours < hours
            or 0 < cfg.patience <= _patience().get("num_runs", 0)
        ):
            logging.getLogger(__name__).info(f"The training is over, after {updates} updates: none is made.")
            limits.max_epoch = -1
        return loaded

    if "max_update" not in load.__code__.co_names:
        checkpoint_utils.load_checkpoint = load_checkpoint


def _refused(obj: Any) -> bool:
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


def replace_unknown_words() -> None:
    """fairseq 0.12.2 and main: `--replace-unk` fails, whatever the model.

    Without a dictionary it opens a file "@@ " (`load_align_dict` of fairseq/utils.py, by which this is known). With
    one, `replace_unk` stumbles over the alignment, which is empty, or pairs under `--print-alignment`, or weights under
    `--print-alignment soft`. Where replacement was asked for, hypotheses get their hard alignment, and pairs and
    weights are understood.
    """
    import torch
    from fairseq import utils
    from fairseq.sequence_generator import SequenceGenerator

    load, replace, search = utils.load_align_dict, utils.replace_unk, SequenceGenerator.generate
    asked = False

    def load_align_dict(replace_unk):
        nonlocal asked
        asked = replace_unk is not None
        return load("" if replace_unk == "@@ " else replace_unk)

    def replace_unk(hypo_str, src_str, alignment, align_dict, unk):
        if alignment and isinstance(alignment[0], list):  # of each target word the weights of all source words and eos
            words = range(max(1, len(alignment[0]) - 1))
            alignment = [(max(words, key=lambda i: float(row[i])), at) for at, row in enumerate(alignment)]
        source_word = collections.defaultdict(int, ((target, source) for source, target in alignment))
        return replace(hypo_str, src_str, source_word, align_dict, unk)

    @torch.no_grad()
    def generate(self, models, sample, **kwargs):
        found = search(self, models, sample, **kwargs)
        sources = sample["net_input"]["src_tokens"].cpu() if asked else []
        for source, hypotheses in zip(sources, found):
            for hypothesis in hypotheses:
                attention, tokens = hypothesis["attention"].t().cpu(), hypothesis["tokens"].cpu()
                if len(attention):  # not every model has one
                    alignment = utils.extract_hard_alignment(attention, source, tokens, self.pad, self.eos)
                    hypothesis["alignment"] = alignment
        return found

    try:
        load("@@ ")
    except FileNotFoundError:
        utils.load_align_dict, utils.replace_unk, SequenceGenerator.generate = load_align_dict, replace_unk, generate
    else:
        load(None)  # where it is ours already: nobody has asked


def count_every_word_of_a_band() -> None:
    """fairseq 0.12.2 and main: `--criterion adaptive_loss` never learns one word of each band of rarer words.

    Words are numbered anew in each band, and criterions/adaptive_loss.py takes the one with the number of padding, 1,
    for padding. Known by what the loss of such a word lacks. Impossible words are put before those of a band, as many
    as a dictionary has special symbols.
    """
    import torch
    import torch.nn.functional as F
    from fairseq.criterions.adaptive_loss import AdaptiveLoss
    from fairseq.data import Dictionary
    from fairseq.modules import AdaptiveSoftmax

    forward = AdaptiveSoftmax.forward
    specials = len(Dictionary())

    @functools.wraps(forward)
    def forward_behind_specials(self, input, target):
        outputs, targets = forward(self, input, target)
        for band, words in enumerate(targets):
            if band > 0 and words is not None:
                outputs[band] = F.pad(outputs[band], (specials, 0), value=float("-inf"))
                targets[band] = words + specials
        return outputs, targets

    class Model:
        """Of eight equally likely words: four, and a band of four rarer ones."""

        def __init__(self):
            self.decoder = argparse.Namespace(adaptive_softmax=AdaptiveSoftmax(8, 4, [4], 0.0))

        def __call__(self):
            return (torch.zeros(1, 1, 4),)

        def get_targets(self, sample, net_output):
            return sample["target"]

    criterion = AdaptiveLoss(argparse.Namespace(target_dictionary=Dictionary()), sentence_avg=False)
    with torch.random.fork_rng(devices=[]):
        loss, _, _ = criterion(Model(), {"net_input": {}, "target": torch.tensor([[4 + Dictionary().pad()]])})
    if loss.item() < math.log(5 * 4) - 1e-3:  # of four words and a band, then of the four words in it
        AdaptiveSoftmax.forward = forward_behind_specials


def keep_bf16_off_tpus() -> None:
    """fairseq 0.12.2 and main: `--bf16` and `--memory-efficient-bf16` ask for a TPU, and fail without torch_xla.

    `parse_args_and_arch` (fairseq/options.py) sets `tpu`, and it is at work while this plugin is imported. So the flag
    is taken back where the arguments become the configuration. Known by parsing bf16 alone. Nothing changes where
    torch_xla is installed, or where the command says --tpu itself.
    """
    from fairseq import options
    from fairseq.dataclass import utils

    override = utils.override_module_args

    @functools.wraps(override)
    def override_module_args(args):
        if getattr(args, "bf16", False) and "--tpu" not in sys.argv:
            args.tpu = False
        return override(args)

    def asks_for_tpu() -> bool:
        parser = argparse.ArgumentParser(add_help=False)
        parser.set_defaults(bf16=True, fp16=False, batch_size=None)
        args = options.parse_args_and_arch(parser, [])
        utils.override_module_args(args)
        return args.tpu

    if importlib.util.find_spec("torch_xla") is None and asks_for_tpu():
        utils.override_module_args = override_module_args


def generate_in_bf16() -> None:
    """fairseq 0.12.2 and main: fairseq-generate, -interactive and -eval-lm take `--bf16` and compute in float32.

    They ask for --fp16 alone. Known by a model staying in float32 in `prepare_for_inference_`, which they all call. It
    turns into bfloat16 there, unless the flag is that of a past training: `from_pretrained` hands over its settings,
    which name no model to read.
    """
    import torch
    from fairseq.models import BaseFairseqModel

    prepare = BaseFairseqModel.prepare_for_inference_

    @functools.wraps(prepare)
    def prepare_for_inference_(self, cfg):
        common, read = getattr(cfg, "common", None), getattr(cfg, "common_eval", None)
        if getattr(common, "bf16", False) and getattr(read, "path", None):
            self.bfloat16()
        prepare(self, cfg)

    model = BaseFairseqModel()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    common, read = SimpleNamespace(bf16=True), SimpleNamespace(path="model.pt")
    model.prepare_for_inference_(SimpleNamespace(common=common, common_eval=read, generation=SimpleNamespace()))
    if model.weight.dtype == torch.float32:
        BaseFairseqModel.prepare_for_inference_ = prepare_for_inference_


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


def count_diverse_groups_by_batch() -> None:
    """fairseq main: `--diverse-beam-groups` fails from the second batch on, and is wrong in the first.

    `DiverseBeamSearch` (fairseq/search.py) keeps for each sentence of a batch how much its groups overlap, and looks it
    up by the sentence's number in the whole set. Known by a sentence that is not the first of its set failing. The
    numbers become places in the batch.
    """
    import torch
    from fairseq.data import Dictionary
    from fairseq.search import DiverseBeamSearch

    search = DiverseBeamSearch.step

    @functools.wraps(search)
    def step(self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
        if step == 0:
            self.numbers = original_batch_idxs
        places = (original_batch_idxs.unsqueeze(1) == self.numbers).int().argmax(dim=1)
        return search(self, step, lprobs, scores, prev_output_tokens, places)

    try:
        beams, number = DiverseBeamSearch(Dictionary(), num_groups=2, diversity_strength=0.5), torch.tensor([1])
        for i in range(2):
            beams.step(i, torch.zeros(1, 2, 9), torch.zeros(1, 2, 2), None, number)
    except IndexError:
        DiverseBeamSearch.step = step
