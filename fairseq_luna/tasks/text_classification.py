"""Classification of texts for fairseq: data, batches, and the classes."""

import os
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from fairseq.data import (
    BaseWrapperDataset,
    Dictionary,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    OffsetTokensDataset,
    RightPadDataset,
    SortDataset,
    StripTokenDataset,
    data_utils,
)
from fairseq.dataclass import FairseqDataclass
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING


@dataclass
class TextClassificationConfig(FairseqDataclass):
    """Settings of the task."""

    data: str = field(
        default=MISSING,
        metadata={"help": "folder with input0/ and label/, each as fairseq-preprocess makes it, or data-prep/ here"},
    )
    max_source_positions: int = field(default=4096, metadata={"help": "longest text, in tokens"})
    seed: int = II("common.seed")


class WithoutEnd(BaseWrapperDataset):
    """Texts without the end of sentence that fairseq-preprocess puts behind them: there is nothing to be generated."""

    def __init__(self, texts: Any, eos: int):
        super().__init__(texts)
        ends = [len(text) > 0 and int(text[-1]) == eos for text in map(texts.__getitem__, range(len(texts)))]
        self.lengths = np.asarray(texts.sizes) - np.array(ends, dtype=int)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index][: self.lengths[index]]

    @property
    def sizes(self) -> Any:
        return self.lengths

    def num_tokens(self, index: int) -> int:
        return int(self.lengths[index])

    def size(self, index: int) -> int:
        return int(self.lengths[index])


@register_task("text_classification", dataclass=TextClassificationConfig)
class TextClassificationTask(FairseqTask):
    """One class for each text; --criterion sentence_prediction is fairseq's own, and says the accuracy.

    Args:
        cfg: settings, see `TextClassificationConfig`.
        dictionary: of the tokens.
        label_dictionary: of the classes, behind fairseq's special symbols.
    """

    def __init__(self, cfg: TextClassificationConfig, dictionary: Dictionary, label_dictionary: Dictionary):
        super().__init__(cfg)
        self.dictionary, self.label_dictionary = dictionary, label_dictionary

    @classmethod
    def setup_task(cls, cfg: TextClassificationConfig, **kwargs: Any) -> "TextClassificationTask":
        """Loads the dictionaries.

        Raises:
            ValueError: if there are none, or fewer than two classes.
        """
        paths = [os.path.join(cfg.data, part, "dict.txt") for part in ("input0", "label")]
        for path in paths:
            if not os.path.exists(path):
                raise ValueError(
                    f"There is no {path}: --task text_classification reads a folder with input0/ and label/, each as "
                    "fairseq-preprocess --only-source makes it."
                )
        dictionary, labels = map(Dictionary.load, paths)
        # fairseq-preprocess fills a dictionary up to a multiple of 8
        classes = [symbol for symbol in labels.symbols[labels.nspecial :] if not symbol.startswith("madeupword")]
        if len(classes) < 2:
            raise ValueError(f"{paths[1]} has {len(classes)} class: to classify takes at least two.")
        if len(classes) < len(labels) - labels.nspecial:
            labels = Dictionary()
            for name in classes:
                labels.add_symbol(name)
        return cls(cfg, dictionary, labels)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Loads a split.

        Raises:
            ValueError: if texts and labels are not as many, a text is empty, or a label is none of the classes.
        """
        texts = WithoutEnd(self.read("input0", split, self.dictionary), self.dictionary.eos())
        labels = self.read("label", split, self.label_dictionary)
        if len(texts) != len(labels):
            raise ValueError(f"{self.cfg.data}: {split} has {len(texts)} texts, but {len(labels)} labels.")
        empty = np.flatnonzero(np.asarray(texts.sizes) == 0)
        if len(empty):
            raise ValueError(f"{self.cfg.data}: text {empty[0] + 1} of {split} is empty; leave it out.")
        labels = StripTokenDataset(labels, id_to_strip=self.label_dictionary.eos())
        first, classes = self.label_dictionary.nspecial, len(self.label_dictionary)
        for number in range(len(labels)):
            label = labels[number].tolist()
            if len(label) != 1 or not first <= label[0] < classes:
                raise ValueError(
                    f"{self.cfg.data}: label {number + 1} of {split} is not among the {classes - first} classes in "
                    "label/dict.txt, which lists those of the training data."
                )
        data = NestedDictionaryDataset(
            {
                "id": IdDataset(),
                "net_input": {
                    "src_tokens": RightPadDataset(texts, pad_idx=self.dictionary.pad()),
                    "src_lengths": NumelDataset(texts, reduce=False),
                },
                "target": OffsetTokensDataset(labels, offset=-first),
                "nsentences": NumSamplesDataset(),
                "ntokens": NumelDataset(texts, reduce=True),
            },
            sizes=[texts.sizes],
        )
        with data_utils.numpy_seed(self.cfg.seed):
            order = np.random.permutation(len(data))
        # texts of like length together, those of equal length in an order by chance
        self.datasets[split] = SortDataset(data, sort_order=[order, np.asarray(texts.sizes)])

    def read(self, part: str, split: str, dictionary: Dictionary) -> Any:
        """Texts or labels of a split."""
        prefix = os.path.join(self.cfg.data, part, split)
        found = data_utils.load_indexed_dataset(prefix, dictionary)
        if found is None:
            raise FileNotFoundError(f"There is no {prefix}.idx: prepare the split {split}, or choose another.")
        return found

    def max_positions(self) -> int:
        """The longest text that fairseq lets in."""
        return self.cfg.max_source_positions

    @property
    def source_dictionary(self) -> Dictionary:
        """Of the tokens."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Optional[Dictionary]:
        """Of the classes."""
        return self.label_dictionary
