"""What a training computes, and on which kind of device."""

import argparse
import functools
import importlib.util
import math
import sys


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
