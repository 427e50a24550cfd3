"""The classifier as fairseq knows it: registration, building, checkpoints."""

from argparse import ArgumentParser
from typing import Any, Dict, List, Tuple, Union

import torch
import torch.nn as nn
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import FairseqEncoderModel, register_model
from fairseq.models.transformer import Embedding
from torch import Tensor

from ...data.byte_text import encode_bytes, is_byte_dictionary
from ...modules.classification_head import ClassificationHead
from ...modules.quant_noise import add_noise
from ..checkpoints import LoadsPruned
from ..luna_transformer.encoder import LunaEncoder
from ..registration import register
from .checks import checked
from .config import CONFIGS, LunaClassifierConfig

HEAD = "sentence_classification_head"  # the name that fairseq's criterion sentence_prediction asks for


@register_model("luna_classifier", dataclass=LunaClassifierConfig)
class LunaClassifierModel(LoadsPruned, FairseqEncoderModel):
    """The translation's encoder, and a class of what it makes of a text."""

    arch = "luna_classifier"

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Called by fairseq: adds the flags of all settings, without defaults."""
        gen_parser_from_dataclass(parser, LunaClassifierConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LunaClassifierModel":
        """Builds the model for a text_classification task.

        Args:
            cfg: settings, see `LunaClassifierConfig`.
            task: with a dictionary of tokens and one of classes.

        Raises:
            ValueError: if the settings make no model.
        """
        cfg, tokens, classes = checked(cfg), task.source_dictionary, task.label_dictionary
        embed_tokens = Embedding(len(tokens), cfg.encoder_embed_dim, tokens.pad())
        model = cls(LunaEncoder(cfg, tokens, embed_tokens, packed_is_read=False))
        number = len(classes) - classes.nspecial
        head = ClassificationHead(cfg.encoder_embed_dim, number, cfg.pooling == "first", cfg.activation_fn, cfg.dropout)
        model.classification_heads = nn.ModuleDict({HEAD: head})
        model.cfg = model.args = cfg  # the criterion of fairseq 0.12.2 looks for `args`
        model.classes = classes.symbols[classes.nspecial :]
        model.layers_to_keep = {"encoder": cfg.encoder_layers_to_keep}
        if cfg.quant_noise_pq > 0:
            add_noise(model.encoder.layers, cfg.quant_noise_pq, cfg.quant_noise_pq_block_size)
        return model

    def forward(self, src_tokens: Tensor, src_lengths: Any = None, **kwargs: Any) -> Tuple[Tensor, Dict[str, Any]]:
        """Scores of classes.

        Args:
            src_tokens: (B, n), padded on either side.
            src_lengths: not read: the lengths are counted in `src_tokens`.
            kwargs: not read: what fairseq's criterion says of the head, of which there is one.

        Returns:
            (B, classes) and nothing more, in fairseq's form.

        Raises:
            ValueError: if a text is longer than learned positions or Linformer's sums reach.
        """
        x = self.encoder.represent(src_tokens)
        return self.classification_heads[HEAD](x, src_tokens.eq(self.encoder.padding_idx)), {}

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        """Probabilities (B, classes) of what `forward` returns, or their logarithms, in float32."""
        logits = net_output[0].float()
        return logits.log_softmax(dim=-1) if log_probs else logits.softmax(dim=-1)

    @torch.no_grad()
    def classify(self, texts: List[Union[str, bytes]]) -> List[Dict[str, float]]:
        """The probability of each class of each text, the likeliest first.

        Args:
            texts: as bytes, or text whose bytes are those of UTF-8, if the model reads bytes; else words with spaces
                between.

        Raises:
            ValueError: if a text is empty, or longer than the model reads.
        """
        trained, found = self.training, []
        self.eval()
        for number, text in enumerate(texts, 1):
            tokens = self.tokens_of(text)
            if not 0 < len(tokens) <= self.cfg.max_source_positions:
                raise ValueError(
                    f"Text {number} has {len(tokens)} tokens, but the model reads 1 to {self.cfg.max_source_positions}."
                )
            found.append(self.class_of(tokens))
        self.train(trained)
        return found

    @torch.no_grad()
    def class_of(self, tokens: Tensor) -> Dict[str, float]:
        """The probability of each class of a text's tokens, (n,), the likeliest first."""
        net_output = self(tokens.unsqueeze(0).to(self.encoder.embed_tokens.weight.device))
        probabilities = self.get_normalized_probs(net_output, log_probs=False)[0].tolist()
        return dict(sorted(zip(self.classes, probabilities), key=lambda pair: -pair[1]))

    def tokens_of(self, text: Union[str, bytes]) -> Tensor:
        """The tokens of a text, (n,)."""
        dictionary = self.encoder.dictionary
        if is_byte_dictionary(dictionary):
            return encode_bytes(text.encode("utf-8") if isinstance(text, str) else text, dictionary)
        words = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return dictionary.encode_line(words, append_eos=False, add_if_not_exist=False).long()


for _arch, _config in CONFIGS.items():
    register(_arch, _config, LunaClassifierModel, globals())
