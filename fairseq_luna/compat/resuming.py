"""A training that goes on: it ends as an unbroken one does."""

import functools
import logging
import sys
from typing import Any, Dict


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
    def load_checkpoint(
        self,
        filename,
        reset_optimizer=False,
        reset_lr_scheduler=False,
        optimizer_overrides=None,
        reset_meters=False,
        **kwargs,
    ):
        extra = load(
            self,
            filename,
            reset_optimizer,
            reset_lr_scheduler,
            optimizer_overrides,
            reset_meters=reset_meters,
            **kwargs,
        )
        if extra is None or reset_optimizer:
            return extra
        counts = extra.get("validations", {})
        if not reset_meters:  # with which fairseq forgets the best loss, too
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
    such a checkpoint is larger, by 4 bytes a parameter. A model may have been changed since, by an average of
    checkpoints for one: a weight in 32 bits is restored only where it rounds to that of the model.
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
            half = next((parameter.dtype for parameter in getattr(self, "fp16_params", [])), torch.float32)
            with torch.no_grad():
                for weight, value in zip(weights(self), saved):
                    value = value.to(weight.device)
                    weight.copy_(torch.where(value.to(half) == weight.to(half), value, weight))

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
