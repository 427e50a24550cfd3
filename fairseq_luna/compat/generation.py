"""Search, and what becomes of its hypotheses."""

import collections
import functools
from types import SimpleNamespace


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
