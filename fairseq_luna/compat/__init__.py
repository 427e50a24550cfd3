"""Workarounds for defects of the installed fairseq, torch and hydra: one function each, a file for each subject.

Each looks whether its defect is there, changes nothing where it is not, and may be called any number of times. Where
a defect was seen is said first; "fairseq main" is the development version of 2025, which ve-fairseq 0.12.3 packages.
fairseq is imported inside the functions alone: `python -m fairseq_luna` answers where it is missing, too.
"""

from .batches import end_prefetching, fetch_first_batch, keep_last_batch
from .checkpoints import (
    allow_checkpoint_types,
    broadcast_by_pickle,
    copy_checkpoints_whole,
    explain_bad_checkpoints,
    retry_saves_from_the_start,
)
from .data import index_large_data, restore_numpy_names
from .generation import count_diverse_groups_by_batch, generate_in_bf16, replace_unknown_words
from .messages import restore_logging, silence_deprecations
from .resuming import (
    end_the_curriculum,
    leave_what_is_done,
    remember_validations,
    resume_in_full_precision,
    resume_with_the_same_batches,
    skip_the_remainder_alone,
)
from .training import count_every_word_of_a_band, keep_bf16_off_tpus


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
